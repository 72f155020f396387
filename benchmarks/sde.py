"""`dxdt bench sde`: solves of equations with noise at the same solver by every library installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measure import CLOCKS, set_threads, time_together
from benchmarks.report import Line, missing, show, table_of, write
from dxdt.diffeq import (
    SDE,
    Diagonal,
    EulerMaruyama,
    General,
    Ito,
    StochasticHeun,
    StochasticMidpoint,
    Stratonovich,
    solve,
)
from dxdt.ops.optional import require
from dxdt.paths import Increments

__all__ = ["bench_sde"]

_NOISES, _HIDDEN = 5, 16


class _GBM(nn.Module):
    """dy = 0.05 y dt + 0.2 y dW, Ito, diagonal."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.05, 0.2]))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rates[0] * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rates[1] * y


class _Neural(nn.Module):
    """The generator of torchsde's SDE-GAN: two networks of one hidden layer, five noises."""

    sde_type, noise_type = "stratonovich", "general"

    def __init__(self) -> None:
        super().__init__()
        inner = lambda width: nn.Sequential(  # noqa: E731
            nn.Linear(_HIDDEN + 1, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, width), nn.Tanh()
        )
        self.drift, self.diffusion = inner(_HIDDEN), inner(_HIDDEN * _NOISES)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(self._beside(t, y))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion(self._beside(t, y)).view(-1, _HIDDEN, _NOISES)

    def _beside(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([t.reshape(-1, 1).expand(len(y), 1).to(y), y], -1)


@dataclass(frozen=True)
class _Problem:
    title: str
    field: Callable[[], nn.Module]
    shape: tuple[int, int]
    noise: Any
    calculus: Any
    solver: Any
    theirs: tuple[str, str]
    t1: float
    steps: int
    noises: int

    def make(self) -> tuple[nn.Module, Tensor]:
        """The field and the initial state, the same at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.field(), torch.ones(self.shape)


_PROBLEMS = {
    "gbm": _Problem(
        *("geometric Brownian motion, 100 paths of dimension 4", _GBM, (100, 4), Diagonal(), Ito()),
        *(EulerMaruyama(), ("euler", "Euler"), 1.0, 100, 4),
    ),
    "neural": _Problem(
        *("neural SDE, 1024 paths of dimension 16, 5 noises", _Neural, (1024, 16), General(_NOISES), Stratonovich()),
        *(StochasticMidpoint(), ("midpoint", "Midpoint"), 64.0, 64, _NOISES),
    ),
}


def bench_sde(
    problem: tuple[Literal["gbm", "neural"], ...] = ("gbm", "neural"),
    repeats: int = 7,
    clock: Literal["wall", "cpu"] = "wall",
    backward: bool = True,
    out: Path | None = None,
) -> list[Line]:
    """Time solves of stochastic equations by dxdt and its peers, side by side, at the same solver.

    The error is the relative distance of the mean of the ends from its exact value (gbm) or that
    of a finer solve with other noise (neural): all libraries draw other paths.

    Args:
        problem: gbm (Euler, 100 steps), neural (midpoint, 64 steps).
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too.
        backward: also time the solve with the derivatives of the summed end for all parameters.
        out: folder for results.json, table.txt and times.png.
    """
    set_threads(1)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    lines, tables = list[Line](), []
    for name in problem:
        case = _PROBLEMS[name]
        found = list[Line]()
        for work in ("forward", "forward+backward") if backward else ("forward",):
            runs = _runs(case, work != "forward", console)
            errors = {n: _error(name, case, end()) for n, (_, end) in runs.items()}
            times = time_together({n: run for n, (run, _) in runs.items()}, repeats, clock=CLOCKS[clock])
            base = times["dxdt, compiled"].median
            found += [
                Line(name, case.shape[0], work, n, t, case.steps, errors[n], t.median / base) for n, t in times.items()
            ]
        tables.append(table_of(f"{case.title}, {case.steps} steps of {type(case.solver).__name__}", found))
        show(console, tables[-1:])
        lines += found
    if out is not None:
        write(out, lines, tables, {"repeats": repeats, "clock": clock})
        console.print(f"wrote {out}/results.json, table.txt and times.png")
    return lines


def _error(name: str, case: _Problem, end: np.ndarray) -> float:
    want = np.full(case.shape[1], exp(0.05)) if name == "gbm" else _reference(case)
    return float(np.linalg.norm(end.mean(0) - want) / np.linalg.norm(want))


def _reference(case: _Problem) -> np.ndarray:
    field, y0 = case.make()
    with torch.no_grad():
        end = _ours(case, field, y0, False, steps=2 * case.steps, seed=1, solver=StochasticHeun())
    return end.double().numpy().mean(0)


def _ours(
    case: _Problem, field: Any, y0: Tensor, compile: bool, steps: int = 0, seed: int = 0, solver: Any = None
) -> Tensor:
    equation = SDE(field.f, field.g, case.noise, case.calculus)
    options: dict[str, Any] = {"driver": Increments(seed), "compile": compile}
    # A matrix of noise wants a W for each path; vectors have one anyway.
    options["per_sample"] = isinstance(case.noise, General)
    dt = case.t1 / (steps or case.steps)
    return solve(equation, y0, (0.0, case.t1), dt=dt, solver=solver or case.solver, **options).y1


def _torchsde(case: _Problem, field: Any, y0: Tensor) -> Tensor:
    torchsde, dt = require("torchsde", "bench"), case.t1 / case.steps
    # Told the step, its path is ten to a hundred times faster than by default.
    path = torchsde.BrownianInterval(0.0, case.t1, size=(len(y0), case.noises), dt=dt)
    ts = torch.tensor([0.0, case.t1])
    return torchsde.sdeint(field, y0, ts, bm=path, dt=dt, method=case.theirs[0])[-1]


def _runs(case: _Problem, backward: bool, console: Console) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    ends: dict[str, Callable[..., Tensor]] = {
        "dxdt, compiled": lambda field, y0: _ours(case, field, y0, True),
        "dxdt": lambda field, y0: _ours(case, field, y0, False),
    }
    for package in ("torchsde", "diffrax"):
        line = missing(package, package)
        if line is not None:
            console.print(line, style="yellow", highlight=False)
        elif package == "torchsde":
            ends["torchsde"] = lambda field, y0: _torchsde(case, field, y0)
    runs = {name: _torch_run(case, end, backward) for name, end in ends.items()}
    if missing("diffrax", "diffrax") is None:
        runs["diffrax"] = _diffrax_run(case, backward)
    return runs


def _torch_run(
    case: _Problem, end: Callable[..., Tensor], backward: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    field, y0 = case.make()

    def forward() -> np.ndarray:
        with torch.no_grad():
            return end(field, y0).double().numpy()

    def both() -> Any:
        return torch.autograd.grad(end(field, y0).sum(), list(field.parameters()))

    return (both if backward else forward), forward


def _diffrax_run(case: _Problem, backward: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    jax, diffrax = require("jax", "bench"), require("diffrax", "bench")
    lineax, jnp = require("lineax", "bench"), jax.numpy
    field, y0 = case.make()
    numbers = [jnp.asarray(p.detach().numpy()) for p in field.parameters()]
    start, dt = jnp.asarray(y0.numpy()), case.t1 / case.steps

    def net(p: list[Any], t: Any, y: Any) -> Any:
        x = jnp.concatenate([jnp.reshape(t, (1,)).astype(y.dtype), y])
        return jnp.tanh(p[2] @ jax.nn.silu(p[0] @ x + p[1]) + p[3])

    def drift(t: Any, y: Any, p: list[Any]) -> Any:
        return p[0][0] * y if len(p) == 1 else net(p[:4], t, y)

    def diffusion(t: Any, y: Any, p: list[Any]) -> Any:
        if len(p) == 1:
            return lineax.DiagonalLinearOperator(p[0][1] * y)
        return net(p[4:], t, y).reshape(_HIDDEN, _NOISES)

    def one(y: Any, key: Any, p: list[Any]) -> Any:
        path = diffrax.VirtualBrownianTree(0.0, case.t1, tol=dt / 2, shape=(case.noises,), key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))
        solver = getattr(diffrax, case.theirs[1])()
        return diffrax.diffeqsolve(terms, solver, 0.0, case.t1, dt, y, args=p, max_steps=case.steps + 1).ys[-1]

    def ends(p: list[Any], key: Any) -> Any:
        return jax.vmap(one, in_axes=(0, 0, None))(start, jax.random.split(key, len(start)), p)

    key = jax.random.PRNGKey(0)
    forward = jax.jit(ends)
    pull = jax.jit(jax.grad(lambda p, key: ends(p, key).sum()))
    call = pull if backward else forward
    return lambda: jax.block_until_ready(call(numbers, key)), lambda: np.asarray(forward(numbers, key), np.float64)
