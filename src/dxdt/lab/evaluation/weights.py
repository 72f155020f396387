"""Files of weights made elsewhere: read without executing anything in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dxdt.interop.read import read_content


def read_weights(path: Path, about: str) -> dict[str, Any]:
    """Return what a `.pth` file holds, executing nothing in it.

    Args:
        path: of the file.
        about: what it should be, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or holds more than tensors.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {about} is read from there; let DXDT_DATA name its folder.")
    try:
        found = read_content(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {about}: it is damaged or no file of tensors.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not the tensors of {about} by name.")
    return found


def load_into(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Return `net` with the tensors of a file, in evaluation mode and without gradients.

    Raises:
        ValueError: names or shapes differ from those of the network.
    """
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {type(net).__name__}: {error}") from error
    return net.eval().requires_grad_(False)
