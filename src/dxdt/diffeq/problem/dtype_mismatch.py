"""What a field's error about dtypes means: which of weights, state and time has which dtype."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from dxdt.ops.reach import Reach
from dxdt.ops.tree import Layout

__all__ = ["explained"]

_MISMATCH = re.compile(r"same dtype|expected scalar type|expected .* dtype|to have the same dtype|dtypes? .*match")


def explained(error: RuntimeError, fields: tuple[Any, ...], args: Any, layout: Layout) -> Exception:
    """A TypeError that names the dtypes, where torch's error is about them; else the error as it is.

    A field with weights in float64 that is given a state in float32 fails deep inside of a product of matrices.
    """
    if not _MISMATCH.search(str(error)):
        return error
    weights = {x.dtype for m in Reach(*fields, args).modules for x in _tensors(m)} - set(layout.dtypes)
    state = " and ".join(sorted({str(d) for d in layout.dtypes}))
    name = "the field " + ", ".join(getattr(f, "__name__", type(f).__name__) for f in fields)
    if len(weights) == 1:
        (dtype,) = weights
        wanted = str(dtype).removeprefix("torch.")
        return TypeError(
            f"{name} has weights in {dtype} but the state is in {state}: give y0.to(torch.{wanted}), or convert "
            f"the module to the dtype of the state ({error})"
        )
    if layout.time_dtype is not layout.dtype:
        return TypeError(
            f"{name} mixes t, which is {layout.time_dtype} so far from zero, with values in {state}: "
            f"write t.to(y.dtype) after what needs its digits, measure time from t0, or give y0 in float64 ({error})"
        )
    return TypeError(f"{name} mixes dtypes; the state is in {state}, t in {layout.time_dtype} ({error})")


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    held = (*module.parameters(), *module.buffers())
    return [x for x in held if x.is_floating_point() or x.is_complex()]
