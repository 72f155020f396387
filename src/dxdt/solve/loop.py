"""The loop of a solve, written once.

``advance`` makes ONE attempted step: a pure function of the plan and the carry, of fixed shapes,
without a host sync of its own. On host clocks (the eager loop) the error norm is the one value
that crosses to the host; on device clocks nothing does, so that the same function can be compiled.

    carry = (t, dt, y, solver state, controller state, status, counts)

Rows that have ended take dt = 0 and are kept by ``choose``, never by multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import Ticks, factors, moments, scaled_sum
from dxdt.solve.controller import Controller, Scale, Span
from dxdt.solve.equation import Rows
from dxdt.solve.solution import RUNNING, Status
from dxdt.solve.solver import Solver, State, Step

__all__ = ["Attempt", "Carry", "Ends", "Plan", "Point", "advance", "begin", "choose_state", "propose", "renew", "run"]

_SUCCESS, _MAXED = Status.SUCCESS.code, Status.MAX_STEPS.code
_NOT_FINITE, _TINY, _NO_STEP = Status.NOT_FINITE.code, Status.STEP_TOO_SMALL.code, Status.NO_STEP.code

# A last step may be stretched by this fraction, so that rounding leaves no sliver before the end.
_STRETCH = 1e-8


class Ends(NamedTuple):
    """The ends of the span as differentiable tensors ``(R,)``, where a gradient for them is wanted."""

    t0: Tensor
    t1: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything of a solve that does not change.

    Attributes:
        equation: the equation on rows.
        solver: one-step map.
        controller: accepts steps and chooses the next.
        span: the clocks and the ends.
        scale: how errors are measured, or None without error control.
        dense: whether steps must be able to interpolate.
        max_steps: attempted steps of a row.
        check: look for values that are not finite at every step, also without error control.
        ends: differentiable ends, or None.
    """

    equation: Rows
    solver: Solver
    controller: Controller
    span: Span
    scale: Scale | None
    dense: bool
    max_steps: int
    check: bool = False
    ends: Ends | None = None


class Carry(NamedTuple):
    """What changes from step to step; clocks ``(R,)``, state ``(R, n)``.

    ``park`` is where rows are evaluated that have nothing to contribute (ended, or rejected with
    values that are not finite): the start of their last accepted step. A derivative taken there is
    finite if the solve's own derivative is, so that a zero cotangent stays zero. None where no
    gradient is taken.
    """

    t: Ticks
    dt: Ticks
    y: Tensor
    solver: State
    control: tuple[Ticks, ...]
    status: Ticks
    attempts: Ticks
    accepted: Ticks
    park: Point | None


class Point(NamedTuple):
    """Where a step begins."""

    t: Ticks
    dt: Ticks
    y: Tensor
    solver: State


class Attempt(NamedTuple):
    """One attempted step: where it began, what it proposed, which rows kept it.

    Attributes:
        at: start and signed length, zero length for rows that contribute nothing.
        end: where the clock stands after it.
        ok: rows that accepted it.
        first, last: rows that began at t0, or ended at t1, with it.
        index: accepted steps before it.
        step: the proposal.
        jumped: rows whose solver state was renewed at ``landed``, or None.
        landed: the clock after a jump.
    """

    at: Point
    end: Ticks
    ok: Ticks
    first: Ticks
    last: Ticks
    index: Ticks
    step: Step
    jumped: Ticks | None
    landed: Ticks


def begin(plan: Plan, y: Tensor, dt: Ticks | None, grad: bool = False) -> Carry:
    """The carry before the first step; ``grad`` keeps the points that derivatives need."""
    span = plan.span
    t0 = span.t0 if plan.ends is None else plan.ends.t0
    solver = plan.solver.init(plan.equation, t0, y, plan.dense)
    if dt is None and plan.scale is not None:
        dt = starting_step(plan, y, plan.solver.slope(solver))
    dt, control = plan.controller.start(span, dt, plan.solver.error_order)
    count = span.clock.count(span.t0)
    status = span.clock.where(span.t0 == span.t1, count + _SUCCESS, count)
    park = Point(span.t0, dt, y, solver) if grad else None
    return Carry(span.t0, dt, y, solver, control, status, count, count, park)


