"""`dxdt bench scaling`: the time of a solve over the batch, the width of the field, the steps and the threads."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.measure import CLOCKS, set_threads, time_together
from benchmarks.peers import Peer, present
from benchmarks.plot import plot_curves
from benchmarks.problems import PROBLEMS, Problem, mlp_of_width
from benchmarks.report import surroundings

__all__ = ["Point", "scaling"]


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        axis: what varies.
        setting: what was set for it: its value, or the length of the span for ``steps``.
        peer: the library.
        seconds: median time of a solve, forward.
        low, high: quartiles.
        steps: attempted steps.
    """

    axis: str
    setting: float
    peer: str
    seconds: float
    low: float
    high: float
    steps: int

    @property
    def value(self) -> float:
        """The value of what varies."""
        return self.steps if self.axis == "steps" else self.setting


_TITLES = {
    "batch": "MLP 4-64-64-4",
    "width": "MLP 4-n-n-4, batch 16",
    "steps": "Lotka-Volterra, batch 16",
    "threads": "MLP 4-1024-1024-4, batch 64",
}
_VALUES: dict[str, tuple[float, ...]] = {
    "batch": (1, 4, 16, 64, 256, 1024),
    "width": (16, 64, 256, 1024),
    "steps": (2.5, 5.0, 10.0, 20.0, 40.0),
    "threads": tuple(2**i for i in range((os.cpu_count() or 1).bit_length())),
}


def _cases(axis: str, quick: bool) -> Iterator[tuple[float, Problem, int]]:
    for value in _VALUES[axis][:: 2 if quick else 1]:
        if axis == "batch":
            yield value, PROBLEMS["mlp"], int(value)
        elif axis == "width":
            yield value, mlp_of_width(int(value)), 16
        elif axis == "steps":
            yield value, replace(PROBLEMS["lotka"], t1=value), 16
        else:
            yield value, PROBLEMS["wide"], 64


def scaling(
    axes: tuple[Literal["batch", "width", "steps", "threads"], ...] = ("batch", "width", "steps"),
    peers: tuple[str, ...] = ("dxdt-compiled", "dxdt", "torchdiffeq", "diffrax"),
    quick: bool = False,
    repeats: int = 5,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path | None = None,
) -> list[Point]:
    """Time one solve while one thing grows, the others being fixed.

    With ``--out`` every value is kept as soon as it is measured, and the same command goes on where it stopped.

    Args:
        axes: curves: batch (the MLP of ``dxdt bench solve``), width (of its layers), steps (Lotka-Volterra over longer
            spans), threads (the wide MLP, by the clock on the wall; JAX keeps the threads that it began with, so it is
            left out).
        peers: libraries; those that are not installed are named and skipped.
        quick: every second value only.
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too.
        out: folder for scaling.json, table.txt and scaling.png.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    set_threads(1)
    chosen = present(peers, console)
    settings = {"peers": [p.name for p in chosen], "repeats": repeats, "clock": clock}
    points, tables = _kept(out, settings), list[Table]()
    if points:
        console.print(f"{len(points)} points are taken from {out}/scaling.json")
    for axis in axes:
        able = [p for p in chosen if axis != "threads" or p.package != "diffrax"]
        for value, problem, batch in _cases(axis, quick):
            if not any((p.axis, p.setting) == (axis, value) for p in points):
                set_threads(int(value) if axis == "threads" else 1)
                points += _measure(axis, value, problem, batch, able, repeats, "wall" if axis == "threads" else clock)
                _keep(out, settings, points)
        tables.append(_table(axis, [p for p in points if p.axis == axis]))
        console.print(tables[-1])
    set_threads(1)
    found = [p for p in points if p.axis in axes]
    if out is not None:
        with (out / "table.txt").open("w") as file:
            for table in tables:
                Console(file=file, width=150).print(table)
        plot_curves(found, _TITLES, out / "scaling.png")
        console.print(f"wrote {out}/scaling.json, table.txt and scaling.png")
    return found


def _measure(
    axis: str, value: float, problem: Problem, batch: int, peers: Sequence[Peer], repeats: int, clock: str
) -> list[Point]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = time_together({p.name: p.forward(problem, batch) for p in peers}, repeats, clock=CLOCKS[clock])
        steps = {p.name: p.answer(problem, batch).steps for p in peers}
    return [Point(axis, value, n, t.median, t.low, t.high, steps[n]) for n, t in times.items()]


def _kept(out: Path | None, settings: dict[str, Any]) -> list[Point]:
    """Points of a former run with the same settings."""
    file = None if out is None else out / "scaling.json"
    if file is None or not file.exists():
        return []
    record = json.loads(file.read_text())
    if record["settings"] != settings:
        raise ValueError(f"{file} was measured with {record['settings']}: give another --out, or delete it")
    return [Point(**p) for p in record["points"]]


def _keep(out: Path | None, settings: dict[str, Any], points: Sequence[Point]) -> None:
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    record = {**surroundings(), "settings": settings, "points": [asdict(p) for p in points]}
    part = out / "scaling.json.part"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(out / "scaling.json")


def _table(axis: str, points: list[Point]) -> Table:
    names = list(dict.fromkeys(p.peer for p in points))
    base = names[0]
    table = Table(title=f"{_TITLES[axis]}: milliseconds of a solve, and over {base}", title_justify="left")
    columns = [axis, *(["steps"] if axis != "steps" else []), *names]
    for column in columns:
        table.add_column(column, justify="right")
    for setting in dict.fromkeys(p.setting for p in points):
        row = {p.peer: p for p in points if p.setting == setting}
        lead = [f"{row[base].value:g}", *([str(row[base].steps)] if axis != "steps" else [])]
        ratios = {n: "" if n == base else f" ({p.seconds / row[base].seconds:.2f}x)" for n, p in row.items()}
        table.add_row(*lead, *(f"{1e3 * row[n].seconds:.3f}{ratios[n]}" for n in names))
    return table
