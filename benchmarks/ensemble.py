"""`dxdt bench ensemble`: thousands of small systems at once, each with its own parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measure import CLOCKS, set_threads, time_together
from benchmarks.peers import jax_device, wait
from benchmarks.report import Line, missing, show, table_of, write
from dxdt.diffeq import ODE, PID, I, Tsit5, Vern7, solve
from dxdt.ops.optional import require

__all__ = ["Ensemble", "bench_ensemble"]

_SIGMA, _BETA = 10.0, 8 / 3
_LOOKED_AT = 16


@dataclass(frozen=True)
class Ensemble:
    """N Lorenz systems: x' = 10 (y - x), y' = x (rho - z) - y, z' = x y - 8/3 z from (1, 0, 0) over [0, 1], with
    rho evenly from 0 to 21 (Utkarsh et al. 2024, arXiv:2304.06835).

    Attributes:
        number: N.
        steps: steps of the same length, or 0 for a step of its own for each system.
        tol: rtol and atol of such steps.
        device: where all lie.
    """

    number: int
    steps: int
    tol: float
    device: str

    @property
    def rho(self) -> np.ndarray:
        """The parameters."""
        return np.linspace(0.0, 21.0, self.number, dtype=np.float32)

    def given(self) -> tuple[Tensor, Tensor]:
        """The initial state ``(N, 3)`` and the parameters ``(N,)``."""
        y0 = torch.tensor([1.0, 0.0, 0.0], device=self.device).repeat(self.number, 1)
        return y0, torch.from_numpy(self.rho).to(self.device)

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of some systems, and their ends in float64 at a tight tolerance."""
        some = np.linspace(0, self.number - 1, min(self.number, _LOOKED_AT)).astype(int)
        rho = torch.from_numpy(self.rho[some]).double()
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(len(some), 1)
        sol = solve(ODE(_lorenz), y0, (0.0, 1.0), args=rho, solver=Vern7(), controller=PID(1e-12, 1e-12))
        return some, sol.y1.numpy()


