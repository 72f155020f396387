"""What a program of a solve is called with, besides the state: times, tables, tolerances, limits and noise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.compiler.open_sizes import leave_open
from dxdt.diffeq.loop.plan import Plan

__all__ = ["Inputs", "inputs_of", "tables", "tensor"]


class Inputs(NamedTuple):
    """What a program is called with, besides the state; ``room`` attempts are made in one call."""

    t0: Tensor
    t1: Tensor
    table: Any
    atol: Tensor | None
    rtol: Tensor | None
    limit: Tensor
    room: Tensor | None
    noise: Any


def tensor(values: Any, like: Tensor) -> Tensor:
    """Times or steps of the host as a vector beside the data."""
    host = torch.from_numpy(np.array(values, dtype=np.float64, ndmin=1))
    return host if like.device.type == "cpu" else host.to(like.device)


@lru_cache(maxsize=256)
def _limit(value: int, device: torch.device) -> Tensor:
    """A number of attempts as an input; no program writes into its inputs but the records."""
    return torch.tensor(value, dtype=torch.int64, device=device)


@lru_cache(maxsize=256)
def _tolerance(which: str, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tolerance for all of a row, as an input.

    Equal ones are tensors of their own, or a program would hold them for one. They have an axis,
    because conditions on numbers are looked at in Python.
    """
    return torch.full((1,), value, dtype=dtype, device=device)


def inputs_of(plan: Plan, table: Any, y: Tensor) -> Inputs:
    """Those of a plan, before the first attempts."""
    atol = rtol = None
    if plan.scale is not None:
        atol, rtol = (
            v.to(y) if isinstance(v, Tensor) else _tolerance(name, v, y.dtype, y.device)
            for name, v in zip(("atol", "rtol"), plan.scale, strict=False)
        )
    span = plan.span
    limit = _limit(plan.max_steps, y.device)
    if table is not None:
        table = tables(table, y)
    return Inputs(
        tensor(span.t0, y),
        tensor(span.t1, y),
        table,
        atol,
        rtol,
        limit,
        None,
        None,
    )


def tables(values: Any, like: Tensor) -> Any:
    """The times of a grid, or the lists of times that ``Clip`` has and those of the rule in it."""
    if isinstance(values, tuple):
        return tuple(None if x is None else tables(x, like) for x in values)
    times = tensor(values, like)
    if times.dim() > 1:
        leave_open(times, 0)  # a grid of another length runs the same program
    return times
