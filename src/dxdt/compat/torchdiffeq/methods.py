"""torchdiffeq's names of methods and what they stand for here; its options and what they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.compat.torchdiffeq.adams import Adams
from dxdt.compat.torchdiffeq.field import Measured
from dxdt.compat.torchdiffeq.fixed import Chord, Nudged
from dxdt.compat.torchdiffeq.problem import CALLBACKS, Problem
from dxdt.compat.torchdiffeq.tableaux import Fehlberg2, Heun3, LooseDopri5, ThreeEighths
from dxdt.diffeq import (
    PID,
    SDIRK2,
    TRBDF2,
    Bosh3,
    Clip,
    Controller,
    Dopri8,
    Euler,
    GaussLegendre4,
    GaussLegendre6,
    Grid,
    Heun,
    ImplicitEuler,
    ImplicitMidpoint,
    Kvaerno3,
    Kvaerno4,
    Kvaerno5,
    Midpoint,
    RadauIIA3,
    RadauIIA5,
    Solver,
    Trapezoidal,
    Tsit5,
)

__all__ = ["Method", "adaptive_controller", "fixed_grid", "fixed_solver", "method_of"]

_FIXED = ("step_size", "grid_constructor", "interp", "perturb")
_ADAPTIVE = (
    *("first_step", "safety", "ifactor", "dfactor", "min_step", "max_step"),
    *("max_num_steps", "dtype", "step_t", "jump_t"),
)


DEFAULT = "dopri5"
"""The method where none is named."""


@dataclass(frozen=True)
class Method:
    """A method of torchdiffeq.

    Attributes:
        solver: makes the one-step map from the problem; None where SciPy solves.
        options: names it knows besides ``norm`` and ``compile``.
        adaptive: whether it chooses its steps.
        callbacks: callbacks it supports.
        default: the interval default of ``max_order``, for Adams methods.
    """

    solver: Callable[[Problem], Solver] | None
    options: tuple[str, ...]
    adaptive: bool
    callbacks: tuple[str, ...]

    def check(self, problem: Problem) -> None:
        """Warn about options and callbacks that would be ignored."""
        unknown = {k: v for k, v in problem.options.items() if k not in (*self.options, "norm", "compile")}
        if unknown:
            warnings.warn(f"{problem.method or DEFAULT}: Unexpected arguments {unknown}", stacklevel=4)
        if ignored := set(problem.callbacks) - set(self.callbacks):
            warnings.warn(f"Solver '{problem.method or DEFAULT}' does not support callbacks {ignored}", stacklevel=4)


def _adaptive(solver: Callable[[], Solver]) -> Method:
    return Method(lambda problem: solver(), _ADAPTIVE, True, CALLBACKS)


def _fixed(solver: Callable[[], Solver]) -> Method:
    return Method(lambda problem: solver(), _FIXED, False, CALLBACKS[:1])


def _adams(implicit: bool, max_order: int) -> Method:
    def make(problem: Problem) -> Solver:
        options = problem.options
        tolerances = (torch.as_tensor(x).max().item() for x in (problem.rtol, problem.atol))
        order, iters = options.get("max_order", max_order), options.get("max_iters", 4)
        return Adams(implicit, int(order), int(iters), *tolerances)

    return Method(make, (*_FIXED, "max_order", "max_iters"), False, CALLBACKS[:1])


METHODS: dict[str, Method] = {
    "dopri8": _adaptive(Dopri8),
    "dopri5": _adaptive(LooseDopri5),
    "tsit5": _adaptive(Tsit5),
    "bosh3": _adaptive(Bosh3),
    "fehlberg2": _adaptive(Fehlberg2),
    "adaptive_heun": _adaptive(Heun),
    "euler": _fixed(Euler),
    "midpoint": _fixed(Midpoint),
    "heun2": _fixed(Heun),
    "heun3": _fixed(Heun3),
    "rk4": _fixed(ThreeEighths),
    "explicit_adams": _adams(implicit=False, max_order=5),
    "implicit_adams": _adams(implicit=True, max_order=12),
    "fixed_adams": _adams(implicit=True, max_order=12),
    "implicit_euler": _fixed(ImplicitEuler),
    "implicit_midpoint": _fixed(ImplicitMidpoint),
    "trapezoid": _fixed(Trapezoidal),
    "radauIIA3": _fixed(RadauIIA3),
    "gl4": _fixed(GaussLegendre4),
    "radauIIA5": _fixed(RadauIIA5),
    "gl6": _fixed(GaussLegendre6),
    "sdirk2": _fixed(SDIRK2),
    "trbdf2": _fixed(TRBDF2),
    "kvaerno3": _adaptive(Kvaerno3),
    "kvaerno4": _adaptive(Kvaerno4),
    "kvaerno5": _adaptive(Kvaerno5),
    "adaptive_gl4": _adaptive(GaussLegendre4),
    "adaptive_gl6": _adaptive(GaussLegendre6),
    "scipy_solver": Method(None, ("solver", "min_step", "max_step", "grid_points", "eps"), True, ()),
}


def method_of(problem: Problem) -> Method:
    """The method that a problem names (``dopri5`` by default).

    Raises:
        ValueError: no method of torchdiffeq.
    """
    name = DEFAULT if problem.method is None else problem.method
    if name not in METHODS:
        names = '", "'.join(METHODS)
        raise ValueError(f'Invalid method "{name}". Must be one of {{"{names}"}}.')
    return METHODS[name]


def adaptive_controller(problem: Problem) -> Controller:
    """torchdiffeq's step size control, from its options."""
    options = problem.options
    min_step, max_step = (_number(options.get(k)) for k in ("min_step", "max_step"))
    norm = None
    if problem.start.is_tuple or "norm" in options:
        norm = problem.norm()
    control = PID(
        problem.rtol,
        problem.atol,
        safety=_number(options.get("safety", 0.9)),
        factor_min=_number(options.get("dfactor", 0.2)),
        factor_max=_number(options.get("ifactor", 10.0)),
        dtmin=min_step or None,
        dtmax=None if max_step is None or np.isinf(max_step) else max_step,
        force_dtmin=bool(min_step),
    )
    steps, jumps = (_listed(options.get(k)) for k in ("step_t", "jump_t"))
    if len(np.unique(np.concatenate([steps, jumps]))) < len(steps) + len(jumps):
        raise ValueError("`step_t` and `jump_t` must not have any repeated elements between them.")
    measured = control if norm is None else Measured(control, norm)
    return Clip(measured, steps, jumps) if len(steps) or len(jumps) else measured


