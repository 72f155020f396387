"""A picture of the times: one panel for each problem and kind of work, time over batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from dxdt.ops.optional import require

__all__ = ["plot_rows"]


class _Timed(Protocol):
    problem: str
    batch: int
    work: str
    peer: str
    times: Any


def plot_rows(rows: list[Any], path: Path) -> None:
    """Write the picture.

    Args:
        rows: lines of the table.
        path: where to write it.
    """
    matplotlib = require("matplotlib", "lab")
    matplotlib.use("Agg")
    plt = require("matplotlib.pyplot", "lab")
    timed: list[_Timed] = list(rows)
    problems = list(dict.fromkeys(r.problem for r in timed))
    works = list(dict.fromkeys(r.work for r in timed))
    shape = (len(works), len(problems))
    size = (3.2 * shape[1] + 1, 2.8 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for i, work in enumerate(works):
        for j, problem in enumerate(problems):
            axis = axes[i][j]
            for peer in dict.fromkeys(r.peer for r in timed):
                some = [r for r in timed if (r.problem, r.work, r.peer) == (problem, work, peer)]
                sizes, values = [r.batch for r in some], [1e3 * r.times.median for r in some]
                spread = [
                    [1e3 * (r.times.median - r.times.low) for r in some],
                    [1e3 * (r.times.high - r.times.median) for r in some],
                ]
                axis.errorbar(sizes, values, spread, marker="o", label=peer)
            axis.set(title=f"{problem}, {work}", xlabel="batch", xscale="log", yscale="log")
            if j == 0:
                axis.set_ylabel("milliseconds")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
