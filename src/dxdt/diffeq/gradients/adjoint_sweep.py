"""The backward solve of ``Backsolve``, from one saved time to the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller, Grid, Span
from dxdt.diffeq.gradients.adjoint_rows import AdjointRows, NoisyAdjointRows
from dxdt.diffeq.gradients.gradient import Loop
from dxdt.diffeq.loop.plan import After, Attempt, Carry, Plan
from dxdt.diffeq.loop.start import begin
from dxdt.diffeq.loop.step import sided
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.status import Status
from dxdt.ops.times import HOST, SINGLE, Ticks

__all__ = ["EagerSweep", "Sweep", "Way", "adjoint_of", "arrived", "first_steps", "part_of"]


class Way(NamedTuple):
    """How the backward solve is made: the method, its steps, whether errors of the parameter integrals do not
    count, and the attempted steps between two save times."""

    solver: Solver
    controller: Controller
    seminorm: bool
    max_steps: int


class Sweep(Protocol):
    """The backward solve, interval by interval."""

    @property
    def adjoint(self) -> AdjointRows:
        """The equation that is solved."""
        ...

    def begin(self, y: Tensor, a: Tensor) -> None:
        """Stand at the end of the span."""
        ...

    def reseed(self, number: np.ndarray, rows: np.ndarray, values: Tensor, cots: Tensor) -> None:
        """Put stored states back and add the cotangents of saved values, those at the places ``number``."""
        ...

    def back(self, now: np.ndarray, goal: np.ndarray) -> None:
        """Go from ``now`` to ``goal``, ``(R,)`` each."""
        ...

    def end(self) -> tuple[Tensor, list[Tensor]]:
        """The adjoint where it stands, and the gradients of the shared tensors."""
        ...

    @property
    def evaluations(self) -> int:
        """Of the adjoint's right-hand side so far."""
        ...


@dataclass(eq=False)
class EagerSweep:
    """The backward solve by the eager loop.

    Attributes:
        dt: length of each row's next step, NaN where it is to be found.
    """

    way: Way
    loop: Loop
    plan: Plan
    adjoint: AdjointRows
    given: Ticks | None
    dt: np.ndarray
    state: Tensor = field(init=False)

    @classmethod
    def of(cls, way: Way, loop: Loop, adjoint: AdjointRows, plan: Plan, dt: Ticks | None) -> EagerSweep:
        """For the solve of a plan whose first step was ``dt``."""
        return cls(way, loop, plan, adjoint, dt, first_steps(plan, way, dt))

    @property
    def evaluations(self) -> int:
        return self.adjoint.meter.evaluations

    def begin(self, y: Tensor, a: Tensor) -> None:
        self.state = self.adjoint.start(y, a)

    def reseed(self, number: np.ndarray, rows: np.ndarray, values: Tensor, cots: Tensor) -> None:
        index, at = (torch.as_tensor(x, device=values.device) for x in (rows, number))
        self.state = self.adjoint.reseed(self.state, index, values[at], cots[at])

    def end(self) -> tuple[Tensor, list[Tensor]]:
        return self.adjoint.adjoint(self.state), self.adjoint.totals(self.state)

    def back(self, now: np.ndarray, goal: np.ndarray) -> None:
        if (now == goal).all():
            return
        adjoint, (solver, controller, _, max_steps) = self.adjoint, self.way
        joint = not adjoint.layout.per_sample
        table = part_of(controller, now, goal)
        span = Span(SINGLE, now[0], goal[0], table) if joint else Span(HOST, now, goal, table)
        back = Plan(
            adjoint,  # pyright: ignore[reportArgumentType]
            solver,
            controller,
            span,
            adjoint.scale(controller),
            adjoint.integrates,
            max_steps,
        )

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            if adjoint.integrates and attempt.ok.any():
                here: Any = sided(back, attempt.at.t, attempt.at.dt)
                here.accumulate(attempt, solver.dense(attempt.step, attempt.at.dt, attempt.at.y))
            # A row that has arrived idles, with steps of length zero, while others go on.
            self.dt = np.where(np.atleast_1d(carry.dt) != 0, np.abs(np.atleast_1d(carry.dt)), self.dt)

        carry = self.loop(back, begin(back, self.state, *self._step(joint)), observe)
        arrived(carry.status)
        self.state = carry.y

    def _step(self, joint: bool) -> tuple[Any, bool, bool]:
        """The first step, whether derivatives are kept, and whether some of it is to be found."""
        if not self.way.controller.adaptive:
            return self.given, False, False
        unknown = np.isnan(self.dt)
        return None if unknown.all() else self.dt[0] if joint else self.dt, False, bool(unknown.any())


def adjoint_of(plan: Plan, shared: list[Tensor], seminorm: bool) -> AdjointRows:
    """The adjoint of the equation of a solve."""
    kind = AdjointRows if plan.equation.noise is None else NoisyAdjointRows
    return kind(plan.equation, shared, seminorm)


def first_steps(plan: Plan, way: Way, dt: Ticks | None) -> np.ndarray:
    """Lengths of the first steps back, ``(R,)``; NaN where they are to be found.

    Along a random path the user's, or a hundredth of the span.
    """
    rows = plan.equation.layout.rows
    if plan.equation.noise is None or not way.controller.adaptive:
        return np.full(rows, np.nan)
    span = np.abs(np.atleast_1d(plan.span.t1) - np.atleast_1d(plan.span.t0))
    return np.broadcast_to(0.01 * span if dt is None else np.abs(dt), (rows,)).astype(np.float64)


def part_of(controller: Controller, now: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
    """The times of a grid from ``now`` to ``goal``, ``(N, R)``; None for other controllers.

    Rows that have fewer of them stand at their goal.
    """
    if not isinstance(controller, Grid):
        return None
    times = np.broadcast_to(controller.times, (len(controller.times), len(now)))
    sign = np.where(goal < now, -1.0, 1.0)
    inside = ((times - now) * sign > 0) & ((goal - times) * sign > 0)
    most = int(inside.sum(0).max())
    table = np.tile(goal, (most + 2, 1))
    table[0] = now
    for row in range(len(now)):
        found = times[inside[:, row], row]
        table[1 : 1 + len(found), row] = found
    return table


def arrived(status: Any) -> None:
    """Raise where rows did not reach the end of an interval: the gradient would be wrong.

    Raises:
        RuntimeError: there are such rows.
    """
    failed = np.atleast_1d(status) != Status.SUCCESS.code
    if failed.any():
        code = int(np.atleast_1d(status)[failed][0])
        why = next(s.value for s in Status if s.code == code)
        raise RuntimeError(
            f"the backward solve of Backsolve failed: {why}; give Backsolve(controller=...) other tolerances or "
            f"steps, more max_steps, or use gradient=dxdt.Checkpointed()"
        )
