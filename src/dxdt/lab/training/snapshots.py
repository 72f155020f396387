"""Power-function averages kept during training, one file each, from which any other width is made."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dxdt.lab.runs.files import load_checkpoint, save_checkpoint
from dxdt.lab.training.ema import Snapshot


def keep_snapshot(folder: Path, width: float, step: int, average: nn.Module) -> None:
    """Write the average of a width at a step below the folder of a run.

    Args:
        folder: of the run.
        width: relative standard deviation of the average.
        step: counted from 1.
        average: a module that holds it.
    """
    path = folder / "snapshots" / f"{step:08d}-{width:g}.safetensors"
    save_checkpoint(path, dict(average.named_parameters()), {"width": width, "step": step})


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Return all snapshots of a run.

    Raises:
        ValueError: there is none, or one is broken.
    """
    files = sorted((folder / "snapshots").glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} kept no snapshots; train with training.average:power-function to have averages of any width."
        )
    found = [load_checkpoint(path) for path in files]
    return [Snapshot(about["width"], about["step"], tensors) for tensors, about in found]
