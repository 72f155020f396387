"""The continuous adjoint: solve the equation and its sensitivities backwards in time.

    da/dt = - (df/dy)^T a,      dL/dtheta = int a^T df/dtheta dt       (L. S. Pontryagin et al., 1962)

Memory does not grow with the number of steps, and the gradient is that of the equation, not of its
discretisation: it converges to the exact one with the tolerance, and differs from automatic
differentiation through the steps by the truncation error. Unstable where the backward equation is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import HOST, SINGLE, Ticks
from dxdt.paths.increments import BoundIncrements
from dxdt.solve.adjoint_rows import AdjointRows, NoisyAdjointRows
from dxdt.solve.captured import captured
from dxdt.solve.controller import Constant, Controller, Grid, Span
from dxdt.solve.gradient import Direct, Gradient, Inputs, Loop, Outcome
from dxdt.solve.plan import After, Attempt, Carry, Plan
from dxdt.solve.record import Recorder
from dxdt.solve.revisit import Revisit
from dxdt.solve.solution import Status
from dxdt.solve.solver import Solver
from dxdt.solve.start import begin
from dxdt.solve.stochastic import StochasticHeun, StochasticMidpoint

__all__ = ["Backsolve"]

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

    solver: Solver | None = None
    controller: Controller | None = None
    seminorm: bool = True
    max_steps: int = 1 << 20
    counts: Counter[str] | None = field(default=None, compare=False, repr=False)

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        if torch.is_grad_enabled():
            self._check(plan, inputs, recorder)
            captured(plan, inputs)
        tensors = inputs.tensors()
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            with torch.no_grad():
                return Direct().run(loop, plan, inputs, dt, recorder)
        task = _Task(self, loop, plan, inputs, dt, recorder)
        y, values = _Function.apply(task, *tensors)
        assert task.carry is not None
        return Outcome(y, values, None, None, None, None, task.carry)

    def _check(self, plan: Plan, inputs: Inputs, recorder: Recorder) -> None:
        remedy = "use gradient=dxdt.Checkpointed(slots=...) for bounded memory"
        if plan.watch is not None:
            raise ValueError(f"Backsolve does not differentiate through events: {remedy}")
        if recorder.dense:
            raise ValueError(f"Backsolve does not differentiate dense output: save at times, or {remedy}")
        if plan.solver.semilinear and self.solver is None:
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

    def steps(self, plan: Plan) -> Controller:
        """Controller of the backward solve; the noise of an adjoint does not commute."""
        controller = self.controller or plan.controller
        if plan.equation.noise is None or not controller.adaptive or isinstance(controller, Revisit):
            return controller
        return Revisit(controller)

    def back(self, plan: Plan) -> Solver:
        """Method of the backward solve."""
        if self.solver is not None:
            return self.solver
        return plan.solver if plan.equation.noise is None or isinstance(plan.solver, _BACK) else StochasticHeun()


@dataclass(eq=False)
class _Task:
    rule: Backsolve
    loop: Loop
    plan: Plan
    inputs: Inputs
    dt: Ticks | None
    recorder: Recorder
    carry: Carry | None = None

    def forward(self) -> tuple[Tensor, Tensor | None]:
        outcome = Direct().run(self.loop, self.plan, self.inputs, self.dt, self.recorder)
        self.carry = outcome.carry._replace(y=outcome.y.detach(), park=None)
        return outcome.y, outcome.values

    def first_step(self) -> Any:
        """Length of the first step back along a random path: the user's, or a hundredth of the span."""
        span = np.abs(self.plan.span.t1 - self.plan.span.t0)
        return 0.01 * span if self.dt is None else np.abs(self.dt) + 0 * span

    def pull(self, inputs: Inputs, values: Tensor | None, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        assert self.carry is not None
        shared = [x for x in (*_args(inputs), *inputs.params) if x.requires_grad]
        equation = inputs.plan(self.plan).equation
        kind = AdjointRows if equation.noise is None else NoisyAdjointRows
        adjoint = kind(equation, shared, self.rule.seminorm)
        sweep = _Sweep(self, adjoint, self.plan)
        gy, gvalues = given
        y = self.carry.y
        gy = torch.zeros_like(y) if gy is None else torch.where(torch.isfinite(y), gy, 0.0)
        levels = _levels(self.recorder, self.plan)
        now = np.atleast_1d(np.array(self.carry.t))
        lost = np.atleast_1d(self.carry.status) == Status.NOT_FINITE.code
        if lost.any():
            # Where such a row ended there is no way back: it stands still where it began.
            now = np.where(lost, np.broadcast_to(np.atleast_1d(self.plan.span.t0), now.shape), now)
            still = torch.from_numpy(lost).to(y.device)[:, None]
            y, gy = torch.where(still, inputs.y.detach(), y), torch.where(still, 0.0, gy)
            levels = [tuple(x[~lost[row]] for x in (number, row, t)) for number, row, t in levels]
        ends = self._end_gradients(inputs, adjoint, now, y, gy) if inputs.ends is not None else None
        gmoments = None if inputs.moments is None else torch.zeros_like(inputs.moments)
        state = adjoint.start(y, gy)
        for number, row, t in reversed(levels):
            goal = now.copy()
            goal[row] = t
            state = sweep.back(state, now, goal)
            now = goal
            if values is None or gvalues is None:
                continue
            rows, wanted = (
                torch.as_tensor(row, device=y.device),
                torch.as_tensor(number, device=y.device),
            )
            cot = gvalues[wanted]
            state = adjoint.reseed(state, rows, values[wanted], cot)
            if gmoments is not None:
                self._moment_gradients(gmoments, adjoint, now, number, row, values[wanted], cot)
        state = sweep.back(state, now, np.broadcast_to(np.atleast_1d(self.plan.span.t0), now.shape).copy())
        if self.rule.counts is not None:
            self.rule.counts["evaluations"] += adjoint.meter.evaluations
        ga = adjoint.adjoint(state)
        totals = iter(adjoint.totals(state))
        out: list[Tensor | None] = [ga]
        if inputs.ends is not None:
            assert ends is not None
            start = adjoint.slope(np.broadcast_to(np.atleast_1d(self.plan.span.t0), now.shape), inputs.y.detach())
            out += [-(ga * start).sum(-1).to(torch.float64), ends]
        if inputs.moments is not None:
            out.append(gmoments)
        return out + [next(totals) if x.requires_grad else None for x in (*_args(inputs), *inputs.params)]

    def _end_gradients(self, inputs: Inputs, adjoint: AdjointRows, t: np.ndarray, y: Tensor, gy: Tensor) -> Tensor:
        return (gy * adjoint.slope(t, y)).sum(-1).to(torch.float64)

    def _moment_gradients(
        self,
        out: Tensor,
        adjoint: AdjointRows,
        now: np.ndarray,
        number: np.ndarray,
        row: np.ndarray,
        y: Tensor,
        cot: Tensor,
    ) -> None:
        index = np.concatenate(self.recorder.index)[number]
        full = torch.zeros(len(now), y.shape[-1], dtype=y.dtype, device=y.device)
        rows = torch.as_tensor(row, device=y.device)
        slope = adjoint.slope(now, full.index_put((rows,), y))[rows]
        column = rows if out.shape[1] > 1 else torch.zeros_like(rows)
        where = torch.as_tensor(index, device=y.device), column
        out.index_put_(where, (cot * slope).sum(-1).to(torch.float64), accumulate=True)


def _args(inputs: Inputs) -> tuple[Tensor, ...]:
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


@dataclass(eq=False)
class _Sweep:
    """The backward solve, segment by segment."""

    task: _Task
    adjoint: AdjointRows
    plan: Plan
    dt: Any = None

    def back(self, state: Tensor, now: np.ndarray, goal: np.ndarray) -> Tensor:
        """Rows at ``goal``, solved backwards from ``now``."""
        if (now == goal).all():
            return state
        rule, plan, adjoint = self.task.rule, self.plan, self.adjoint
        joint = not adjoint.layout.per_sample
        span = Span(SINGLE, now[0], goal[0]) if joint else Span(HOST, now, goal)
        controller, solver = rule.steps(plan), rule.back(plan)
        integrates = bool(adjoint.shared) and not adjoint.full
        back = Plan(
            adjoint,  # pyright: ignore[reportArgumentType]
            solver,
            controller,
            span,
            adjoint.scale(controller),
            integrates,
            rule.max_steps,
        )
        if self.dt is None and plan.equation.noise is not None and controller.adaptive:
            self.dt = self.task.first_step()
        dt = self.task.dt if isinstance(controller, Constant) else self.dt

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            if integrates and attempt.ok.any():
                adjoint.accumulate(attempt, solver.dense(attempt.step, attempt.at.dt, attempt.at.y))
            if controller.adaptive:
                self.dt = np.abs(carry.dt)

        carry = self.task.loop(back, begin(back, state, dt), observe)
        self.dt = None if self.dt is None else np.where(np.abs(self.dt) > 0, self.dt, 1e-6) if not joint else self.dt
        return carry.y


class _Function(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Tensor) -> Any:
        ctx.task = task
        y, values = task.forward()
        ctx.save_for_backward(*tensors, *(() if values is None else (values,)))
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        return y, values

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        task: _Task = ctx.task
        saved = ctx.saved_tensors
        tensors, values = (
            saved[: ctx.count],
            (saved[ctx.count] if len(saved) > ctx.count else None),
        )
        params = len(task.inputs.params)
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tensors[: len(tensors) - params]]
        inputs = task.inputs.rebuilt([*leaves, *tensors[len(tensors) - params :]])
        with torch.no_grad():
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
