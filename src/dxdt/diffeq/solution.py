"""What comes out of a solve: times, values, what happened to each sample, counts, a dense path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.problem.status import Status
from dxdt.ops.tree import Tree, tree_map

__all__ = ["Solution", "SolveError", "Stats"]


class SolveError(RuntimeError):
    """A solve that failed; ``solution`` holds what it had reached.

    Attributes:
        solution: the partial solution, NaN where it was not reached.
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made again from their message alone, without which a pool would wait for ever.
        return type(self), (*self.args, self.solution)


@dataclass(frozen=True)
class Stats:
    """Counts of a solve.

    Attributes:
        steps: attempted steps, ``(B,)`` per sample, else a number.
        accepted: accepted steps.
        rejected: rejected steps.
        evaluations: calls of the drift, the whole batch being one call.
    """

    steps: Any
    accepted: Any
    rejected: Any
    evaluations: int


@dataclass(frozen=True)
class Solution:
    """A solution.

    Attributes:
        ts: times of the saved values, float64 ``(T,)``, or ``(T, B)`` per sample.
        ys: saved values ``(T, *y.shape)`` in each leaf's dtype; NaN where a sample did not arrive.
        status: one ``Status``, or a list with one for each sample.
        stats: counts.
        reached: ``(T,)`` or ``(T, B)``, whether the value was reached.
        path: dense output as a ``Path`` (with ``Save(dense=True)``).
        t1: time at which each sample ended, ``()`` or ``(B,)``: differentiable at an event.
        events: times of events, ``(K,)`` or ``(K, B)``, NaN where a sample had fewer; None without.
        which: which event each was, -1 where there was none.
    """

    ts: Tensor
    ys: Tree
    status: Any
    stats: Stats
    reached: Tensor
    path: Any = None
    t1: Tensor | None = None
    events: Tensor | None = None
    which: Tensor | None = None

    @property
    def y1(self) -> Tree:
        """The last saved value of each leaf (the end of the span, by default; the end of the path, where that alone
        is kept)."""
        if self.ys is None and self.path is not None:
            ends = self.t1 if self.t1 is None or self.t1.dim() == 0 else self.t1[None]
            value = self.path(ends)
            return value if ends is None or ends.dim() == 0 else tree_map(lambda leaf: leaf[0], value)
        return tree_map(lambda leaf: leaf[-1], self.ys)

    @property
    def ok(self) -> Any:
        """Whether the solve, or each sample of it, ended as asked."""
        return self.status.ok if isinstance(self.status, Status) else torch.tensor([s.ok for s in self.status])

    def __repr__(self) -> str:
        ended = (
            self.status
            if isinstance(self.status, Status)
            else f"{sum(s.ok for s in self.status)}/{len(self.status)} ok"
        )
        shapes = None if self.ys is None else tree_map(lambda leaf: tuple(leaf.shape), self.ys)
        steps, evaluations = _short(self.stats.accepted), self.stats.evaluations
        return f"Solution(ys={shapes}, status={ended}, steps={steps}, evaluations={evaluations})"


def _short(counts: Any) -> str:
    values = np.asarray(counts)
    return str(int(values)) if values.ndim == 0 else f"{values.min()}..{values.max()}"
