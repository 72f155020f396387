"""The loop of all iterations, written once.

Rows end by themselves: one that has converged, or cannot go on, is kept by selection while the others iterate,
so that what it holds does not depend, by the bit, on what they do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dxdt.implicit.method import RUNNING, Method, Status
from dxdt.implicit.problem import Problem
from dxdt.ops.host import any_true

__all__ = ["Found", "iterate"]

_SUCCESS, _MAXED, _NOT_FINITE = Status.SUCCESS.code, Status.MAX_STEPS.code, Status.NOT_FINITE.code


class Found(NamedTuple):
    """Where an iteration ended.

    Attributes:
        y: last iterate, ``(R, n)``; of rows that did not converge, the one that came nearest.
        size: its distance in units of the tolerance, ``(R,)``.
        status: codes, ``(R,)``.
        steps: iterations, ``(R,)``.
    """

    y: Tensor
    size: Tensor
    status: Tensor
    steps: Tensor


def iterate(problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
    """Iterate until no row runs, or ``max_steps`` times."""
    state = method.init(problem, y)
    status = torch.zeros(y.shape[0], dtype=torch.int64, device=y.device)
    steps, size = status, torch.full(y.shape[:1], float("inf"), dtype=y.dtype, device=y.device)
    best, least = y, size
    for _ in range(max_steps):
        running = status == RUNNING
        new = method.step(problem, y, state)
        finite = torch.isfinite(new.y).all(-1)
        ok = running & finite
        failed = torch.where(finite, RUNNING, _NOT_FINITE)
        if new.failed is not None:
            failed = torch.where(new.failed == RUNNING, failed, new.failed)
            ok = ok & (new.failed == RUNNING)
        y, state = _chosen(ok, new.y, y), tuple(_chosen(ok, a, b) for a, b in zip(new.state, state, strict=True))
        size, steps = torch.where(ok, new.size.to(size.dtype), size), steps + running
        # What came nearest is kept, because an iteration may lead away again before it is stopped.
        nearer = ok & (size <= least)
        best, least = _chosen(nearer, y, best), torch.where(nearer, size, least)
        status = torch.where(running, torch.where(ok & (size <= 1), _SUCCESS, failed), status)
        if not any_true(status == RUNNING):
            break
    status = torch.where(status == RUNNING, _MAXED, status)
    done = status == _SUCCESS
    return Found(_chosen(done, y, best), torch.where(done, size, least), status, steps)


def _chosen(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(mask.shape + (1,) * (new.dim() - 1)), new, old)
