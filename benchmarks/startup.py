"""`dxdt bench startup`: seconds of the processor until imports are done and commands have answered.

Every line is a process of its own; its time is what the system counts for it, so that other work on the machine
counts little.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from dxdt.lab.cli import COMMANDS

__all__ = ["Startup", "bench_startup"]

_CLI = "from dxdt.lab.cli import main; main({words!r})"


@dataclass(frozen=True)
class Startup:
    """One line of the table: what was started, and the least and the median of its seconds."""

    what: str
    least: float
    middle: float


def _seconds(code: str) -> float:
    """Processor seconds of a process that runs some code in silence."""
    pid = os.fork()
    if pid == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.execv(sys.executable, [sys.executable, "-c", code])
    _, _, used = os.wait4(pid, 0)
    return used.ru_utime + used.ru_stime


def bench_startup(repeats: int = 5) -> list[Startup]:
    """Time imports and the command line's first answers.

    Args:
        repeats: processes for each line.
    """
    codes = {
        "import torch": "import torch",
        "import torch; import dxdt": "import torch; import dxdt",
        "import torch; dxdt.solve": "import torch; import dxdt; dxdt.solve",
        "dxdt --help": _CLI.format(words=["--help"]),
        "dxdt info": _CLI.format(words=["info"]),
        "dxdt train score --help": _CLI.format(words=["train", "score", "--help"]),
    }
    codes |= {f"dxdt {name} --help": _CLI.format(words=[name, "--help"]) for name in COMMANDS if name != "info"}
    taken = {what: [] for what in codes}
    for _ in range(repeats):
        for what, code in codes.items():
            taken[what].append(_seconds(code))
    lines = [Startup(what, min(t), median(t)) for what, t in taken.items()]
    table = Table("started", "least", "median", box=None, pad_edge=False)
    for line in lines:
        table.add_row(line.what, f"{line.least:.2f}", f"{line.middle:.2f}")
    Console().print(table)
    return lines