def _lorenz(t: Any, y: Tensor, rho: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([_SIGMA * (b - a), a * (rho - c) - b, a * b - _BETA * c], dim=-1)


@dataclass(frozen=True)
class _End:
    """The ends ``(N, 3)`` on their device, and the most steps that a system took."""

    y: Any
    steps: int


def _ours(case: Ensemble, compile: bool) -> Callable[[], _End]:
    y0, rho = case.given()
    if case.steps:
        # Steps that all share need no clock for each.
        options: dict[str, Any] = {"dt": 1 / case.steps}
    else:
        options = {"controller": I(case.tol, case.tol), "per_sample": True}

    def run() -> _End:
        with torch.no_grad():
            sol = solve(ODE(_lorenz), y0, (0.0, 1.0), args=rho, solver=Tsit5(), compile=compile, **options)
        wait(case.device)
        return _End(sol.y1, int(torch.as_tensor(sol.stats.steps).max()))

    return run


def _torchdiffeq(case: Ensemble) -> Callable[[], _End]:
    odeint = require("torchdiffeq", "bench").odeint
    y0, rho = case.given()
    t = torch.tensor([0.0, 1.0], device=case.device)
    options: dict[str, Any] = {"method": "dopri5", "rtol": case.tol, "atol": case.tol}
    if case.steps:
        options = {"method": "rk4", "options": {"step_size": 1 / case.steps}}
    taken = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        return _lorenz(t, y, rho)

    def count(*given: Any) -> None:
        nonlocal taken
        taken += 1

    field.callback_step = count  # pyright: ignore[reportFunctionMemberAccess]

    def run() -> _End:
        nonlocal taken
        taken = 0
        with torch.no_grad():
            y = odeint(field, y0, t, **options)[-1]
        wait(case.device)
        return _End(y, taken)

    return run


def _torchode(case: Ensemble) -> Callable[[], _End]:
    to = require("torchode", "bench")
    y0, rho = case.given()
    term = to.ODETerm(lambda t, y, args: _lorenz(t, y, args), with_args=True)
    control = to.IntegralController(atol=case.tol, rtol=case.tol, term=term)
    solver = to.AutoDiffAdjoint(to.Tsit5(term=term), to.FixedStepController() if case.steps else control)
    zero = torch.zeros(case.number, device=case.device)
    problem = to.InitialValueProblem(y0=y0, t_start=zero, t_end=zero + 1)
    dt = zero + 1 / case.steps if case.steps else None

    def run() -> _End:
        with torch.no_grad():
            sol = solver.solve(problem, args=rho, dt0=dt)
        wait(case.device)
        return _End(sol.ys[:, -1], int(sol.stats["n_steps"].max()))

    return run


def _diffrax(case: Ensemble) -> Callable[[], _End]:
    jax, diffrax = require("jax", "bench"), require("diffrax", "bench")
    place = jax_device(jax, case.device)
    control = diffrax.PIDController(rtol=case.tol, atol=case.tol)
    zero, one = np.float32(0), np.float32(1)
    options: dict[str, Any] = {"stepsize_controller": diffrax.ConstantStepSize() if case.steps else control}

    def field(t: Any, y: Any, rho: Any) -> Any:
        return jax.numpy.stack([_SIGMA * (y[1] - y[0]), y[0] * (rho - y[2]) - y[1], y[0] * y[1] - _BETA * y[2]])

    def end(rho: Any) -> Any:
        dt = np.float32(1 / case.steps) if case.steps else None
        y0 = jax.numpy.asarray([1, 0, 0], dtype=rho.dtype)
        term, solver = diffrax.ODETerm(field), diffrax.Tsit5()
        sol = diffrax.diffeqsolve(term, solver, zero, one, dt, y0, args=rho, max_steps=None, **options)
        return sol.ys[-1], sol.stats["num_steps"]

    step, rho = jax.jit(jax.vmap(end)), jax.device_put(case.rho, place)

    def run() -> _End:
        y, steps = jax.block_until_ready(step(rho))
        return _End(y, int(steps.max()))

    return run


_PEERS: Mapping[str, tuple[str, Callable[[Ensemble], Callable[[], _End]]]] = {
    "dxdt, compiled": ("torch", lambda case: _ours(case, True)),
    "dxdt": ("torch", lambda case: _ours(case, False)),
    "torchdiffeq": ("torchdiffeq", _torchdiffeq),
    "torchode": ("torchode", _torchode),
    "diffrax": ("diffrax", _diffrax),
}


def bench_ensemble(
    number: int = 8192,
    steps: int = 1000,
    tol: float = 1e-6,
    repeats: int = 3,
    device: str = "cpu",
    clock: Literal["wall", "cpu"] = "wall",
    work: tuple[Literal["fixed", "adaptive"], ...] = ("fixed", "adaptive"),
    peers: tuple[Literal["torchdiffeq", "torchode", "diffrax"], ...] = ("torchdiffeq", "torchode", "diffrax"),
    out: Path | None = None,
) -> list[Line]:
    """Time N Lorenz systems with parameters of their own, by dxdt and its peers, side by side.

    "fixed" is the published row: float32, steps of 1e-3 over [0, 1], Tsit5 (torchdiffeq: RK4). "adaptive" has
    steps of its own for each system (torchdiffeq: one for all). The error is the largest distance of an end
    from a tight reference, over one and its length, among 16 systems.

    Args:
        number: systems.
        steps: steps of the fixed row.
        tol: rtol and atol of the adaptive row.
        repeats: repetitions, taken in turns.
        device: cpu, or a CUDA device (then by the clock on the wall).
        clock: wall, or cpu where others use the machine too.
        work: rows.
        peers: libraries beside dxdt; those that are not installed are named and skipped.
        out: folder for results.json, table.txt and times.png.
    """
    set_threads(1)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    clock = clock if device == "cpu" else "wall"
    lines, tables = list[Line](), []
    for kind in work:
        case = Ensemble(number, steps if kind == "fixed" else 0, tol, device)
        found = _bench(case, kind, repeats, clock, peers, console)
        how = f"{steps} steps" if kind == "fixed" else f"tolerance {tol:g}"
        tables.append(table_of(f"{number} Lorenz systems on {device}, {how}", found))
        show(console, tables[-1:])
        lines += found
    if out is not None:
        write(out, lines, tables, {"number": number, "repeats": repeats, "clock": clock, "device": device})
        console.print(f"wrote {out}/results.json, table.txt and times.png")
    return lines


def _bench(case: Ensemble, kind: str, repeats: int, clock: str, peers: tuple[str, ...], console: Console) -> list[Line]:
    runs: dict[str, Callable[[], _End]] = {}
    answers: dict[str, _End] = {}
    for name, (package, make) in _PEERS.items():
        if package != "torch" and name not in peers:
            continue
        told = missing(package, name)
        try:
            if told is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    runs[name] = make(case)
                    answers[name] = runs[name]()
                continue
        except Exception as error:  # a peer that fails costs its line and nothing else
            told = f"{name} failed: {error}"
            runs.pop(name, None)
        console.print(told, style="yellow", highlight=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = time_together(runs, repeats, clock=CLOCKS[clock])
    some, reference = case.reference()
    base = times[next(iter(runs))].median
    lines = list[Line]()
    for name, t in times.items():
        y = answers[name].y
        y = y.double().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y, dtype=np.float64)
        error = np.linalg.norm(y[some] - reference, axis=1) / (1 + np.linalg.norm(reference, axis=1))
        lines.append(
            Line("lorenz", case.number, kind, name, t, answers[name].steps, float(error.max()), t.median / base)
        )
    return lines
