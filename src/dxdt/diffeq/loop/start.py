"""Before the first step: the solver's state, the first step size, the carry."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import Carry, Plan, Point
from dxdt.diffeq.loop.step import sided
from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.problem.status import Status
from dxdt.ops.times import END, START, Ticks, factors, moments, scaled_sum, to_host

__all__ = ["begin", "start", "starting_step"]

_SUCCESS = Status.SUCCESS.code


def begin(plan: Plan, y: Tensor, dt: Ticks | None, grad: bool = False, some: bool = False) -> Carry:
    """The carry before the first step; ``grad`` keeps what derivatives need.

    Where ``some`` entries of ``dt`` are NaN, these first steps are chosen automatically.
    """
    span = plan.span
    origin = None if plan.ends is None else plan.ends.t0
    if y.requires_grad:
        y = y.view_as(y)  # cotangents of the steps meet here (see ``Clock.choose``)
    solver = start(plan, span.t0 if origin is None else origin, y)
    if plan.scale is not None and (dt is None or some):
        found = starting_step(plan, y, plan.solver.slope(solver))
        dt = found if dt is None else span.clock.where(span.clock.isfinite(dt), dt, found)
    dt, control = plan.controller.start(span, dt, plan.solver.estimate(plan.equation.kind))
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
    state = plan.solver.init(sided(plan, plan.span.t0), t0, y, plan.dense)
    if not (state and torch.is_grad_enabled() and y.shape[0] > 1):
        return state
    finite = to_host(torch.stack([torch.isfinite(s.detach()).flatten(1).all(1) for s in state]).all(0)) > 0
    if finite.all() or not finite.any():
        return state
    source = np.where(finite, np.arange(len(finite)), np.flatnonzero(finite)[0])
    choose = plan.span.clock.choose
    t0 = choose(finite, t0, t0.detach()[source]) if isinstance(t0, Tensor) else t0[source]
    safe = plan.solver.init(sided(plan, plan.span.t0[source]), t0, choose(finite, y, y.detach()[source]), plan.dense)
    return tuple(choose(finite, a, b.detach()) for a, b in zip(safe, state, strict=True))


def starting_step(plan: Plan, y: Tensor, slope: Tensor | None) -> Ticks:
    """First step from the sizes of y, f and the change of f over a small Euler step.

    With noise |f| and its change grow by three deviations of the noise in unit time, sqrt(sum_j g_j^2).

    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", II.4; with noise:
    C. Rackauckas, Q. Nie, "Adaptive methods for stochastic differential equations via natural
    embeddings and rejection sampling with memory", DCDS-B 22 (2017).
    """
    span, eq, scale = plan.span, sided(plan, plan.span.t0), plan.scale
    assert scale is not None
    clock = span.clock
    with torch.no_grad():
        y = y.detach()
        here = moments(span.t0, span.t0 * 0, START, eq.layout)[0]
        slope = eq.drift(here, y) if slope is None else slope.detach()
        noise = _strength(plan, here, y)
        d0, d1 = clock.read(scale(y, y, y)), clock.read(scale(_with(slope, noise), y, y))
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h = clock.where(small, 1e-6, 0.01 * d0 / clock.where(small, 1.0, d1))
        h = clock.minimum(h, abs(span.t1 - span.t0))
        h = clock.where(clock.isfinite(h), h, 1e-6)
        signed = clock.where(span.t1 < span.t0, -h, h)
        (factor,) = factors(END, signed, y)
        ahead, there = scaled_sum(y, factor, slope), moments(span.t0, signed, END, eq.layout)[0]
        change = eq.drift(there, ahead) - slope
        if noise is not None:
            later = _strength(plan, there, ahead)
            change = _with(change, None if later is None else later - noise)
        d2 = clock.read(scale(change, y, y)) / clock.where(h > 0, h, 1.0)
    steep = clock.maximum(d1, d2)
    steep = clock.where(clock.isfinite(steep), steep, 1e10)
    power = 1 / (plan.solver.estimate(eq.kind) or 1)
    rest = clock.maximum(h * 1e-3, 1e-6)
    h1 = clock.where(steep <= 1e-15, rest, (0.01 / clock.maximum(steep, 1e-15)) ** power)
    return clock.minimum(clock.minimum(100 * h, h1), abs(span.t1 - span.t0))


def _strength(plan: Plan, t: Tensor, y: Tensor) -> Tensor | None:
    """Deviation of the noise in unit time."""
    eq = plan.equation
    return None if eq.kind is None or eq.noise is None else eq.kind.strength(eq.diffusion(t, y))


def _with(drift: Tensor, noise: Tensor | None) -> Tensor:
    return drift if noise is None else drift.abs() + 3 * noise.abs()
