"""The exported solvers, found and selected by what they claim about themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import dxdt
from dxdt.diffeq.methods.solver import Solver, Step
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import SINGLE
from dxdt.ops.tree import Layout

__all__ = [
    "EXPLICIT",
    "IMPLICIT",
    "ORDINARY",
    "PAIRS",
    "SOLVERS",
    "chosen",
    "crossed",
    "every",
    "identify",
    "one_step",
    "slope",
    "steps_of",
    "steps_of_order",
]


def _ready(name: str) -> Solver | None:
    """An exported solver with its defaults, or None for other names and for bases."""
    value = getattr(dxdt, name)
    if not (inspect.isclass(value) and issubclass(value, Solver)) or inspect.isabstract(value):
        return None
    required = [
        p
        for p in inspect.signature(value).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    solver = None if required else value()
    return solver if hasattr(solver, "facts") else None


SOLVERS = tuple(s for name in sorted(dxdt.__all__) if (s := _ready(name)) is not None)
"""Every exported solver that needs no argument."""

EXPLICIT = tuple(
    s
    for s in SOLVERS
    if not s.facts.stochastic and not s.facts.implicit and not s.facts.separable and not s.facts.semilinear
)
"""Those that solve any ordinary differential equation explicitly."""

IMPLICIT = tuple(s for s in SOLVERS if s.facts.implicit)
"""Those whose stages are given by equations."""

ORDINARY = EXPLICIT + IMPLICIT
"""Those that solve any ordinary differential equation."""

PAIRS = tuple(s for s in ORDINARY if s.facts.error_order is not None and not s.facts.known_grid)
"""Those that can choose their steps."""


def chosen(solvers: Sequence[Solver]) -> list[Any]:
    """Solvers for a law: all explicit ones, of the implicit ones, whose steps take longest, one of each kind; the
    others are slow."""
    quick = {"Kvaerno3", "RadauIIA3", "Rodas5P"}
    marks = [pytest.mark.slow]
    return [
        pytest.param(s, id=identify(s), marks=marks if s.facts.implicit and identify(s) not in quick else [])
        for s in solvers
    ]


def crossed(solvers: Sequence[Solver], cases: Sequence[Any], core: Any) -> list[Any]:
    """Pairs for a law: every solver on one case, one solver of each kind on every case; the other pairs are slow.

    Implicit solvers are those of ``chosen``, on one case.
    """
    kinds: dict[Any, Solver] = {}
    for s in (s for s in solvers if not s.facts.implicit):
        kinds.setdefault((type(s).__bases__, s.facts.error_order is None, s.facts.order > 4), s)
    first, found = set(map(id, kinds.values())), []
    for s, param in zip(solvers, chosen(solvers), strict=True):
        for c in cases:
            marks = param.marks if c is core or id(s) in first else (pytest.mark.slow,)
            found.append(pytest.param(s, c, id=f"{identify(s)}-{_name(c)}", marks=marks))
    return found


def every(solvers: Sequence[Solver], cases: Sequence[Any], core: Any) -> list[Any]:
    """Pairs for a law: all explicit solvers on every case, those implicit ones that are ``chosen`` on one; the others
    are slow."""
    found = []
    for s, param in zip(solvers, chosen(solvers), strict=True):
        for c in cases:
            marks = (pytest.mark.slow,) if s.facts.implicit and c != core else param.marks
            found.append(pytest.param(s, c, id=f"{identify(s)}-{_name(c)}", marks=marks))
    return found


def _name(case: Any) -> str:
    return "-".join(map(identify, case)) if isinstance(case, tuple) else identify(case)


def identify(value: Any) -> str:
    """A test id for solvers and problems."""
    return type(value).__name__ if isinstance(value, Solver) else repr(value)


def one_step(solver: Solver, field: Callable[..., Any], t: float, dt: float, y: Tensor) -> tuple[Step, Tensor]:
    """One joint step from exact data and the coefficients of its dense output."""
    layout = Layout.of(y, per_sample=False)
    rows = Rows(dxdt.ODE(field), layout)
    start, length = np.float64(t), np.float64(dt)
    packed = layout.pack(y)
    state = solver.init(rows, start, packed, True)
    step = solver.step(rows, start, length, packed, state, SINGLE.count(start))
    return step, solver.dense(step, length, packed)


def steps_of(solver: Solver) -> tuple[int, ...]:
    """Numbers of steps over a span of about 2 that lead a method to the slope of its order."""
    if solver.facts.implicit:
        return (24, 36, 54) if solver.facts.order >= 4 else (12, 20, 32) if solver.facts.order >= 3 else (24, 40, 64)
    return steps_of_order(solver.facts.order)


def steps_of_order(order: float) -> tuple[int, ...]:
    """Numbers of steps that show an order."""
    counts = (6, 8, 11, 15, 20, 27, 36, 48, 64, 88, 120, 160, 200, 256)
    first = 0 if order >= 7 else 4 if order >= 6 else 8 if order >= 3 else 10
    return counts[first:]


def slope(sizes: Any, errors: Any, floor: float = 5e-14) -> float:
    """Exponent of errors ~ sizes^p by least squares over the last four errors above rounding."""
    sizes, errors = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    keep = errors > floor
    assert keep.sum() >= 2, f"errors at rounding: {errors}"
    sizes, errors = np.log(sizes[keep][-4:]), np.log(errors[keep][-4:])
    return float(np.polyfit(sizes, errors, 1)[0])
