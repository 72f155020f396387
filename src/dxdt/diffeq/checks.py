"""Whether what a solve was given fits together; if not, the remedy."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller
from dxdt.diffeq.control.revisit import Revisit
from dxdt.diffeq.gradients.gradient import Direct, Gradient
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.equation import Equation, Ito, StochasticEquation
from dxdt.diffeq.problem.span import Interval
from dxdt.diffeq.vmap import has_values
from dxdt.ops.tree import Layout

__all__ = ["check_export", "check_noise", "check_span", "check_values"]

_LONGEST = torch.finfo(torch.float32).max


def check_noise(equation: Equation, solver: Solver, driver: Any, controller: Controller, dt: Any) -> Controller:
    """Raise TypeError or ValueError, with the remedy, unless these can solve the equation.

    Returns the controller, made to revisit where noise that does not commute needs it.
    """
    name = type(solver).__name__
    if not isinstance(equation, StochasticEquation):
        if solver.facts.stochastic:
            raise ValueError(
                f"{name} solves stochastic equations: use dxdt.Tsit5() for an ODE, "
                f"or give the equation its noise as dxdt.SDE(f, g)"
            )
        return controller
    claims = solver.facts.noise
    if claims is None:
        raise ValueError(
            f"{name} solves equations without noise: use dxdt.EulerMaruyama() for an Ito SDE, "
            f"or dxdt.StochasticHeun() for a Stratonovich one"
        )
    if not claims.admits(equation.noise):
        kinds = ", ".join(kind.__name__ for kind in claims.noises)
        raise ValueError(
            f"{name} is made for {kinds} noise but the equation has {equation.noise!r}: "
            f"use dxdt.EulerMaruyama(), dxdt.Milstein() or dxdt.StochasticHeun()"
        )
    if not claims.converges(equation):
        has = type(equation.calculus).__name__
        want = " or ".join(kind.__name__ for kind in claims.calculus)
        convert = "to_stratonovich" if has == Ito.__name__ else "to_ito"
        raise ValueError(
            f"{name} converges to {want} solutions but the equation is {has}: "
            f"solve dxdt.{convert}(equation), or use a solver for {has} equations"
        )
    _check_driver(name, claims, driver, controller)
    if not controller.adaptive:
        return controller
    if equation.noise.commutative or isinstance(controller, Revisit):
        return controller
    return Revisit(controller)


def _check_driver(name: str, claims: Noisy, driver: Any, controller: Controller) -> None:
    if driver is None:
        raise ValueError("a stochastic solve has no driver: give driver=dxdt.Brownian(seed=0)")
    kind = type(driver).__name__
    if isinstance(driver, type) or not hasattr(driver, "bind"):
        what = driver.__name__ if isinstance(driver, type) else kind
        raise TypeError(f"driver is {what}, not a random path: give dxdt.Brownian(seed=0)")
    if claims.levy is not None and driver.levy is None:
        raise ValueError(
            f"{name} needs space-time Levy areas, which this {kind} does not give: "
            f"give driver=dxdt.{kind}(seed, dxdt.SpaceTime)"
        )
    if driver.adaptive:
        return
    if controller.adaptive:
        raise ValueError(
            f"{kind} draws the increments of a known grid but {type(controller).__name__} chooses "
            f"its steps: give driver=dxdt.Brownian(seed), or dt without a controller"
        )
    if claims.inside:
        raise ValueError(
            f"{name} asks for the noise of parts of a step, which {kind} does not give: give driver=dxdt.Brownian(seed)"
        )


def check_export(controller: Controller, event: Any, gradient: Gradient) -> None:
    """Refuse what looks at values where an export records operations that have none."""
    reads = "events" if event is not None else type(controller).__name__ if controller.adaptive else None
    if reads is not None:
        raise ValueError(
            f"torch.export records a solve step by step, and {reads} would look at values, which an export has not: "
            f"give dt without a controller, or a grid of times, and no events"
        )
    if not isinstance(gradient, Direct):
        raise ValueError(
            f"torch.export records no backward pass by {type(gradient).__name__}: leave gradient= out of the export"
        )


def check_span(interval: Interval, layout: Layout, event: Any, stochastic: bool) -> None:
    """Raise ValueError for a span that the state's dtype cannot hold, or that nothing ends."""
    longest = float(np.abs(interval.t1 - interval.t0).max(initial=0.0))
    if layout.dtype != torch.float64 and _LONGEST < longest < float("inf"):
        raise ValueError(f"t spans {longest:g}, more than float32 holds: give y0 in float64, or another unit of time")
    if np.isfinite(interval.t1).all():
        return
    if event is None:
        raise ValueError("t1 is infinite and no event ends the solve: give event=dxdt.Event(...), or a finite t1")
    if stochastic:
        raise ValueError(
            "t1 is infinite, and a random path needs a finite span: give a t1 beyond which you do not look"
        )


def check_values(y: Tensor, max_steps: int, equation: Equation) -> None:
    """Raise for a state that is not finite, or what is no equation."""
    if y.is_meta:
        raise ValueError("y0 is on the meta device, which holds no values: make it on a real device")
    # The sum tells in one operation that all is well; where it does not, it may have overflowed by itself.
    if has_values(y) and not isfinite(y.detach().sum()) and not bool(torch.isfinite(y.detach()).all()):
        raise ValueError("y0 has values that are not finite: remove or replace them before the solve")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: give at least 1")
    if not isinstance(equation, Equation):
        raise TypeError(
            f"solve was given a {type(equation).__name__}, not an equation: wrap your field as dxdt.ODE(field)"
        )
