"""One step of a method: what a solver is.

A solver is a frozen value with two pure functions on rows, ``init`` and ``step``; what it claims
about itself (orders, calculus, needs) is one record, ``facts``, which the front door checks against
the equation and which the tests and the documentation tables are generated from.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.problem.equation import Equation, Rows, StochasticEquation
from dxdt.diffeq.problem.noise import Noise
from dxdt.ops.times import Ticks
from dxdt.ops.tree import Layout

__all__ = ["Phase", "Solver", "State", "Step", "hermite"]

State = tuple[Tensor, ...]
"""What a solver carries from step to step: tensors whose first axis is the row."""


class Step(NamedTuple):
    """One attempted step.

    Attributes:
        y: proposal at t + dt, ``(R, n)``.
        error: local error estimate, ``(R, n)``, or None.
        state: solver state if the step is accepted.
        data: what ``Solver.dense`` needs (stages).
    """

    y: Tensor
    error: Tensor | None
    state: State
    data: tuple[Tensor, ...]


class Phase(NamedTuple):
    """A part of a compiled solve.

    Attributes:
        solver: takes its steps, on the state of the solver whose phase it is.
        until: accepted steps of a row at its end, or None for the last.
    """

    solver: Solver
    until: int | None


_FACTS = {f.name for f in fields(Facts)}
# Facts that had other names in version 0.1, where each was an attribute of the solver.
_TODAY = {"noisy": "noise", "foresees": "prepares", "remembers": "stateful"}


def _tell(sentence: str) -> None:
    warnings.warn(f"{sentence}; the old way will go", DeprecationWarning, stacklevel=3)


class Solver(ABC):
    """A one-step map (t, y) -> (t + dt, y').

    Attributes:
        facts: what it claims about itself. A class attribute where all its solvers claim the same; set by
            ``__post_init__`` (with ``claim``) where the claims follow from its options or from what it wraps.
    """

    facts: Facts

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        options = {k for k, v in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(v)}
        claims = {_TODAY.get(k, k): v for k, v in vars(cls).items() if k not in options and _TODAY.get(k, k) in _FACTS}
        if claims and "facts" not in vars(cls):
            _tell(f"{cls.__name__} states {', '.join(claims)} on the class: write facts = Facts(...)")
            cls.facts = Facts(**cast(Any, {"order": 0, "stages": 1, **claims}))

    def __getattr__(self, name: str) -> Any:
        fact = _TODAY.get(name, name)
        if fact in _FACTS:
            _tell(f"{type(self).__name__}().{name} is facts.{fact} now")
            return getattr(self.facts, fact)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def claim(self, facts: Facts) -> None:
        """State the facts of a frozen solver that depend on its options."""
        object.__setattr__(self, "facts", facts)

    def check(self, equation: Equation) -> None:  # noqa: B027
        """Raise TypeError or ValueError if this method cannot solve an equation of this form."""

    def bind(self, driver: Any, equation: StochasticEquation, t0: np.ndarray, t1: np.ndarray, layout: Layout) -> Any:
        """The driver with the shape of one solve, on the clock of this method: here, time."""
        return driver.bind(t0, t1, layout.rows, equation.noise_size(layout), layout.dtype, layout.device)

    @abstractmethod
    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        """The state before the first step; ``dense`` asks for steps that can be interpolated."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """How its steps are taken where no row accepts less than another and no state is renewed, if not all alike."""
        return ()

    def slope(self, state: State) -> Tensor | None:
        """f(t, y) where the state holds it: it saves the starting rule an evaluation."""
        return None

    def opening(self, state: State) -> int:
        """Evaluations of the drift that formed the state before the first step."""
        return int(self.slope(state) is not None)

    def cost(self, state: State) -> int:
        """Evaluations of the drift in one step from such a state."""
        return self.facts.stages

    def estimate(self, noise: Noise | None) -> float | None:
        """Power of dt in the local error estimate on an equation with this noise, or without."""
        if noise is None or self.facts.noise is None:
            return self.facts.error_order
        return self.facts.noise.error_order(noise)

    @abstractmethod
    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        """One attempted step; ``index`` counts the accepted steps before it."""

    @abstractmethod
    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        """Coefficients c of y(t + theta dt) = y + sum_j c[j] theta^(j+1), shape ``(degree, R, n)``."""


def hermite(y0: Tensor, y1: Tensor, f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of theta, theta^2, theta^3 of the cubic with given ends; f are slopes in theta."""
    rise = y1 - y0
    return f0, 3 * rise - 2 * f0 - f1, f0 + f1 - 2 * rise
