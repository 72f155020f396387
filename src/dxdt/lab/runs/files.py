"""Files that are either whole or not there: write beside, flush, then rename."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dxdt.ops.files import write_atomic


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it or restore a copy.") from error


def save_checkpoint(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a few plain values as one safetensors file, atomically.

    Args:
        tensors: any names; a tensor may appear twice.
        about: plain values, kept as JSON in the file's header.
    """
    contiguous = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = {key: json.dumps(value) for key, value in about.items()}
    write_atomic(path, safetensors.torch.save(contiguous, metadata=header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed.

    Raises:
        ValueError: the file is truncated or not a checkpoint of this kind.
        FileNotFoundError: there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}); delete it to start over, or restore a copy."
        ) from error
    return tensors, {key: json.loads(value) for key, value in header.items()}


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, atomically."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_atomic(path, content.getvalue())
