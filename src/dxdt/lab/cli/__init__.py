"""The command line: every command, and what bad input says.

A command is a module of this room with a function ``main(args)``. It is imported when it is called, and it imports
what it runs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": "Learn real images and a moving pendulum from scratch, in minutes on a laptop.",
    "train": "Train a score model of images: dxdt train score --help.",
    "average": "Make the average of any width of a run with power-function averages.",
    "sample": "Draw samples: OUT.png with a grid, OUT.npz with images (0 to 255) and labels.",
    "likelihood": "Measure bits per dimension along the probability flow, with a standard error.",
    "evaluate": "Measure the Frechet distance of samples from real images in the features of a network.",
    "runs": "List the runs below a folder: when, how far, and their last loss.",
    "bench": "Time solves, samplers and training beside other libraries: dxdt bench --help.",
    "info": "Print versions, devices, and what is missing with the command that installs it.",
}
"""What each command does, in one line."""


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Bad input ends in one sentence and exit status 1, not in a traceback.
    """
    args = sys.argv[1:] if args is None else args
    try:
        if args and args[0] in COMMANDS:
            import_module(f"dxdt.lab.cli.{args[0]}").main(args[1:])
        else:
            _overview(args)
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        _say(f"dxdt: {error}", style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("\nstopped; the same command goes on from the last checkpoint.")
        sys.exit(130)


def _overview(args: list[str]) -> None:
    """Show the commands; of arguments that name none, say what is wrong."""
    import tyro

    def stand_in(line: str) -> Callable[[], None]:
        def command() -> None: ...

        command.__doc__ = line
        return command

    tyro.extras.subcommand_cli_from_dict(
        {name: stand_in(line) for name, line in COMMANDS.items()},
        args=args,
        prog="dxdt",
        description="Learning with differential equations.",
    )


def _say(text: str, style: str | None = None) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, style=style, highlight=False)
