"""`dxdt average`: the weights of a run, averaged over another width than those that were kept."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console

from dxdt.lab.cli.parse import call


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(average, args)


def average(run: tyro.conf.Positional[Path], width: float, out: Path | None = None, step: int | None = None) -> None:
    """Make the average of any width of a run with power-function averages.

    Args:
        run: folder of the run.
        width: relative standard deviation of the average, up to 0.288: 0.1 spans about a tenth of the training.
        out: file of the model; RUN/average-WIDTH.safetensors by default.
        step: at which step of the training; the last by default.
    """
    from dxdt.lab.training.score_model import average_model, save_model

    model, about = average_model(run, width, step)
    path = run / f"average-{width:g}.safetensors" if out is None else out
    save_model(path, model, about)
    Console().print(f"the average is [bold]{path}[/bold]", soft_wrap=True)
