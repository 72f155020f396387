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

from dxdt.ops.clock import END, START, Ticks, factors, moments, scaled_sum, to_host
from dxdt.solve.controller import Controller, Scale, Span
from dxdt.solve.equation import Rows
from dxdt.solve.event import Crossing, Watch
from dxdt.solve.solution import RUNNING, Status
from dxdt.solve.solver import Solver, State, Step

__all__ = [
    "After",
    "Attempt",
    "Carry",
    "Ends",
    "Plan",
    "Point",
    "advance",
    "attach",
    "begin",
    "choose_state",
    "propose",
    "run",
    "settle",
    "start",
]

_SUCCESS, _MAXED, _EVENT = Status.SUCCESS.code, Status.MAX_STEPS.code, Status.EVENT.code
_NOT_FINITE, _TINY, _NO_STEP = Status.NOT_FINITE.code, Status.STEP_TOO_SMALL.code, Status.NO_STEP.code

_NOTHING = Step(torch.empty(0), None, (), ())

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
        watch: events, or None.
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
    watch: Watch | None = None


class Carry(NamedTuple):
    """What changes from step to step; clocks ``(R,)``, state ``(R, n)``.

    ``park`` is where rows are evaluated that have nothing to contribute (ended, or rejected with
    values that are not finite): the start of their last accepted step. A derivative taken there is
    finite if the solve's own derivative is, so that a zero cotangent stays zero. None where no
    gradient is taken.

    ``origin`` is where the present piece of the solution began, as a differentiable time: t0, or the
    last event; None where no derivative with respect to it is wanted. ``since`` is the number of
    steps that were accepted before it, ``sides`` the sign of each event's condition.
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
    origin: Tensor | None
    since: Ticks
    sides: tuple[np.ndarray, ...]


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
        fresh, last: rows that began at their origin, or were to end at t1, with it.
        index: accepted steps before it.
        step: the proposal.
        jumped: rows whose solver state was renewed at ``landed``, or None.
        landed: the clock after a jump.
        origin: differentiable time at which the fresh rows began.
        crossing: where events cut it short, or None.
        muted: rows whose field counts as zero, because it is not finite anywhere, or None.
    """

    at: Point
    end: Ticks
    ok: Ticks
    fresh: Ticks
    last: Ticks
    index: Ticks
    step: Step
    jumped: Ticks | None
    landed: Ticks
    origin: Tensor | None
    crossing: Crossing | None
    muted: Ticks | None = None


class After(NamedTuple):
    """What follows an accepted step.

    Attributes:
        y, solver: state and solver state to go on from.
        origin: differentiable beginning of the piece of the solution that follows.
        arrive: state at the end of the step, before any reset.
    """

    y: Tensor
    solver: State
    origin: Tensor | None
    arrive: Tensor


def begin(plan: Plan, y: Tensor, dt: Ticks | None, grad: bool = False) -> Carry:
    """The carry before the first step; ``grad`` keeps what derivatives need."""
    span = plan.span
    origin = None if plan.ends is None else plan.ends.t0
    if y.requires_grad:
        y = y.view_as(y)  # cotangents of the steps meet here (see ``Clock.choose``)
    solver = start(plan, span.t0 if origin is None else origin, y)
    if dt is None and plan.scale is not None:
        dt = starting_step(plan, y, plan.solver.slope(solver))
    dt, control = plan.controller.start(span, dt, plan.solver.error_order)
    count = span.clock.count(span.t0)
    status = span.clock.where(span.t0 == span.t1, count + _SUCCESS, count)
    park = Point(span.t0, dt, y, solver) if grad else None
    sides: tuple[np.ndarray, ...] = ()
    if plan.watch is not None:
        sides = plan.watch.sides(span.t0, y)
        if grad and origin is None:
            origin = torch.as_tensor(span.t0, device=y.device).reshape(-1)
    return Carry(span.t0, dt, y, solver, control, status, count, count, park, origin, count, sides)


