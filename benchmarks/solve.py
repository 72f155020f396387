"""`dxdt bench solve`: one process, the same problems by every library that is installed."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import CLOCKS, Clock, Counts, Times, count_operations, floor_of, set_threads, time_together
from benchmarks.peers import Answer, Peer, present
from benchmarks.plot import plot_rows
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.report import surroundings
from dxdt.diffeq import ODE, PID, Vern7, solve

__all__ = ["Row", "bench"]

_EQUAL = 3.0
_REFERENCE_ROWS = 16


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        problem, batch, work, peer: what was run (``forward`` or ``forward+backward``).
        times: seconds.
        steps, evaluations: of the forward pass.
        error: relative distance of the end from a tight reference.
        ratio: time over that of dxdt (compiled, where that is asked for).
        equal: whether the errors agree within a factor of three, so that the ratio counts.
        floor: seconds of the field's evaluations alone, eager and compiled (forward only).
        counts: operations, with ``profile``.
    """

    problem: str
    batch: int
    work: str
    peer: str
    times: Times
    steps: int
    evaluations: int
    error: float
    ratio: float
    equal: bool
    floor: dict[str, float]
    counts: Counts | None


def bench(
    problem: tuple[Literal["mlp", "fast", "lotka", "small", "wide"], ...] = ("mlp", "lotka", "small"),
    batch: tuple[int, ...] = (),
    peers: tuple[str, ...] = ("torchdiffeq", "torchode", "diffrax"),
    repeats: int = 7,
    threads: int = 1,
    device: str = "cpu",
    clock: Literal["wall", "cpu"] = "wall",
    compile: bool = False,
    backward: bool = True,
    floor: bool = True,
    profile: bool = False,
    out: Path | None = None,
) -> list[Row]:
    """Time ODE solves by dxdt and its peers, side by side in one process.

    Every line shows steps, evaluations and the error against a tight reference beside the time; a
    ratio is marked with a star where the errors differ by more than a factor of three.

    Args:
        problem: mlp (4-64-64-4), fast (the same with FastTanh), lotka (Lotka-Volterra), small (small_neural_ode),
            wide (1024).
        batch: batch sizes (default: those of the problem).
        peers: libraries beside dxdt; those that are not installed are named and skipped.
        repeats: repetitions, taken in turns.
        threads: threads of each library.
        device: cpu, or a CUDA device for all libraries (JAX, if it has one), by the clock on the wall.
        clock: wall, or cpu where others use the machine too (then with one thread).
        compile: add dxdt with compile=True.
        backward: times of solves with their derivatives too (--no-backward: forward alone).
        floor: the floor below the solves: the field's evaluations alone, eager and compiled (--no-floor: not).
        profile: count operations, host reads, new tensors and their bytes for each step, where a library is eager.
        out: folder for results.json, table.txt and times.png.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    set_threads(threads)
    clock = clock if device == "cpu" else "wall"
    names = ["dxdt", *(["dxdt-compiled"] if compile else []), *peers]
    chosen = present(names, console)
    rows: list[Row] = []
    for name in problem:
        case = replace(PROBLEMS[name], device=device)
        for size in batch or case.batches:
            found = _bench(case, size, chosen, repeats, CLOCKS[clock], backward, floor, profile, console)
            console.print(_table(case, size, found))
            rows += found
    if out is not None:
        _write(out, rows, {"threads": threads, "repeats": repeats, "clock": clock, "device": device})
        console.print(f"wrote {out}/results.json, table.txt and times.png")
    return rows


def _bench(
    case: Problem,
    size: int,
    peers: list[Peer],
    repeats: int,
    clock: Clock,
    backward: bool,
    floor: bool,
    profile: bool,
    console: Console,
) -> list[Row]:
    reference = _reference(case, size)
    answers: dict[str, Answer] = {}
    for peer in list(peers):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answers[peer.name] = peer.answer(case, size)
        except Exception as error:  # a peer that fails costs its line and nothing else
            console.print(f"{peer.name} failed: {error}", style="yellow", highlight=False)
    able = [p for p in peers if p.name in answers]
    if not able:
        return []
    errors = {name: _error(answer.y, reference) for name, answer in answers.items()}
    floors: dict[str, float] = {}
    if floor:
        count = answers[able[0].name].evaluations
        floors = {kind: floor_of(case, size, count, kind == "compiled", clock) for kind in ("eager", "compiled")}
    rows: list[Row] = []
    for work in ("forward", "forward+backward") if backward else ("forward",):
        made = {p.name: (p.forward if work == "forward" else p.both)(case, size) for p in able}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = time_together(made, repeats, clock=clock)
        base = next((p.name for p in able if p.name == "dxdt-compiled"), able[0].name)
        for peer in able:
            n, a = peer.name, answers[peer.name]
            counts = count_operations(made[n]) if profile and peer.eager else None
            equal = max(errors[n], errors[base]) <= _EQUAL * min(errors[n], errors[base])
            ratio = times[n].median / times[base].median
            shown = floors if work == "forward" else {}
            rows.append(
                Row(
                    *(case.name, size, work, n, times[n], a.steps, a.evaluations),
                    *(errors[n], ratio, equal, shown, counts),
                )
            )
    return rows


def _reference(case: Problem, size: int) -> np.ndarray:
    """The end of the first few samples in float64 at a tight tolerance."""
    y0 = case.start(size)[:_REFERENCE_ROWS].double()
    with torch.no_grad():
        sol = solve(
            ODE(case.field().double()),
            y0,
            (0.0, case.t1),
            solver=Vern7(),
            controller=PID(1e-11, 1e-11),
            max_steps=1_000_000,
        )
    return sol.y1.cpu().numpy()


def _error(y: np.ndarray, reference: np.ndarray) -> float:
    y = y[: len(reference)]
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def _table(case: Problem, size: int, rows: list[Row]) -> Table:
    place = "" if case.device == "cpu" else f" on {case.device}"
    title = f"{case.title}{place}; batch {size}, t in [0, {case.t1:g}], tolerance {case.tol:g}"
    table = Table(title=title, title_justify="left")
    for column in ("work", "library", "ms", "quartiles", "us/step", "steps", "evals", "error"):
        table.add_column(column, justify="left" if column in ("work", "library") else "right")
    base = next((r.peer for r in rows if r.ratio == 1), "dxdt")
    table.add_column(f"x {base}", justify="right")
    profiled = any(r.counts for r in rows)
    if profiled:
        for column in ("ops/step", "syncs/step", "allocs/step", "kB/step"):
            table.add_column(column, justify="right")
    for r in rows:
        t = r.times
        cells = [r.work, r.peer, f"{1e3 * t.median:.3f}", f"{1e3 * t.low:.3f}-{1e3 * t.high:.3f}"]
        cells += [f"{1e6 * t.median / r.steps:.1f}", str(r.steps), str(r.evaluations)]
        cells += [f"{r.error:.1e}", f"{r.ratio:.2f}{'' if r.equal else ' *'}"]
        if profiled:
            c = r.counts
            counts = (c.operations, c.syncs, c.allocations, c.allocated / 1e3) if c else ()
            cells += [f"{n / r.steps:.1f}" for n in counts]
        table.add_row(*cells)
    for kind, seconds in (rows[0].floor if rows else {}).items():
        mine = [r for r in rows if r.work == "forward" and r.peer.startswith("dxdt")]
        row = mine[-1] if kind == "compiled" else mine[0]
        note = f"{row.peer} {100 * (row.times.median / seconds - 1):+.0f} %"
        table.add_row("floor", f"field alone, {kind}", f"{1e3 * seconds:.3f}", note)
    if not all(r.equal for r in rows):
        table.caption = "* errors differ by more than a factor of three: the ratio does not count"
    return table


def _write(out: Path, rows: list[Row], settings: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = {
        **surroundings(),
        **settings,
        "rows": [asdict(r) for r in rows],
    }
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    with (out / "table.txt").open("w") as file:
        console = Console(file=file, width=160)
        seen: dict[tuple[str, int], list[Row]] = {}
        for r in rows:
            seen.setdefault((r.problem, r.batch), []).append(r)
        for (name, size), group in seen.items():
            console.print(_table(replace(PROBLEMS[name], device=settings["device"]), size, group))
    plot_rows(rows, out / "times.png")