def fixed_solver(problem: Problem, method: Method) -> Solver:
    """The solver of a fixed grid, with the dense output and the nudge that the options ask for.

    Raises:
        ValueError: an unknown interpolation.
    """
    assert method.solver is not None
    solver = method.solver(problem)
    interp = problem.options.get("interp", "linear")
    if problem.options.get("perturb", False):
        solver = Nudged(solver, problem.direction)
    if interp == "cubic" or isinstance(solver, Adams):
        return solver
    if interp != "linear":
        raise ValueError(f"Unknown interpolation method {interp}")
    return Chord(solver)


def fixed_grid(problem: Problem) -> Controller:
    """The grid of a fixed-grid method: the user's, equal steps, or the times themselves.

    Raises:
        ValueError: both ``step_size`` and ``grid_constructor`` are given.
    """
    t, options = problem.t.detach(), problem.options
    size, construct = options.get("step_size"), options.get("grid_constructor")
    if size is not None and construct is not None:
        raise ValueError("step_size and grid_constructor are mutually exclusive arguments.")
    if construct is not None:
        grid = construct(problem.func, problem.start.y0, t)
        assert grid[0] == t[0] and grid[-1] == t[-1], (
            "the grid must begin at the first and end at the last of the times"
        )
        return Grid(grid)
    if size is None:
        return Grid(t)
    first, last, size = float(t[0]), float(t[-1]), abs(_number(size))
    # A sliver of a step that only rounding would leave is none.
    count = max(1, int(np.ceil(abs(last - first) / size * (1 - 1e-6))))
    grid = first + problem.direction * size * np.arange(count + 1)
    grid[-1] = last
    return Grid(grid)


def _number(x: Any) -> Any:
    return float(x) if isinstance(x, Tensor) else x


def _listed(x: Any) -> np.ndarray:
    if x is None:
        return np.zeros(0)
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
