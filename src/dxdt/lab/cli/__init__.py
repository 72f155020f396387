"""The command line: every command, and what bad input says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dxdt.lab.bench.command import bench_command
from dxdt.lab.cli.average import average
from dxdt.lab.cli.evaluate import evaluate
from dxdt.lab.cli.likelihood import likelihood
from dxdt.lab.cli.runs import runs
from dxdt.lab.cli.sample import sample
from dxdt.lab.cli.train import train_command
from dxdt.lab.demo import Demo, quick, run_demo
from dxdt.lab.info import print_info


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
    settings = quick(seed) if quick_ else Demo(seed=seed)
    folder = out or Path("runs") / ("demo-quick" if quick_ else "demo")
    report = run_demo(settings, folder, fresh=fresh)
    Console().print(f"open [bold]{report}[/bold]")


def bench() -> None:
    """Time solves, samplers and training beside other libraries: dxdt bench --help."""


def train() -> None:
    """Train a score model of images: dxdt train score --help."""


def info() -> None:
    """Print versions, devices, and what is missing with the command that installs it."""
    print_info(Console())


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Bad input ends in one sentence and exit status 1, not in a traceback.
    """
    args = sys.argv[1:] if args is None else args
    try:
        if args[:1] == ["train"]:
            train_command(args[1:])
            return
        if args[:1] == ["bench"]:
            bench_command(args[1:])
            return
        tyro.extras.subcommand_cli_from_dict(
            {
                "demo": demo,
                "train": train,
                "average": average,
                "sample": sample,
                "likelihood": likelihood,
                "evaluate": evaluate,
                "runs": runs,
                "bench": bench,
                "info": info,
            },
            args=args,
            prog="dxdt",
            description="Learning with differential equations.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        Console(stderr=True).print(f"dxdt: {error}", style="red", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on from the last checkpoint.")
        sys.exit(130)