def starting_step(plan: Plan, y: Tensor, slope: Tensor | None) -> Ticks:
    """First step from the sizes of y, f and the change of f over a small Euler step.

    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", II.4.
    """
    span, eq, scale = plan.span, plan.equation, plan.scale
    assert scale is not None
    clock, joint = span.clock, not eq.layout.per_sample
    with torch.no_grad():
        y = y.detach()
        if slope is None:
            slope = eq.drift(*moments(span.t0, span.t0 * 0, np.zeros(1), joint, y), y)
        slope = slope.detach()
        d0, d1 = clock.read(scale(y, y, y)), clock.read(scale(slope, y, y))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h = clock.where(small, 1e-6, 0.01 * d0 / clock.where(small, 1.0, d1))
        h = clock.minimum(h, abs(span.t1 - span.t0))
        h = clock.where(clock.isfinite(h), h, 1e-6)
        signed = clock.where(span.t1 < span.t0, -h, h)
        (factor,) = factors(np.ones(1), signed, y)
        ahead = scaled_sum(y, factor, slope)
        change = eq.drift(*moments(span.t0, signed, np.ones(1), joint, y), ahead) - slope
        d2 = clock.read(scale(change, y, y)) / clock.where(h > 0, h, 1.0)
    steep = clock.maximum(d1, d2)
    steep = clock.where(clock.isfinite(steep), steep, 1e10)
    power = 1 / (plan.solver.error_order or 1)
    rest = clock.maximum(h * 1e-3, 1e-6)
    h1 = clock.where(steep <= 1e-15, rest, (0.01 / clock.maximum(steep, 1e-15)) ** power)
    return clock.minimum(clock.minimum(100 * h, h1), abs(span.t1 - span.t0))


def attach(plan: Plan, at: Point, first: Ticks, last: Ticks) -> tuple[Ticks, Ticks]:
    """Start and length of a step, tied to differentiable ends where there are some.

    Inner step times are constants; the first step begins at t0, the last ends at t1.
    """
    if plan.ends is None:
        return at.t, at.dt
    moves = at.dt != 0
    t0, t1 = plan.ends
    masks = (torch.as_tensor(x, device=t0.device) for x in (first & moves, last & moves, moves))
    begins, ends, moving = masks
    start, stop = (torch.as_tensor(x, device=t0.device) for x in (at.t, at.t + at.dt))
    start, stop = torch.where(begins, t0, start), torch.where(ends, t1, stop)
    return start, torch.where(moving, stop - start, 0.0)


def propose(plan: Plan, at: Point, first: Ticks, last: Ticks, index: Ticks) -> Step:
    """The solver's step from a point."""
    t, dt = attach(plan, at, first, last)
    return plan.solver.step(plan.equation, t, dt, at.y, at.solver, index)


def advance(plan: Plan, c: Carry) -> tuple[Carry, Attempt]:
    """One attempted step of every row that still runs."""
    span, clock = plan.span, plan.span.clock
    running = c.status == RUNNING
    left = span.t1 - c.t
    last = running & (abs(c.dt) >= abs(left) * (1 - _STRETCH))
    dt = clock.where(running, clock.where(last, left, c.dt), 0.0)
    first = c.accepted == 0
    at = Point(c.t, dt, c.y, c.solver)
    if c.park is not None:
        at = _parked(plan, running, at, c.park)
    step = propose(plan, at, first, last, c.accepted)
    error = _measure(plan, c.y, step, dt)
    decision = plan.controller.decide(span, error, c.t, dt, c.control)
    ok = running & decision.accept
    park = None
    if c.park is not None:
        at, step = _protected(plan, c, at, step, ok, error, first, last)
        park = _parked(plan, ~ok, at, c.park)
    end = clock.where(ok, clock.where(last, span.t1, c.t + dt), c.t)
    y, solver = clock.choose(ok, step.y, c.y), choose_state(plan, ok, step.state, c.solver)
    landed, jumped = end, None
    if plan.controller.jumps:
        landed, crossed = plan.controller.land(span, end)
        jumped = crossed & ok & ~last
        landed = clock.where(jumped, landed, end)
        solver = renew(plan, jumped, landed, y, solver)
    attempts, accepted = c.attempts + running, c.accepted + ok
    status = _status(plan, c, ok & last, running & decision.failed, error, decision.dt, attempts, running)
    control = tuple(clock.where(running, new, old) for new, old in zip(decision.state, c.control, strict=True))
    carry = Carry(landed, decision.dt, y, solver, control, status, attempts, accepted, park)
    return carry, Attempt(at, end, ok, first, ok & last, c.accepted, step, jumped, landed)


