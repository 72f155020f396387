"""The loop of a solve, written once.

``advance`` makes ONE attempted step: a pure function of the plan and the carry, of fixed shapes,
without a host sync of its own. On host clocks (the eager loop) the error norm is the one value
that crosses to the host; on device clocks nothing does, so that the same function can be compiled.

    carry = (t, dt, y, solver state, controller state, status, counts)

Rows that have ended take dt = 0 and are kept by ``choose``, never by multiplication.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.loop.fixed_grid import Observer, grid_of, march
from dxdt.diffeq.loop.plan import NOTHING, After, Attempt, Carry, Plan, Point, choose_state
from dxdt.diffeq.loop.step import propose, settle
from dxdt.diffeq.methods.solver import Step
from dxdt.diffeq.problem.status import RUNNING, Status
from dxdt.ops.times import Ticks

__all__ = ["advance", "run"]

_SUCCESS, _MAXED, _EVENT = Status.SUCCESS.code, Status.MAX_STEPS.code, Status.EVENT.code
_NOT_FINITE, _TINY, _NO_STEP = (
    Status.NOT_FINITE.code,
    Status.STEP_TOO_SMALL.code,
    Status.NO_STEP.code,
)

# A last step may be stretched by this fraction, so that rounding leaves no sliver before the end.
_STRETCH = 1e-8


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
    attempt = Attempt(at, c.t, running, fresh, last, c.accepted, NOTHING, None, c.origin, None)
    step = propose(plan, attempt)
    error = _measure(plan, c.y, step, dt)
    decision = plan.controller.decide(span, error, c.t, dt, c.control)
    ok = running & decision.accept
    end = clock.where(ok, clock.where(last, span.t1, c.t + dt), c.t)
    attempt = Attempt(at, end, ok, fresh, ok & last, c.accepted, step, None, c.origin, None)
    park = None
    if c.park is not None:
        attempt = _protected(plan, c, attempt, error)
        lost = ok.any() & (c.accepted == 0) & ~np.isfinite(error)
        park = _parked(plan, ok | lost, attempt.at, c.park)
    if plan.controller.stops:
        attempt = _landed(plan, attempt)
    attempts, accepted = c.attempts + running, c.accepted + ok
    status = _status(plan, c, attempt.last, running & decision.failed, error, decision.dt, attempts, running)
    if decision.full is not None:
        status = clock.where(running & decision.full, status * 0 + Status.REVISITS.code, status)
    control = tuple([clock.where(running, new, old) for new, old in zip(decision.state, c.control, strict=True)])
    clocks = Clocks(attempt.end, decision.dt, control, status, c.since, c.sides)
    if plan.watch is not None:
        clocks, attempt = _watched(plan, c, clocks, attempt, attempts, accepted)
    after = settle(plan, attempt)
    origin = None
    if after.origin is not None and c.origin is not None:
        origin = clock.choose(ok, after.origin, c.origin)
    y, solver = clock.choose(ok, after.y, c.y), choose_state(plan, ok, after.solver, c.solver)
    t, dt, control, status, since, sides = clocks
    carry = Carry(t, dt, y, solver, control, status, attempts, accepted, park, origin, since, sides)
    return carry, attempt, after


class Clocks(NamedTuple):
    """The clocks of a carry after an attempt."""

    t: Ticks
    dt: Ticks
    control: tuple[Ticks, ...]
    status: Ticks
    since: Ticks
    sides: tuple[np.ndarray, ...]


def _landed(plan: Plan, attempt: Attempt) -> Attempt:
    """The clock set to the stop that a step meets, by the bit."""
    at, goes_on = attempt.at, attempt.ok & ~attempt.last
    landed, crossed = plan.controller.land(plan.span, at.t, at.dt)
    end = plan.span.clock.where(goes_on, landed, attempt.end)
    return attempt._replace(jumped=crossed & goes_on if plan.controller.jumps else None, end=end)


def _watched(
    plan: Plan, c: Carry, after: Clocks, attempt: Attempt, attempts: Ticks, accepted: Ticks
) -> tuple[Clocks, Attempt]:
    """Cut a step short where an event happens in it; what is left of it is taken next."""
    assert plan.watch is not None
    ok, at, clock = attempt.ok, attempt.at, plan.span.clock
    if not ok.any():
        return after, attempt
    with torch.no_grad():
        dense = plan.solver.dense(attempt.step, at.dt, at.y)
    crossing, sides = plan.watch.find(at.t, at.dt, ok, at.y, dense, c.sides)
    if crossing is None:
        return after._replace(sides=sides), attempt
    rows = crossing.rows
    end = clock.where(rows & (crossing.theta < 1), at.t + crossing.theta * at.dt, attempt.end)
    rest = at.t + at.dt - end
    goes = rows & ~crossing.ends & (abs(rest) > 1e-12 * abs(at.dt))
    # A row whose event lies at t1 has arrived.
    left = rows & (end != plan.span.t1)
    status = clock.where(left, after.status * 0 + RUNNING, after.status)
    maxed = left & (attempts >= plan.max_steps)
    status = clock.where(maxed, after.status * 0 + _MAXED, status)
    status = clock.where(crossing.ends, after.status * 0 + _EVENT, status)
    after = after._replace(
        t=clock.where(rows, end, after.t),
        dt=clock.where(goes, rest, after.dt),
        control=tuple(clock.where(goes, old, new) for new, old in zip(after.control, c.control, strict=True)),
        status=status,
        since=clock.where(rows, accepted, after.since),
        sides=sides,
    )
    jumped = None if attempt.jumped is None else attempt.jumped & ~rows
    return after, attempt._replace(end=end, crossing=crossing, jumped=jumped)


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


def _status(
    plan: Plan,
    c: Carry,
    arrived: Ticks,
    failed: Ticks,
    error: Ticks,
    dt: Ticks,
    attempts: Ticks,
    running: Ticks,
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


def run(plan: Plan, carry: Carry, observe: Observer | None) -> Carry:
    """The eager loop: attempts until no row runs; ``observe`` sees each."""
    grid = grid_of(plan, carry)
    if grid is not None:
        return march(plan, carry, grid, observe)
    while (carry.status == RUNNING).any():
        carry, attempt, after = advance(plan, carry)
        if observe is not None:
            observe(carry, attempt, after)
    return carry
