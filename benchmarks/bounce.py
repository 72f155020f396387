"""`python -m benchmarks.bounce`: balls that bounce, each at times of its own, eager beside compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import CLOCKS, time_together
from dxdt.diffeq import ODE, PID, Event, solve

__all__ = ["bench_bounce"]

_E = 0.8


def bench_bounce(balls: int = 1000, bounces: int = 10, repeats: int = 7, clock: Literal["wall", "cpu"] = "cpu") -> None:
    """Time balls in one solve, each with bounces of its own; in uneven gravity there are more steps between them.

    Args:
        balls: samples, dropped from heights between 1 and 20.
        bounces: of each.
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too.
    """
    torch.set_num_threads(1)
    table = Table("problem", "work", "accepted steps a ball", "eager, ms", "compiled, ms", "ratio")
    for name, field, tol in (("free fall", _fall, 1e-4), ("uneven gravity", _uneven, 1e-8)):
        for work, backward in (("forward", False), ("forward+backward", True)):
            run = partial(_run, field, tol, balls, bounces, backward)
            steps = float(run(False).stats.accepted.double().mean())
            runs: dict[str, Callable[[], Any]] = {"eager": partial(run, False), "compiled": partial(run, True)}
            times = time_together(runs, repeats, clock=CLOCKS[clock])
            eager, compiled = (1e3 * times[x].median for x in runs)
            table.add_row(name, work, f"{steps:.1f}", f"{eager:.1f}", f"{compiled:.1f}", f"{eager / compiled:.2f}")
    Console().print(table)


def _fall(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -g.expand(len(y))], -1)


def _uneven(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -g * (1 + 0.2 * torch.sin(3 * y[:, 0]))], -1)


def _height(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return y[:, 0]


def _turn(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    return torch.stack([0 * y[:, 0], -_E * y[:, 1]], -1)


def _run(field: Callable[..., Tensor], tol: float, balls: int, bounces: int, backward: bool, compile: bool) -> Any:
    height = torch.linspace(1.0, 20.0, balls, dtype=torch.float64, requires_grad=backward)
    g = torch.tensor(8.0, dtype=torch.float64, requires_grad=backward)
    # Until just after the last bounce in free fall.
    last = (2 * height / g).sqrt() * (2 * (1 - _E**bounces) / (1 - _E) - 1)
    options: dict[str, Any] = {"controller": PID(tol, tol * 1e-2), "per_sample": True, "compile": compile}
    bounce = Event(_height, -1, _turn)
    start = torch.stack([height, 0 * height], -1)
    sol = solve(ODE(field), start, (0.0, last.detach() * 1.001), args=(g,), event=bounce, **options)
    if backward:
        assert sol.events is not None
        torch.autograd.grad(sol.events.nan_to_num().sum(), [height, g])
    return sol


if __name__ == "__main__":
    tyro.cli(bench_bounce)
