"""The command line: every command, and what bad input says.

A command is a module of this room with a function ``main(args)``. It is imported when it is called, and it imports
what it runs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module

from dxdt import __version__
from dxdt.ops.optional import missing
from dxdt.ops.options import nearest

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
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "dxdt":
            raise  # not for want of a package
        _fail(missing(error.name))
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped.'}", file=sys.stderr)
        sys.exit(130)


def _overview(args: list[str]) -> None:
    """Show the commands; of arguments that name none, say what is wrong."""
    if args and args[0] in ("--version", "-V", "version"):
        print(f"dxdt {__version__}")
    elif not args or args[0] in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        print("usage: dxdt COMMAND ...\n\nLearning with differential equations.\n")
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()))
        print("\ndxdt COMMAND --help shows what a command takes; dxdt --version the version.")
    else:
        raise ValueError(f"there is no command {args[0]}: {nearest(args[0], COMMANDS)}.".replace("?.", "?"))


def _fail(sentence: str) -> None:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}dxdt: {sentence}{plain}", file=sys.stderr)
    sys.exit(1)
