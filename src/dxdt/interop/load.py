"""One door for checkpoints of every kind; what is inside decides, and nothing inside is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dxdt.diffusion import Denoiser, Preconditioned, Process
from dxdt.interop import edm, score_sde
from dxdt.interop.checkpoint import load_own
from dxdt.interop.diffusers_folder import is_diffusers, load_diffusers
from dxdt.interop.read import read_content

__all__ = ["load"]

_MODEL = "model.safetensors"
_ENDINGS = (".pth", ".pt", ".pkl", ".ckpt", ".bin", ".safetensors")


def load(path: str | Path, *, process: Process | None = None, **options: Any) -> Denoiser | Preconditioned:
    """Read a denoiser from a file or folder of any known kind.

    | kind | what it is |
    |---|---|
    | our own | a safetensors file of `save`, or the folder of a run |
    | score SDE | a `.pth` with model and averaged weights |
    | EDM | a pickle with a network under `ema` |
    | diffusers | a folder with model_index.json, or a network's folder |

    Args:
        path: the file or folder.
        process: the diffusion of the training, where the file does not say; compared with what it says.
        options: of the kind's own reader: `architecture`, `averaged` (score SDE); `parameterisation`, `clock`,
            `own` (diffusers).

    Raises:
        ValueError: the file is hostile, truncated, of no known kind, or contradicts `process`.
        FileNotFoundError: there is no such file.
        ImportError: a package is needed that is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(_nowhere(str(path)))
    if _is_run(path):
        path = path / _MODEL  # the folder of a run
    if path.is_dir():
        if not is_diffusers(path):
            raise ValueError(f"{path} holds no model_index.json and no config.json; it is no folder of diffusers.")
        return load_diffusers(path, process=process, **options)
    if path.suffix == ".safetensors":
        return load_own(path, process=process, **options)
    where, content = str(path), read_content(path)
    if edm.is_edm(content):
        return edm.denoiser_of(content, where, process, **options)
    if score_sde.is_score_sde(content):
        architecture, averaged = options.pop("architecture", None), options.pop("averaged", True)
        return score_sde.denoiser_of(content, where, process, architecture, averaged, **options)
    raise ValueError(f"{where} is of no known kind; checkpoints of score SDE, EDM, diffusers and dxdt are read.")


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run of ours, and not of a network of diffusers, which has files of such names."""
    if not (path / _MODEL).is_file() or (path / "model_index.json").exists():
        return False
    config = path / "config.json"
    return not config.is_file() or '"_class_name"' not in config.read_text(errors="replace")


def _nowhere(name: str) -> str:
    """What to say of a path that leads nowhere, such as the name of a model that lies elsewhere."""
    if name == "mnist_ddpm":
        return (
            "mnist_ddpm is a name of the command line; dxdt.lab.evaluation.pretrained.mnist_ddpm(folder) opens it here."
        )
    hub = re.fullmatch(r"(?:https?:/+huggingface\.co/)?([\w.-]+/[\w.-]+)", name)
    if hub is None or Path(hub[1]).suffix in _ENDINGS or Path(hub[1]).parent.exists():
        return f"{name} does not exist; check the name."
    return (
        f"{name} does not exist here; if it is a model of the Hugging Face hub, fetch it first, by "
        f'load(huggingface_hub.snapshot_download("{hub[1]}")), which pip install huggingface-hub brings.'
    )
