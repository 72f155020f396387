"""How the time of a solve grows with the batch, the width of the field, the steps and the threads.

python -m dxdt.lab.bench.scaling --out scaling
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from dxdt.lab.bench.measure import CLOCKS, time_together
from dxdt.lab.bench.peers import PEERS
from dxdt.lab.bench.problems import PROBLEMS, Problem, mlp_of_width
from dxdt.ops.optional import require

__all__ = ["Point", "scaling"]


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        axis: what varies.
        value: its value (for ``steps``, the length of the span).
        peer: the library.
        seconds: median time of a solve, forward.
        low, high: quartiles.
        steps: attempted steps.
    """

    axis: str
    value: float
    peer: str
    seconds: float
    low: float
    high: float
    steps: int


_VALUES: dict[str, tuple[float, ...]] = {
    "batch": (1, 4, 16, 64, 256, 1024),
    "width": (16, 64, 256, 1024),
    "steps": (2.5, 5.0, 10.0, 20.0, 40.0),
    "threads": (1, 2),
}


def _cases(axis: str) -> Iterator[tuple[float, Problem, int]]:
    base = PROBLEMS["mlp"]
    for value in _VALUES[axis]:
        if axis == "batch":
            yield value, base, int(value)
        elif axis == "width":
            yield value, mlp_of_width(int(value)), 16
        elif axis == "steps":
            yield value, replace(PROBLEMS["lotka"], t1=value), 16
        else:
            yield value, PROBLEMS["wide"], 64


def scaling(
    axes: tuple[Literal["batch", "width", "steps", "threads"], ...] = ("batch", "width", "steps"),
    peers: tuple[str, ...] = ("dxdt", "dxdt-compiled", "diffrax"),
    repeats: int = 5,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path | None = None,
) -> list[Point]:
    """Time one solve while one thing grows, the others being fixed.

    Args:
        axes: curves to draw: batch and width (the MLP of ``dxdt bench solve``), steps (Lotka-Volterra over longer
            spans), threads (the wide MLP; peers of JAX keep the threads that they began with).
        peers: libraries; those that are not installed are skipped.
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too (not for threads).
        out: folder for scaling.json and scaling.png.
    """
    console, points = Console(), list[Point]()
    chosen = [PEERS[name] for name in peers if PEERS[name].missing is None]
    threads = torch.get_num_threads()
    for axis in axes:
        for value, problem, batch in _cases(axis):
            torch.set_num_threads(int(value) if axis == "threads" else 1)
            runs = {p.name: p.forward(problem, batch) for p in chosen}
            times = time_together(runs, repeats, clock=CLOCKS[clock])
            for p in chosen:
                t, steps = times[p.name], p.answer(problem, batch).steps
                points.append(Point(axis, value, p.name, t.median, t.low, t.high, steps))
        console.print(_table(axis, [p for p in points if p.axis == axis]))
    torch.set_num_threads(threads)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scaling.json").write_text(json.dumps([asdict(p) for p in points], indent=1) + "\n")
        _plot(points, out / "scaling.png")
        console.print(f"wrote {out}/scaling.json and scaling.png")
    return points


def _table(axis: str, points: list[Point]) -> Table:
    table = Table(title=f"milliseconds of a solve over {axis}", title_justify="left")
    names = list(dict.fromkeys(p.peer for p in points))
    for column in (axis, "steps", *names):
        table.add_column(column, justify="right")
    for value in dict.fromkeys(p.value for p in points):
        row = {p.peer: p for p in points if p.value == value}
        steps = max(p.steps for p in row.values())
        table.add_row(f"{value:g}", str(steps), *(f"{1e3 * row[n].seconds:.3f}" for n in names))
    return table


def _plot(points: list[Point], path: Path) -> None:
    require("matplotlib", "lab").use("Agg")
    plt: Any = require("matplotlib.pyplot", "lab")
    axes = list(dict.fromkeys(p.axis for p in points))
    figure, panels = plt.subplots(1, len(axes), figsize=(3.6 * len(axes), 3), squeeze=False, layout="constrained")
    for axis, panel in zip(axes, panels[0], strict=True):
        for name in dict.fromkeys(p.peer for p in points):
            some = [p for p in points if (p.axis, p.peer) == (axis, name)]
            panel.plot([p.value for p in some], [1e3 * p.seconds for p in some], marker="o", label=name)
        panel.set(xlabel=axis, ylabel="milliseconds", xscale="log", yscale="log")
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    tyro.cli(scaling)
