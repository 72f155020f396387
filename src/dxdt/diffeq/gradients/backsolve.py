"""The continuous adjoint: solve the equation and its sensitivities backwards in time.

    da/dt = - (df/dy)^T a,      dL/dtheta = int a^T df/dtheta dt       (L. S. Pontryagin et al., 1962)

Memory does not grow with the number of steps, and the gradient is that of the equation, not of its
discretisation: it converges to the exact one with the tolerance, and differs from automatic
differentiation through the steps by the truncation error. Unstable where the backward equation is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller, Grid
from dxdt.diffeq.control.revisit import Revisit
from dxdt.diffeq.gradients.adjoint_rows import AdjointRows
from dxdt.diffeq.gradients.adjoint_sweep import EagerSweep, Sweep, Way, adjoint_of
from dxdt.diffeq.gradients.closure_tensors import captured
from dxdt.diffeq.gradients.conditions import Conditions
from dxdt.diffeq.gradients.gradient import Compiled, Direct, Gradient, Inputs, Loop, Outcome, Problem
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.methods.stochastic import StochasticHeun, StochasticMidpoint
from dxdt.diffeq.problem.status import Status
from dxdt.ops.times import Ticks
from dxdt.paths.increments import BoundIncrements

__all__ = ["Backsolve", "Task", "args_of"]

_BACK = (StochasticHeun, StochasticMidpoint)


@final
@dataclass(frozen=True)
class Backsolve(Gradient):
    """Solve the adjoint equation backwards; O(1) memory, not exact for the discretisation.

    The state is set to the stored value at every save time. The parameter integral is part of the
    backward state, as in R. Chen et al., "Neural ordinary differential equations", NeurIPS 2018;
    with ``seminorm`` the error control does not see it, because nothing depends on it (P. Kidger,
    R. Chen, T. Lyons, "'Hey, that's not an ODE': faster ODE adjoints via seminorms", ICML 2021).
    Samples with clocks of their own share no such state: there the integral is a Gauss quadrature
    over the accepted steps, and never in the error control. With noise the adjoint is solved in
    Stratonovich calculus (an Ito equation is converted) along the same path, and the integral is a
    trapezoid rule over the steps; adaptive steps revisit rejected ends (see ``Revisit``).

    Args:
        solver: method of the backward solve (default: that of the forward solve; with noise
            ``StochasticMidpoint`` where the forward solve took it, else ``StochasticHeun``).
        controller: its step sizes (default: those of the forward solve).
        seminorm: leave the parameter integral out of the error control.
        max_steps: attempted steps between two save times.
        counts: a ``collections.Counter`` to which the backward solves add their ``evaluations``.

    Raises:
        ValueError: with events or dense output, with a grid and no controller, or along a random path of
            Increments.
    """

    continuous: ClassVar[bool] = True

    solver: Solver | None = None
    controller: Controller | None = None
    seminorm: bool = True
    max_steps: int = 1 << 20
    counts: Counter[str] | None = field(default=None, compare=False, repr=False)

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        if torch.is_grad_enabled():
            self.check(plan, inputs, recorder)
            captured(plan, inputs)
        solved = lambda: Direct().run(loop, plan, inputs.constant(), dt, recorder)  # noqa: E731
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs.tensors())):
            with torch.no_grad():
                return solved()
        way = self.way(plan)

        def back(given: Inputs, shared: list[Tensor]) -> Sweep:
            again = given.plan(plan)
            return EagerSweep.of(way, loop, adjoint_of(again, shared, way.seminorm), again, dt)

        return Task(self, plan, inputs, recorder, solved, back).outcome()

    def compiled(self, ways: Compiled, problem: Problem) -> Outcome:
        return ways.adjoint(self, problem)

    def check(self, plan: Plan, inputs: Inputs, recorder: Recorder) -> None:
        """Raise ValueError for a solve that cannot be differentiated by this rule."""
        remedy = "use gradient=dxdt.Checkpointed(slots=...) for bounded memory"
        if plan.watch is not None:
            raise ValueError(f"Backsolve does not differentiate through events: {remedy}")
        if recorder.dense:
            raise ValueError(f"Backsolve does not differentiate dense output: save at times, or {remedy}")
        if plan.solver.facts.semilinear and self.solver is None:
            raise ValueError(
                f"Backsolve solves an adjoint that {type(plan.solver).__name__} does not know: "
                f"give Backsolve(solver=dxdt.Tsit5()), or {remedy}"
            )
        if plan.equation.noise is not None:
            self._check_noise(plan, inputs, remedy)
        if self.controller is None and isinstance(plan.controller, Grid):
            raise ValueError(
                "Backsolve has no steps for its backward solve: give Backsolve(controller=...) with a grid of steps"
            )

    def _check_noise(self, plan: Plan, inputs: Inputs, remedy: str) -> None:
        path = plan.equation.noise
        while hasattr(path, "inner"):
            path = path.inner
        if isinstance(path, BoundIncrements):
            raise ValueError(
                "Backsolve asks for the path on other steps than the forward solve, which Increments does not give: "
                f"give driver=dxdt.Brownian(seed), or {remedy}"
            )
        if inputs.ends is not None or inputs.moments is not None:
            raise ValueError(f"a random path has no derivative in time: give times that require none, or {remedy}")
        if self.solver is not None and not isinstance(self.solver, _BACK):
            raise ValueError(
                f"Backsolve follows a random path by dxdt.StochasticHeun() or dxdt.StochasticMidpoint(), "
                f"not by {type(self.solver).__name__}: give Backsolve(solver=...) one of them"
            )

    def way(self, plan: Plan) -> Way:
        """How the backward solve of a solve is made; the noise of an adjoint does not commute."""
        solver, controller = self.solver or plan.solver, self.controller or plan.controller
        if plan.equation.noise is not None:
            solver = solver if isinstance(solver, _BACK) else StochasticHeun()
            if controller.adaptive and not isinstance(controller, Revisit):
                controller = Revisit(controller)
        return Way(solver, controller, self.seminorm, self.max_steps)


@dataclass(eq=False)
class Task:
    """A solve and its way back.

    Attributes:
        solved: makes the solve.
        sweep: the backward solve for inputs and the tensors whose gradients are wanted.
    """

    rule: Backsolve
    plan: Plan
    inputs: Inputs
    recorder: Recorder
    solved: Callable[[], Outcome]
    sweep: Callable[[Inputs, list[Tensor]], Sweep]
    carry: Carry | None = None
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        self.conditions = Conditions.of(self.plan, self.inputs)

    def outcome(self) -> Outcome:
        """The solve, differentiable by this task."""
        y, values = _Function.apply(self, *self.inputs.tensors())
        assert self.carry is not None
        return Outcome(y, values, None, None, None, None, self.carry)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        outcome = self.solved()
        self.carry = outcome.carry._replace(y=outcome.y.detach(), park=None)
        self.conditions.settle()
        return outcome.y, outcome.values

    def pull(self, inputs: Inputs, values: Tensor | None, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the outputs."""
        assert self.carry is not None
        sweep = self.sweep(inputs, [x for x in (*args_of(inputs), *inputs.params) if x.requires_grad])
        gy, gvalues = given
        values = None if values is None else values.detach()
        y = self.carry.y
        gy = torch.zeros_like(y) if gy is None else torch.where(torch.isfinite(y), gy, 0.0)
        levels = _levels(self.recorder, self.plan)
        now, t0 = np.atleast_1d(np.array(self.carry.t)), np.atleast_1d(self.plan.span.t0)
        t0 = np.broadcast_to(t0, now.shape).copy()
        lost = np.atleast_1d(self.carry.status) == Status.NOT_FINITE.code
        if lost.any():
            # Where such a row ended there is no way back: it stands still where it began.
            now = np.where(lost, t0, now)
            still = torch.from_numpy(lost).to(y.device)[:, None]
            y, gy = torch.where(still, inputs.y.detach(), y), torch.where(still, 0.0, gy)
            levels = [tuple(x[~lost[row]] for x in (number, row, t)) for number, row, t in levels]
        ends = None if inputs.ends is None else _along(sweep.adjoint, now, y, gy)
        gmoments = None if inputs.moments is None else torch.zeros_like(inputs.moments)
        sweep.begin(y, gy)
        for number, row, t in reversed(levels):
            goal = now.copy()
            goal[row] = t
            sweep.back(now, goal)
            now = goal
            if values is None or gvalues is None:
                continue
            sweep.reseed(number, row, values, gvalues)
            if gmoments is not None:
                self._moment_gradients(gmoments, sweep.adjoint, now, number, row, values, gvalues)
        sweep.back(now, t0)
        ga, totals = sweep.end()
        if self.rule.counts is not None:
            self.rule.counts["evaluations"] += sweep.evaluations
        out: list[Tensor | None] = [ga]
        if inputs.ends is not None:
            out += [-_along(sweep.adjoint, t0, inputs.y.detach(), ga), ends]
        if inputs.moments is not None:
            out.append(gmoments)
        rest = iter(totals)
        return out + [next(rest) if x.requires_grad else None for x in (*args_of(inputs), *inputs.params)]

    def _moment_gradients(
        self,
        out: Tensor,
        adjoint: AdjointRows,
        now: np.ndarray,
        number: np.ndarray,
        row: np.ndarray,
        values: Tensor,
        cots: Tensor,
    ) -> None:
        """Save times: a value moves with its own time along the field."""
        index = torch.as_tensor(np.concatenate(self.recorder.index)[number], device=out.device)
        wanted, rows = (torch.as_tensor(x, device=out.device) for x in (number, row))
        y, cot = (values.new_zeros(len(now), values.shape[-1]).index_put((rows,), x[wanted]) for x in (values, cots))
        column = rows if out.shape[1] > 1 else torch.zeros_like(rows)
        out.index_put_((index, column), _along(adjoint, now, y, cot)[rows], accumulate=True)