def _parked(plan: Plan, keep: Ticks, at: Point, park: Point) -> Point:
    """``at`` for the rows in ``keep``, the parking point with zero length for the others."""
    clock = plan.span.clock
    if keep.all():
        return at
    return Point(
        clock.where(keep, at.t, park.t),
        clock.where(keep, at.dt, 0.0),
        clock.choose(keep, at.y, park.y),
        choose_state(plan, keep, at.solver, park.solver),
    )


def _protected(
    plan: Plan, c: Carry, at: Point, step: Step, ok: Ticks, error: Ticks, first: Ticks, last: Ticks
) -> tuple[Point, Step]:
    """Take rows out of a step that they left with values that are not finite.

    Their zero cotangents would meet infinite derivatives. Such rows are evaluated again where they
    are parked, or, before their first accepted step, where another row began this one.
    """
    bad = ~ok & ~np.isfinite(error)
    if not bad.any() or not ok.any():
        return at, step
    assert c.park is not None
    donor = int(np.flatnonzero(ok)[0])
    rows = np.where(c.accepted > 0, np.arange(len(ok)), donor)
    source = Point(
        np.where(c.accepted > 0, c.park.t, at.t[donor]),
        at.dt,
        plan.span.clock.choose(c.accepted > 0, c.park.y, at.y[rows]),
        choose_state(plan, c.accepted > 0, c.park.solver, tuple(s[rows] for s in at.solver)),
    )
    at = _parked(plan, ~bad, at, source)
    return at, propose(plan, at, first, last, c.accepted) if torch.is_grad_enabled() else step


def choose_state(plan: Plan, mask: Ticks, new: State, old: State) -> State:
    """Solver state of ``new`` for the rows in ``mask``, of ``old`` for the others."""
    return tuple(plan.span.clock.choose(mask, a, b) for a, b in zip(new, old, strict=True))


def _measure(plan: Plan, y: Tensor, step: Step, dt: Ticks) -> Ticks:
    """Error norm per row: 1 is the tolerance; 0 without error control, inf where not finite."""
    clock = plan.span.clock
    if plan.scale is not None and step.error is not None:
        new = step.y
        if new.requires_grad:
            y, new = y.detach(), new.detach()
        return clock.read(plan.scale(step.error, y, new))
    if plan.check:
        finite = clock.read(torch.isfinite(step.y.detach()).all(-1)) > 0
        return clock.where(finite, clock.full(dt, 0.0), float("inf"))
    return clock.full(dt, 0.0)


def renew(plan: Plan, jumped: Ticks, t: Ticks, y: Tensor, solver: State) -> State:
    """Solver state for a field that has just jumped, in the rows that met the jump."""
    if not solver or (not isinstance(jumped, Tensor) and not jumped.any()):
        return solver
    return choose_state(plan, jumped, plan.solver.init(plan.equation, t, y, plan.dense), solver)


def _status(
    plan: Plan, c: Carry, arrived: Ticks, failed: Ticks, error: Ticks, dt: Ticks, attempts: Ticks, running: Ticks
) -> Ticks:
    """Code of each row after the attempt; the first cause that applies stays."""
    clock, span = plan.span.clock, plan.span
    forward = clock.where(span.t1 > span.t0, dt > 0, dt < 0)
    cause = clock.where(attempts >= plan.max_steps, c.status * 0 + _MAXED, c.status)
    cause = clock.where(forward, cause, c.status * 0 + _NO_STEP)
    why = clock.where(clock.isfinite(error), c.status * 0 + _TINY, c.status * 0 + _NOT_FINITE)
    cause = clock.where(failed, why, cause)
    cause = clock.where(arrived, c.status * 0 + _SUCCESS, cause)
    return clock.where(running, cause, c.status)


def run(plan: Plan, carry: Carry, observe: Callable[[Carry, Attempt], Any]) -> Carry:
    """The eager loop: attempts until no row runs; ``observe`` sees each."""
    while (carry.status == RUNNING).any():
        carry, attempt = advance(plan, carry)
        observe(carry, attempt)
    return carry
