"""One step as a differentiable function of where it begins: what the gradients form again."""

from __future__ import annotations

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Attempt, Plan, choose_state
from dxdt.diffeq.methods.solver import State, Step
from dxdt.ops.times import Ticks

__all__ = ["attach", "propose", "settle"]


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


def renew(plan: Plan, jumped: Ticks, t: Ticks, y: Tensor, solver: State) -> State:
    """Solver state for a field that has just jumped, in the rows that met the jump."""
    if not solver or (not isinstance(jumped, Tensor) and not jumped.any()):
        return solver
    return choose_state(plan, jumped, plan.solver.init(plan.equation, t, y, plan.dense), solver)
