"""Parts of a compiled solve whose steps are taken by different rules, and what a solver carries through them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.methods.solver import Phase
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.signature import Form

__all__ = ["Kinds", "kinds_of", "phases_of", "renews"]

Kinds = tuple[tuple[torch.Size, torch.dtype], ...]
"""Shapes and dtypes of the tensors of a solver's state."""

_MOST = 256
_known: dict[Any, Kinds] = {}


def phases_of(plan: Plan) -> tuple[Phase, ...]:
    """The rules of the steps of a compiled solve, one after the other; the solver alone where all are alike."""
    return (() if renews(plan) else plan.solver.phases) or (Phase(plan.solver, None),)


def renews(plan: Plan) -> bool:
    """Whether the solver's state may be renewed on the way, row by row."""
    return plan.controller.jumps or (plan.watch is not None and any(e.reset is not None for e in plan.watch.events))


def kinds_of(plan: Plan, y: Tensor) -> Kinds:
    """Shapes and dtypes of the solver's state, found by forming one."""
    rows = plan.equation
    key = plan.solver, rows.layout, Form.of(rows), identified(plan), plan.dense
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        with torch.no_grad():
            state = plan.solver.init(replace(rows, meter=None), plan.span.t0, y, plan.dense)
        _known[key] = tuple((x.shape, x.dtype) for x in state)
    return _known[key]
