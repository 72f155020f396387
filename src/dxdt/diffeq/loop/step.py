"""One step as a differentiable function of where it begins: what the gradients form again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Attempt, Plan, choose_state
from dxdt.diffeq.methods.solver import State, Step
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import Ticks
from dxdt.ops.tree import Layout

__all__ = ["attach", "beyond", "propose", "settle", "sided", "sides"]


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
    equation = sided(plan, attempt.at.t, attempt.at.dt)
    if attempt.muted is not None:
        equation = equation.mute(attempt.muted)
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
            solver = renew(plan, crossing.rows & ~crossing.ends, attempt.end, time, y, solver)
    if attempt.jumped is not None:
        solver = renew(plan, attempt.jumped, attempt.end, attempt.end, y, solver)
    return After(y, solver, origin, arrive)


def renew(plan: Plan, jumped: Ticks, clock: Ticks, t: Ticks, y: Tensor, solver: State) -> State:
    """Solver state for a field or state that has just jumped, in the rows that met the jump.

    ``t`` is the clock, or the same with a derivative.
    """
    if not solver or (not isinstance(jumped, Tensor) and not jumped.any()):
        return solver
    return choose_state(plan, jumped, plan.solver.init(sided(plan, clock), t, y, plan.dense), solver)


def sided(plan: Plan, t: Ticks, dt: Ticks | None = None) -> Rows:
    """The equation of a plan as the step [t, t + dt] sees it, or what begins at t: of a jump at an end, this side."""
    if not plan.controller.jumps:
        return plan.equation
    bounds = sides(plan, t, t * 0 if dt is None else dt)
    return plan.equation if bounds is None else plan.equation.between(*bounds)


def sides(plan: Plan, t: Ticks, dt: Ticks) -> tuple[Ticks, Ticks] | None:
    """The first and the last time that a step shows to the field, infinite where it has no jump at that end.

    The clock itself stands at the jump, so that no time is lost. None where no row has a jump at an end.
    """
    span, clock, layout = plan.span, plan.span.clock, plan.equation.layout
    at, starts = plan.controller.land(span, t, t * 0)
    end, ends = plan.controller.land(span, t, dt)
    starts, ends = starts & (at == t), ends & (dt != 0)
    if not isinstance(t, Tensor) and not (starts | ends).any():
        return None
    forward = span.t1 >= span.t0
    first, last = clock.where(forward, t, end), clock.where(forward, end, t)
    at_first, at_last = clock.where(forward, starts, ends), clock.where(forward, ends, starts)
    low = clock.where(at_first, first + _float(first, layout), -math.inf)
    return low, clock.where(at_last, last - _float(last, layout), math.inf)


def beyond(plan: Plan, t: Ticks) -> Ticks:
    """Times as the field sees them from where a step begins: just beyond a jump there."""
    found = sides(plan, t, t * 0) if plan.controller.jumps else None
    return t if found is None else plan.span.clock.minimum(plan.span.clock.maximum(t, found[0]), found[1])


def _float(t: Ticks, layout: Layout) -> Ticks:
    """What leads from a time to another one in the dtype in which the field sees it."""
    info = torch.finfo(layout.time_dtype)
    return abs(t) * info.eps + info.tiny
