"""`dxdt bench`: the benchmarks of a checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[4]
"""Where the project lies, if this is a checkout of it."""


def main(args: list[str]) -> None:
    """Run the benchmark that the first argument names.

    Raises:
        FileNotFoundError: dxdt runs from an installed package, which has no benchmarks.
    """
    if not (ROOT / "benchmarks" / "command.py").is_file() or not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(
            "the benchmarks are not part of the installed package: they lie in the folder benchmarks of the project's "
            "repository; get a checkout and run `make bench`, or `dxdt bench`, there."
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import_module("benchmarks.command").bench_command(args)