def _along(adjoint: AdjointRows, t: np.ndarray, y: Tensor, cot: Tensor) -> Tensor:
    """What cotangents say of the field, ``(R,)``."""
    return (cot * adjoint.slope(t, y)).sum(-1).to(torch.float64)


def args_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors among the arguments."""
    ends = 0 if inputs.ends is None else 2
    skip = 1 + ends + (inputs.moments is not None)
    tensors = inputs.tensors()
    return tensors[skip : len(tensors) - len(inputs.params)]


def _levels(recorder: Recorder, plan: Plan) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Requests in layers: layer k holds the k-th request of each row, as (number, row, time)."""
    if not recorder.row:
        return []
    row, t = np.concatenate(recorder.row), np.concatenate(recorder.t)
    number = np.arange(len(row))
    rank = np.zeros(len(row), dtype=np.int64)
    seen = np.zeros(plan.equation.layout.rows, dtype=np.int64)
    for i, r in enumerate(row):
        rank[i] = seen[r]
        seen[r] += 1
    return [(number[rank == k], row[rank == k], t[rank == k]) for k in range(int(seen.max()))]


class _Function(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: Task, *tensors: Tensor) -> Any:
        ctx.task = task
        y, values = task.forward()
        ctx.save_for_backward(*tensors, *(() if values is None else (values,)))
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        return y, values

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        task: Task = ctx.task
        params = len(task.inputs.params)
        with task.conditions.held(), torch.no_grad():
            saved = ctx.saved_tensors
            tensors, values = saved[: ctx.count], saved[ctx.count] if len(saved) > ctx.count else None
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in tensors[: len(tensors) - params]]
            inputs = task.inputs.rebuilt([*leaves, *tensors[len(tensors) - params :]])
            pulled = task.pull(inputs, values, given)
        if torch.is_grad_enabled():
            pulled = [None if p is None else _Once.apply(p, *tensors, *given) for p in pulled]
        return (None, *pulled)


class _Once(torch.autograd.Function):
    """A first derivative that says so when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *of: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        raise RuntimeError(
            "Backsolve has no second derivatives: use gradient=dxdt.Checkpointed() or dxdt.Direct(), "
            "which differentiate the steps and can be differentiated again"
        )