def start(plan: Plan, t0: Ticks, y: Tensor) -> State:
    """Solver state at the start.

    Where the field of a row is not finite there, the row keeps that value but passes no gradient:
    its derivative is taken where another row begins.
    """
    if y.requires_grad:
        y = y.view_as(y)
    state = plan.solver.init(plan.equation, t0, y, plan.dense)
    if not (state and torch.is_grad_enabled() and y.shape[0] > 1):
        return state
    finite = to_host(torch.stack([torch.isfinite(s.detach()).flatten(1).all(1) for s in state]).all(0)) > 0
    if finite.all() or not finite.any():
        return state
    source = np.where(finite, np.arange(len(finite)), np.flatnonzero(finite)[0])
    choose = plan.span.clock.choose
    t0 = choose(finite, t0, t0.detach()[source]) if isinstance(t0, Tensor) else t0[source]
    safe = plan.solver.init(plan.equation, t0, choose(finite, y, y.detach()[source]), plan.dense)
    return tuple(choose(finite, a, b.detach()) for a, b in zip(safe, state, strict=True))


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
            slope = eq.drift(*moments(span.t0, span.t0 * 0, START, joint, y), y)
        slope = slope.detach()
        d0, d1 = clock.read(scale(y, y, y)), clock.read(scale(slope, y, y))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h = clock.where(small, 1e-6, 0.01 * d0 / clock.where(small, 1.0, d1))
        h = clock.minimum(h, abs(span.t1 - span.t0))
        h = clock.where(clock.isfinite(h), h, 1e-6)
        signed = clock.where(span.t1 < span.t0, -h, h)
        (factor,) = factors(END, signed, y)
        ahead = scaled_sum(y, factor, slope)
        change = eq.drift(*moments(span.t0, signed, END, joint, y), ahead) - slope
        d2 = clock.read(scale(change, y, y)) / clock.where(h > 0, h, 1.0)
    steep = clock.maximum(d1, d2)
    steep = clock.where(clock.isfinite(steep), steep, 1e10)
    power = 1 / (plan.solver.error_order or 1)
    rest = clock.maximum(h * 1e-3, 1e-6)
    h1 = clock.where(steep <= 1e-15, rest, (0.01 / clock.maximum(steep, 1e-15)) ** power)
    return clock.minimum(clock.minimum(100 * h, h1), abs(span.t1 - span.t0))


def attach(plan: Plan, attempt: Attempt) -> tuple[Ticks, Ticks]:
    """Start and length of a step, tied to differentiable times where there are some.

    Inner step times are constants; a fresh step begins at its origin, the last ends at t1.
    """
    at, origin = attempt.at, attempt.origin
    stop = None if plan.ends is None else plan.ends.t1
    moves = at.dt != 0
    begins, ends = attempt.fresh & moves, attempt.last & moves
    if not ((origin is not None and begins.any()) or (stop is not None and ends.any())):
        return at.t, at.dt
    device = at.y.device
    start, end, moving = (torch.as_tensor(x, device=device).reshape(-1) for x in (at.t, at.t + at.dt, moves))
    if origin is not None:
        start = torch.where(torch.as_tensor(begins, device=device), origin, start)
    if stop is not None:
        end = torch.where(torch.as_tensor(ends, device=device), stop, end)
    return start, torch.where(moving, end - start, 0.0)


def propose(plan: Plan, attempt: Attempt) -> Step:
    """The solver's step from where an attempt begins."""
    t, dt = attach(plan, attempt)
    equation = plan.equation if attempt.muted is None else plan.equation.mute(attempt.muted)
    return plan.solver.step(equation, t, dt, attempt.at.y, attempt.at.solver, attempt.index)


def settle(plan: Plan, attempt: Attempt) -> After:
    """What follows an accepted step: events met, resets applied, the solver's memory renewed."""
    y, solver, origin = attempt.step.y, attempt.step.state, attempt.origin
    arrive, crossing = y, attempt.crossing
    if crossing is not None:
        assert plan.watch is not None
        choose = plan.span.clock.choose
        t, dt = attach(plan, attempt)
        dense = plan.solver.dense(attempt.step, dt, attempt.at.y)
        time, reached, leave = plan.watch.meet(crossing, t, dt, attempt.at.y, dense)
        arrive, y = choose(crossing.rows, reached, y), choose(crossing.rows, leave, y)
        origin = None if origin is None else choose(crossing.rows, time, origin)
        if not crossing.ends.all():
            solver = renew(plan, crossing.rows & ~crossing.ends, time, y, solver)
    if attempt.jumped is not None:
        solver = renew(plan, attempt.jumped, attempt.landed, y, solver)
    return After(y, solver, origin, arrive)


def advance(plan: Plan, c: Carry) -> tuple[Carry, Attempt, After]:
    """One attempted step of every row that still runs."""
    span, clock = plan.span, plan.span.clock
    running = c.status == RUNNING
    left = span.t1 - c.t
    last = running & (abs(c.dt) >= abs(left) * (1 - _STRETCH))
    dt = clock.where(running, clock.where(last, left, c.dt), 0.0)
    at = Point(c.t, dt, c.y, c.solver)
    if c.park is not None:
        at = _parked(plan, running, at, c.park)
    fresh = c.accepted == c.since
    attempt = Attempt(at, c.t, running, fresh, last, c.accepted, _NOTHING, None, c.t, c.origin, None)
    step = propose(plan, attempt)
    error = _measure(plan, c.y, step, dt)
    decision = plan.controller.decide(span, error, c.t, dt, c.control)
    ok = running & decision.accept
    end = clock.where(ok, clock.where(last, span.t1, c.t + dt), c.t)
    attempt = attempt._replace(end=end, ok=ok, last=ok & last, step=step, landed=end)
    park = None
    if c.park is not None:
        attempt = _protected(plan, c, attempt, error)
        lost = ok.any() & (c.accepted == 0) & ~np.isfinite(error)
        park = _parked(plan, ok | lost, attempt.at, c.park)
    if plan.controller.jumps:
        attempt = _landed(plan, attempt)
    attempts, accepted = c.attempts + running, c.accepted + ok
    status = _status(plan, c, attempt.last, running & decision.failed, error, decision.dt, attempts, running)
    control = tuple(clock.where(running, new, old) for new, old in zip(decision.state, c.control, strict=True))
    carry = Carry(
        attempt.landed, decision.dt, c.y, c.solver, control, status, attempts, accepted, park, c.origin, c.since, c.sides
    )
    if plan.watch is not None:
        carry, attempt = _watched(plan, c, carry, attempt)
    after = settle(plan, attempt)
    origin = None if after.origin is None or c.origin is None else clock.choose(ok, after.origin, c.origin)
    y, solver = clock.choose(ok, after.y, c.y), choose_state(plan, ok, after.solver, c.solver)
    return carry._replace(y=y, solver=solver, origin=origin), attempt, after


