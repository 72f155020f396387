"""A field that mixes the clocks of rows, which no shape gives away where there are as many rows as features.

With a clock for each sample the field is shown times ``(B,)`` and a state ``(B, n)``. For B = n the product ``t * y``
has a value, but of each feature with the clock of another row: ``t[:, None] * y`` is meant.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.probe import untouched
from dxdt.diffeq.vmap import has_values
from dxdt.ops.tree import Layout

__all__ = ["tell_mixed_clocks"]

_looked: set[Any] = set()


def tell_mixed_clocks(plan: Plan, y: Tensor) -> None:
    """Warn, once for each field, if the value of a row changes with the time of another one.

    The field is looked at twice, at the start and with the clock of one row moved; nothing of that is counted.
    """
    layout = plan.equation.layout
    if not _ambiguous(layout) or not has_values(y):
        return
    field = plan.equation.equation.fields[0] if plan.equation.equation.fields else plan.equation.equation
    key = getattr(field, "__code__", None) or type(field), layout.rows
    if key in _looked:
        return
    _looked.add(key)
    start = torch.as_tensor(plan.span.t0, dtype=torch.float64, device=y.device)
    moved = start.clone()
    moved[0] += 0.1 * (float(plan.span.t1[0]) - float(plan.span.t0[0]))
    equation = replace(plan.equation, meter=None)
    try:
        with untouched(plan):
            before, after = (equation.drift(t, y.detach())[1:] for t in (start, moved))
    except Exception:  # what is wrong with the field is said by the solve
        return
    if bool(((after - before).abs() > 1e-5 * (1 + before.abs())).any()):
        name = getattr(field, "__qualname__", type(field).__qualname__).replace(".<locals>", "")
        warnings.warn(
            f"{name} mixes the clocks of its {layout.rows} rows: a row's value changes with the time of another; with "
            "per_sample=True t is (batch,), so write t[:, None] * y where a time meets features",
            RuntimeWarning,
            stacklevel=3,
        )


def _ambiguous(layout: Layout) -> bool:
    """Whether times (B,) fit the last axis of a leaf, its batch apart."""
    if not layout.per_sample or layout.rows < 2:
        return False
    return any(len(shape) > 0 and shape[-1] == layout.rows for shape in layout.shapes)
