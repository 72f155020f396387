"""The records of a loop: what does not change, what does, and one attempted step.

Clocks are ``(R,)``, states ``(R, n)`` (see ``ops.clock`` and ``ops.tree``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller, Scale, Span
from dxdt.diffeq.loop.event import Crossing, Watch
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import Ticks

__all__ = ["NOTHING", "After", "Attempt", "Carry", "Ends", "Plan", "Point", "choose_state", "pack", "unpack"]

NOTHING = Step(torch.empty(0), None, (), ())
"""The proposal of an attempt that is yet to be made, or is not kept."""


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
        jumped: rows that ended at a jump of the field, where the solver's state is renewed, or None.
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


def choose_state(plan: Plan, mask: Ticks, new: State, old: State) -> State:
    """Solver state of ``new`` for the rows in ``mask``, of ``old`` for the others."""
    return tuple(plan.span.clock.choose(mask, a, b) for a, b in zip(new, old, strict=True))


def pack(c: Carry) -> tuple[Tensor, ...]:
    """The tensors of a carry, as a loop carries them."""
    return (c.t, c.dt, c.y, *c.solver, *c.control, c.status, c.attempts, c.accepted)


def unpack(x: Sequence[Tensor], sizes: tuple[int, int]) -> Carry:
    """The carry again; ``sizes`` are the numbers of tensors of the solver and of the controller."""
    n, m = sizes
    solver, control = tuple(x[3 : 3 + n]), tuple(x[3 + n : 3 + n + m])
    status, attempts, accepted = x[3 + n + m :]
    return Carry(
        x[0],
        x[1],
        x[2],
        solver,
        control,
        status,
        attempts,
        accepted,
        None,
        None,
        torch.zeros_like(accepted),
        (),
    )
