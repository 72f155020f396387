"""One step of a method: what a solver is.

A solver is a frozen value with two pure functions on rows, ``init`` and ``step``; what it claims
about itself (orders, calculus, needs) is class data, which the front door checks against the
equation and which the tests and the documentation tables are generated from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.problem.equation import Equation, Rows
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


class Solver(ABC):
    """A one-step map (t, y) -> (t + dt, y').

    Class facts:
        order: deterministic order of convergence.
        error_order: power of dt in the local error estimate, or None without an estimate.
        dense_order: order of the dense output.
        stages: evaluations of the drift in one step.
        stochastic: whether it is made for equations with noise only.
        noisy: what it claims on equations with noise, None where it does not solve them.
        known_grid: whether the steps must be known before the solve (methods with history).
        semilinear: whether it asks for equations that show their affine part (``SemiLinear``).
        foresees: whether it makes something of a known grid before the first step.
        degree: degree of the dense output's polynomial.
        compiles: whether its steps can be compiled.
        implicit: whether its stages are given by equations.
        remembers: whether its state depends on the steps before, and is no function of (t, y).
    """

    order: ClassVar[float]
    error_order: ClassVar[float | None] = None
    dense_order: ClassVar[float]
    stages: ClassVar[int]
    stochastic: ClassVar[bool] = False
    noisy: ClassVar[Noisy | None] = None
    known_grid: ClassVar[bool] = False
    semilinear: ClassVar[bool] = False
    foresees: ClassVar[bool] = False
    degree: ClassVar[int] = 1
    compiles: ClassVar[bool] = False
    implicit: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    def check(self, equation: Equation) -> None:  # noqa: B027
        """Raise TypeError or ValueError if this method cannot solve an equation of this form."""

    def bind(self, driver: Any, equation: Equation, t0: np.ndarray, t1: np.ndarray, layout: Layout) -> Any:
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
        return self.stages

    def estimate(self, noise: Noise | None) -> float | None:
        """Power of dt in the local error estimate on an equation with this noise, or without."""
        if noise is None or self.noisy is None:
            return self.error_order
        return self.noisy.error_order(noise)

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
