"""`dxdt demo`: everything on embedded data, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dxdt.lab.cli.parse import call


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(demo, args)


def demo(
    out: Path | None = None,
    seed: int = 0,
    quick_: Annotated[bool, tyro.conf.arg(name="quick")] = False,
    fresh: bool = False,
) -> None:
    """Learn real images and a moving pendulum from scratch, in minutes on a laptop.

    Trains a score model on handwritten digits, draws new digits by solving its reverse equation
    as an ODE and as an SDE, measures bits per dimension on digits it has never seen, checks that
    the samples are digits and not copies, and fits neural ODEs to noisy trajectories. With the
    variable DXDT_DATA naming a folder of data, a measured pendulum is fitted too.

    Writes config.json, metrics.jsonl, checkpoints/, pictures and report.html. An interrupted run
    goes on when the same command is given again.

    Args:
        out: folder to write to (runs/demo, or runs/demo-quick with --quick).
        seed: names every random choice.
        quick_: a run of seconds that tries every part and learns little.
        fresh: start over, deleting what a former run left in the folder.
    """
    from dxdt.lab.demo.demonstration import Demo, quick, run_demo

    settings = quick(seed) if quick_ else Demo(seed=seed)
    folder = out or Path("runs") / ("demo-quick" if quick_ else "demo")
    report = run_demo(settings, folder, fresh=fresh)
    Console().print(f"open [bold]{report}[/bold]")
