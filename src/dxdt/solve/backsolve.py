"""The continuous adjoint: solve the equation and its sensitivities backwards in time.

    da/dt = - (df/dy)^T a,      dL/dtheta = int a^T df/dtheta dt       (L. S. Pontryagin et al., 1962)

Memory does not grow with the number of steps, and the gradient is that of the equation, not of its
discretisation: it converges to the exact one with the tolerance, and differs from automatic
differentiation through the steps by the truncation error. Unstable where the backward equation is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import HOST, SINGLE, START, Ticks, from_host, moments
from dxdt.ops.tree import Layout
from dxdt.solve.captured import captured
from dxdt.solve.controller import Constant, Controller, Grid, Scale, Span
from dxdt.solve.equation import Meter, Rows
from dxdt.solve.gradient import Direct, Gradient, Inputs, Loop, Outcome
from dxdt.solve.plan import After, Attempt, Carry, Plan
from dxdt.solve.record import Recorder
from dxdt.solve.save import polynomial
from dxdt.solve.solver import Solver
from dxdt.solve.start import begin

__all__ = ["Backsolve"]

# Gauss-Legendre nodes and weights on [0, 1] for the parameter integral over a step.
_NODES, _WEIGHTS = (
    0.5 * (np.polynomial.legendre.leggauss(4)[0] + 1),
    0.5 * np.polynomial.legendre.leggauss(4)[1],
)


@final
@dataclass(frozen=True)
class Backsolve(Gradient):
    """Solve the adjoint equation backwards; O(1) memory, not exact for the discretisation.

    The state is set to the stored value at every save time. The parameter integral is part of the
    backward state, as in R. Chen et al., "Neural ordinary differential equations", NeurIPS 2018;
    with ``seminorm`` the error control does not see it, because nothing depends on it (P. Kidger,
    R. Chen, T. Lyons, "'Hey, that's not an ODE': faster ODE adjoints via seminorms", ICML 2021).
    Samples with clocks of their own share no such state: there the integral is a Gauss quadrature
    over the accepted steps, and never in the error control.

    Args:
        solver: method of the backward solve (default: that of the forward solve).
        controller: its step sizes (default: those of the forward solve).
        seminorm: leave the parameter integral out of the error control.
        max_steps: attempted steps between two save times.
        counts: a ``collections.Counter`` to which the backward solves add their ``evaluations``.

    Raises:
        ValueError: with events, dense output or a random path, or with a grid and no controller.
    """

    solver: Solver | None = None
    controller: Controller | None = None
    seminorm: bool = True
    max_steps: int = 1 << 20
    counts: Counter[str] | None = field(default=None, compare=False, repr=False)

    def run(
        self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder
    ) -> Outcome:
        if torch.is_grad_enabled():
            self._check(plan, recorder)
            captured(plan, inputs)
        tensors = inputs.tensors()
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            with torch.no_grad():
                return Direct().run(loop, plan, inputs, dt, recorder)
        task = _Task(self, loop, plan, inputs, dt, recorder)
        y, values = _Function.apply(task, *tensors)
        assert task.carry is not None
        return Outcome(y, values, None, None, None, None, task.carry)

    def _check(self, plan: Plan, recorder: Recorder) -> None:
        remedy = "use gradient=dxdt.Checkpointed(slots=...) for bounded memory"
        if plan.watch is not None:
            raise ValueError(f"Backsolve does not differentiate through events: {remedy}")
        if recorder.dense:
            raise ValueError(
                f"Backsolve does not differentiate dense output: save at times, or {remedy}"
            )
        if plan.equation.noise is not None:
            raise ValueError(f"Backsolve does not reverse this random path: {remedy}")
        if self.controller is None and isinstance(plan.controller, Grid):
            raise ValueError(
                "Backsolve has no steps for its backward solve: give Backsolve(controller=...) with a grid of steps"
            )


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

    def pull(
        self, inputs: Inputs, values: Tensor | None, given: tuple[Tensor | None, ...]
    ) -> list[Tensor | None]:
        assert self.carry is not None
        shared = [x for x in (*_args(inputs), *inputs.params) if x.requires_grad]
        adjoint = _AdjointRows(inputs.plan(self.plan).equation, shared, self.rule.seminorm)
        sweep = _Sweep(self, adjoint, self.plan)
        gy, gvalues = given
        y = self.carry.y
        gy = torch.zeros_like(y) if gy is None else torch.where(torch.isfinite(y), gy, 0.0)
        levels = _levels(self.recorder, self.plan)
        now = np.atleast_1d(np.array(self.carry.t))
        ends = (
            self._end_gradients(inputs, adjoint, now, y, gy) if inputs.ends is not None else None
        )
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
        state = sweep.back(
            state, now, np.broadcast_to(np.atleast_1d(self.plan.span.t0), now.shape).copy()
        )
        if self.rule.counts is not None:
            self.rule.counts["evaluations"] += adjoint.meter.evaluations
        ga = adjoint.adjoint(state)
        totals = iter(adjoint.totals(state))
        out: list[Tensor | None] = [ga]
        if inputs.ends is not None:
            assert ends is not None
            start = adjoint.slope(
                np.broadcast_to(np.atleast_1d(self.plan.span.t0), now.shape), inputs.y.detach()
            )
            out += [-(ga * start).sum(-1).to(torch.float64), ends]
        if inputs.moments is not None:
            out.append(gmoments)
        return out + [
            next(totals) if x.requires_grad else None for x in (*_args(inputs), *inputs.params)
        ]

    def _end_gradients(
        self, inputs: Inputs, adjoint: _AdjointRows, t: np.ndarray, y: Tensor, gy: Tensor
    ) -> Tensor:
        return (gy * adjoint.slope(t, y)).sum(-1).to(torch.float64)

    def _moment_gradients(
        self,
        out: Tensor,
        adjoint: _AdjointRows,
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
class _AdjointRows:
    """State and adjoint as one equation on rows ``[y, a]``, or ``[y, a, parameter integral]``.

    Attributes:
        equation: the forward equation.
        shared: tensors whose gradients are integrals.
        seminorm: whether errors of the integrals do not count.
        full: whether the integrals are part of the state (where there is one clock).
    """

    equation: Rows
    shared: list[Tensor]
    seminorm: bool

    def __post_init__(self) -> None:
        layout = self.equation.layout
        self.full = layout.rows == 1
        self.meter = Meter(checked=True)
        self.noise = self.kind = None
        self.sizes = [x.numel() for x in self.shared] if self.full else []
        self.layout: Layout = replace(layout, size=2 * layout.size + sum(self.sizes))
        self.sums = [torch.zeros_like(x) for x in self.shared]

    def scale(self, controller: Controller) -> Scale | None:
        """How errors are measured: tolerances of the state hold for its adjoint too, and the least
        of them for the integrals where these count."""
        scale = controller.scale(self.equation.layout)
        if scale is None:
            return None
        n, extra = self.equation.layout.size, sum(self.sizes)
        atol, rtol = (
            torch.cat([x, x, x.min().expand(extra)]) if isinstance(x, Tensor) else x
            for x in (scale.atol, scale.rtol)
        )
        if not (self.seminorm and extra):
            return Scale(atol, rtol, scale.norm)
        return Scale(atol, rtol, lambda ratio: scale.norm(ratio[:, : 2 * n]))

    def start(self, y: Tensor, a: Tensor) -> Tensor:
        """Rows at the end of the span; rows that failed are zero."""
        y = torch.where(torch.isfinite(y), y, 0.0)
        return torch.cat([y, a, y.new_zeros(y.shape[0], sum(self.sizes))], -1)

    def reseed(self, state: Tensor, rows: Tensor, y: Tensor, cot: Tensor) -> Tensor:
        """The stored state put back, the cotangent of the saved value added."""
        n = self.equation.layout.size
        state = state.clone()
        state[rows, :n] = y
        state[rows, n : 2 * n] += cot
        return state

    def adjoint(self, state: Tensor) -> Tensor:
        """a, ``(R, n)``."""
        n = self.equation.layout.size
        return state[:, n : 2 * n]

    def totals(self, state: Tensor) -> list[Tensor]:
        """Gradients of the shared tensors."""
        if not self.full:
            return self.sums
        pieces = state[0, 2 * self.equation.layout.size :].split(self.sizes)
        return [p.reshape(x.shape).to(x.dtype) for p, x in zip(pieces, self.shared, strict=True)]

    def slope(self, t: np.ndarray, y: Tensor) -> Tensor:
        """f(t, y) at one time a row."""
        t = t[0] if not self.layout.per_sample else t
        (time,) = moments(t, t * 0, START, not self.layout.per_sample, y)
        with torch.no_grad():
            return self.equation.drift(time, y)

    def drift(self, t: Tensor, rows: Tensor) -> Tensor:
        """Time derivative of [y, a, integrals]."""
        self.meter.evaluations += 1
        n = self.equation.layout.size
        wanted = self.shared if self.full else []
        with torch.enable_grad():
            y = rows[:, :n].detach().requires_grad_()
            f = self.equation.drift(t, y)
            pulled = _vjp(f, [y, *wanted], -rows[:, n : 2 * n])
        return torch.cat(
            [f.detach(), pulled[0], *(p.reshape(1, -1).to(f.dtype) for p in pulled[1:])], -1
        )

    def accumulate(self, attempt: Attempt, dense: Tensor) -> None:
        """Add int a^T df/dtheta over an accepted step, by Gauss quadrature on its dense output."""
        at, n = attempt.at, self.equation.layout.size
        ok = np.atleast_1d(attempt.ok)
        length = np.where(ok, np.atleast_1d(at.dt), 0.0)
        times = moments(at.t, at.dt, _NODES, not self.layout.per_sample, at.y)
        for node, weight, time in zip(_NODES, _WEIGHTS, times, strict=True):
            rows = at.y + polynomial(dense, from_host(np.full(len(ok), node), at.y))
            factor = from_host(-weight * length, at.y)[:, None]
            self.meter.evaluations += 1
            with torch.enable_grad():
                f = self.equation.drift(time, rows[:, :n].detach())
                pulled = _vjp(f, self.shared, factor * rows[:, n : 2 * n])
            for total, p in zip(self.sums, pulled, strict=True):
                total += p


def _vjp(f: Tensor, inputs: list[Tensor], cot: Tensor) -> list[Tensor]:
    if not inputs:
        return []
    if not f.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    pulled = torch.autograd.grad(f, inputs, cot, allow_unused=True)
    return [torch.zeros_like(x) if p is None else p for p, x in zip(pulled, inputs, strict=True)]


@dataclass(eq=False)
class _Sweep:
    """The backward solve, segment by segment."""

    task: _Task
    adjoint: _AdjointRows
    plan: Plan
    dt: Any = None

    def back(self, state: Tensor, now: np.ndarray, goal: np.ndarray) -> Tensor:
        """Rows at ``goal``, solved backwards from ``now``."""
        if (now == goal).all():
            return state
        rule, plan, adjoint = self.task.rule, self.plan, self.adjoint
        joint = not adjoint.layout.per_sample
        span = Span(SINGLE, now[0], goal[0]) if joint else Span(HOST, now, goal)
        controller = rule.controller or plan.controller
        solver = rule.solver or plan.solver
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
        dt = self.task.dt if isinstance(controller, Constant) else self.dt

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            if integrates and attempt.ok.any():
                adjoint.accumulate(
                    attempt, solver.dense(attempt.step, attempt.at.dt, attempt.at.y)
                )
            if controller.adaptive:
                self.dt = np.abs(carry.dt)

        carry = self.task.loop(back, begin(back, state, dt), observe)
        self.dt = (
            None
            if self.dt is None
            else np.where(np.abs(self.dt) > 0, self.dt, 1e-6)
            if not joint
            else self.dt
        )
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
        leaves = [
            x.detach().requires_grad_(x.requires_grad) for x in tensors[: len(tensors) - params]
        ]
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