def _landed(plan: Plan, attempt: Attempt) -> Attempt:
    """The clock moved across a jump of the field."""
    landed, crossed = plan.controller.land(plan.span, attempt.end)
    jumped = crossed & attempt.ok & ~attempt.last
    return attempt._replace(jumped=jumped, landed=plan.span.clock.where(jumped, landed, attempt.end))


def _watched(plan: Plan, c: Carry, carry: Carry, attempt: Attempt) -> tuple[Carry, Attempt]:
    """Cut a step short where an event happens in it; what is left of it is taken next."""
    assert plan.watch is not None
    ok, at, clock = attempt.ok, attempt.at, plan.span.clock
    if not ok.any():
        return carry, attempt
    with torch.no_grad():
        dense = plan.solver.dense(attempt.step, at.dt, at.y)
    crossing, sides = plan.watch.find(at.t, at.dt, ok, at.y, dense, c.sides)
    if crossing is None:
        return carry._replace(sides=sides), attempt
    rows = crossing.rows
    end = clock.where(rows, at.t + crossing.theta * at.dt, attempt.end)
    rest = at.t + at.dt - end
    goes = rows & ~crossing.ends & (abs(rest) > 1e-12 * abs(at.dt))
    status = clock.where(rows, carry.status * 0 + RUNNING, carry.status)
    maxed = rows & (carry.attempts >= plan.max_steps)
    status = clock.where(maxed, carry.status * 0 + _MAXED, status)
    status = clock.where(crossing.ends, carry.status * 0 + _EVENT, status)
    carry = carry._replace(
        t=clock.where(rows, end, carry.t),
        dt=clock.where(goes, rest, carry.dt),
        control=tuple(clock.where(goes, old, new) for new, old in zip(carry.control, c.control, strict=True)),
        status=status,
        since=clock.where(rows, carry.accepted, carry.since),
        sides=sides,
    )
    jumped = None if attempt.jumped is None else attempt.jumped & ~rows
    return carry, attempt._replace(
        end=end, landed=clock.where(rows, end, attempt.landed), crossing=crossing, jumped=jumped
    )


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


def _protected(plan: Plan, c: Carry, attempt: Attempt, error: Ticks) -> Attempt:
    """Take rows out of a step that they left with values that are not finite.

    Their zero cotangents would meet infinite derivatives. Such rows are evaluated again where they
    are parked, or, before their first accepted step, where another row began this one.
    """
    at, ok = attempt.at, attempt.ok
    bad = ~ok & ~np.isfinite(error)
    if not bad.any() or not ok.any():
        return attempt
    assert c.park is not None
    donor = int(np.flatnonzero(ok)[0])
    rows = np.where(c.accepted > 0, np.arange(len(ok)), donor)
    source = Point(
        np.where(c.accepted > 0, c.park.t, at.t[donor]),
        at.dt,
        plan.span.clock.choose(c.accepted > 0, c.park.y, at.y[rows].detach()),
        choose_state(plan, c.accepted > 0, c.park.solver, tuple(s[rows].detach() for s in at.solver)),
    )
    attempt = attempt._replace(at=_parked(plan, ~bad, at, source), muted=bad)
    return attempt._replace(step=propose(plan, attempt)) if torch.is_grad_enabled() else attempt


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
        values = torch.stack([torch.isfinite(x.detach()).flatten(1).all(1) for x in (step.y, *step.state)])
        finite = clock.read(values.all(0)) > 0
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


def run(plan: Plan, carry: Carry, observe: Callable[[Carry, Attempt, After], Any]) -> Carry:
    """The eager loop: attempts until no row runs; ``observe`` sees each."""
    while (carry.status == RUNNING).any():
        carry, attempt, after = advance(plan, carry)
        observe(carry, attempt, after)
    return carry
