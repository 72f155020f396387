"""A walk along a known grid that all rows share: nothing to decide, so nothing is decided.

The loop keeps a clock for every row, because rows may differ. Where the steps are known before the solve, are
the same for all rows, and nothing is measured, cut short or stopped, the clocks are counters: the solver is told
the step as numbers of the host, and the records of the loop are written only for those who read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Attempt, Carry, Plan, Point
from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.problem.status import RUNNING, Status
from dxdt.ops.times import Ticks

__all__ = ["Observer", "grid_of", "march"]

Observer: TypeAlias = Callable[[Carry, Attempt, After], Any]
"""Sees each attempt."""


def grid_of(plan: Plan, carry: Carry) -> np.ndarray | None:
    """The times ``(N + 1,)`` that all rows step through from where they stand, or None where they may differ."""
    # The adjoint of a solve steps where the solve did, and looks ahead at nothing.
    outlook = getattr(plan.equation, "outlook", None)
    times = None if outlook is None else outlook.times
    if times is None or times.shape[1] != 1 or plan.scale is not None or plan.check or plan.ends is not None:
        return None
    steps = len(times) - 1
    if carry.origin is not None or plan.watch is not None or steps > plan.max_steps or np.any(carry.accepted != 0):
        return None
    grid = times[:, 0]
    same = np.all(carry.status == RUNNING) and np.all(carry.t == grid[0]) and np.all(carry.dt == grid[1] - grid[0])
    return grid if same and np.all(plan.span.t1 == grid[-1]) else None


def march(plan: Plan, carry: Carry, grid: np.ndarray, observe: Observer | None) -> Carry:
    """The carry at the end of the grid; ``observe`` sees every step."""
    y, state = carry.y, carry.solver
    solver, equation = plan.solver, plan.equation
    parks = carry.park is not None
    begun: tuple[Tensor, State] = (y, state)
    for k in range(len(grid) - 1):
        begun = y, state
        step = solver.step(equation, grid[k], grid[k + 1] - grid[k], y, state, k)
        # Cotangents meet here, as in ``Clock.choose``.
        y, state = _own(step.y), tuple([_own(x) for x in step.state])
        if observe is not None:
            park = _at(carry, grid, k, *begun) if parks else None
            after = _carry(carry, grid, k + 1, y, state, park)
            observe(after, _attempt(carry, grid, k, begun, step), After(step.y, step.state, None, step.y))
    last = len(grid) - 2
    done = _carry(carry, grid, last + 1, y, state, _at(carry, grid, last, *begun) if parks else None)
    return done._replace(status=carry.status * 0 + Status.SUCCESS.code)


def _own(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x


def _at(carry: Carry, grid: np.ndarray, k: int, y: Tensor, state: State) -> Point:
    """Where step k begins."""
    return Point(carry.t * 0 + grid[k], carry.dt * 0 + (grid[k + 1] - grid[k]), y, state)


def _carry(carry: Carry, grid: np.ndarray, k: int, y: Tensor, state: State, park: Point | None) -> Carry:
    """The carry after k steps; the controller's own state is not read again."""
    size = grid[min(k + 1, len(grid) - 1)] - grid[k]
    done = carry.accepted * 0 + k
    status = carry.status * 0 + (Status.SUCCESS.code if k == len(grid) - 1 else RUNNING)
    return carry._replace(
        t=carry.t * 0 + grid[k],
        dt=carry.dt * 0 + size,
        y=y,
        solver=state,
        status=status,
        attempts=done,
        accepted=done,
        park=park,
    )


def _attempt(carry: Carry, grid: np.ndarray, k: int, begun: tuple[Tensor, State], step: Any) -> Attempt:
    """Step k in the terms of the loop."""
    yes: Ticks = carry.status == RUNNING
    no = ~yes
    end = carry.t * 0 + grid[k + 1]
    last = yes if k == len(grid) - 2 else no
    index = carry.accepted * 0 + k
    return Attempt(_at(carry, grid, k, *begun), end, yes, no if k else yes, last, index, step, None, None, None)
