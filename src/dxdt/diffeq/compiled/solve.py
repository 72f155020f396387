"""The front door of compiled solves: which program answers for which gradient, or why none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dxdt.compiler.explain import CannotCompile, NotForAllSizes
from dxdt.compiler.slow_build import working_on
from dxdt.diffeq.compiled.backsolve import backsolved
from dxdt.diffeq.compiled.checkpointed import recomputed
from dxdt.diffeq.compiled.forward import run_compiled
from dxdt.diffeq.compiled.reversible import walked_back
from dxdt.diffeq.gradients.gradient import Compiled, Gradient, Inputs, Outcome, Problem
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.programs.eager_fallback import name_of, warn_once
from dxdt.diffeq.programs.scalars import keep_numbers, lift
from dxdt.diffeq.programs.signature import fields_of

__all__ = ["compiled"]

_WAYS = Compiled(stored=recomputed, reversed=walked_back, adjoint=backsolved)


def compiled(plan: Plan, inputs: Inputs, gradient: Gradient | None, dt: Any, recorder: Recorder) -> Outcome | None:
    """The outcome of a compiled solve, or None (and one warning) where there is no compiled form."""
    equation = plan.equation.equation
    with working_on(f"the solve of {name_of(fields_of(equation) or equation)}"):
        return _tried(plan, inputs, gradient, dt, recorder)


def _tried(plan: Plan, inputs: Inputs, gradient: Gradient | None, dt: Any, recorder: Recorder) -> Outcome | None:
    lifted = lift(plan, inputs.y)
    try:
        if lifted is not plan:
            return _run(lifted, replace(inputs, args=lifted.equation.args), gradient, dt, recorder)
    except CannotCompile:
        keep_numbers(plan)
    try:
        return _run(plan, inputs, gradient, dt, recorder)
    except CannotCompile as error:
        equation = plan.equation.equation
        warn_once(str(error), fields_of(equation) or equation)
        return None


def _run(plan: Plan, inputs: Inputs, gradient: Gradient | None, dt: Any, recorder: Recorder) -> Outcome:
    try:
        return _once(plan, inputs, gradient, dt, recorder)
    except NotForAllSizes:
        # From now on each size has a program of its own.
        return _once(plan, inputs, gradient, dt, recorder)


def _once(plan: Plan, inputs: Inputs, gradient: Gradient | None, dt: Any, recorder: Recorder) -> Outcome:
    if gradient is not None and gradient.shows:
        raise CannotCompile("callbacks that see every step have no compiled form")
    if torch.is_grad_enabled() and (any(x.requires_grad for x in inputs.tensors()) or _events_differ(plan, inputs)):
        problem = Problem(plan, inputs, dt, recorder)
        outcome = _WAYS.stored(None, problem) if gradient is None else gradient.compiled(_WAYS, problem)
        if outcome is None:
            raise CannotCompile(f"{gradient} has no compiled form; Checkpointed(), Reversible() and Backsolve() have")
        return outcome
    return run_compiled(plan, inputs.y, dt, recorder)


def _events_differ(plan: Plan, inputs: Inputs) -> bool:
    """Whether events depend on something of their own that requires a gradient."""
    return plan.watch is not None and any(x.requires_grad for x in plan.watch.probe(plan.span.t0, inputs.y))
