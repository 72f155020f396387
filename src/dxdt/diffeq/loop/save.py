"""What to keep of a solve, and the bookkeeping that serves it from accepted steps.

Every request is served from the step that contains it: at the step's end the value itself,
inside it the solver's dense output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.tree import Tree

__all__ = ["Pairs", "Save", "SaveTimes", "interpolate", "polynomial"]


@dataclass(frozen=True, eq=False)
class Save:
    """What a solution keeps. Values come in this order: start, times or steps, end.

    Args:
        start: the initial value.
        end: the final value.
        times: values at these times ``(T,)``, or ``(T, B)`` with one column a sample, within the
            span and in its direction; repeated times are allowed.
        steps: the value after every accepted step; samples that took fewer steps hold NaN.
        every: with ``steps``, only after every n-th accepted step.
        dense: the whole path, as ``Solution.path``.
        fn: function ``(t, y, *args)`` whose values are kept instead of ``y``.
    """

    start: bool = False
    end: bool = False
    times: Any = None
    steps: bool = False
    every: int = 1
    dense: bool = False
    fn: Callable[..., Tree] | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Save(every={self.every}): keep every n-th step with n >= 1")
        if self.every > 1 and not self.steps:
            raise ValueError("Save(every=...) has no steps to choose from: add steps=True")
        if not (self.start or self.end or self.steps or self.dense or self.times is not None):
            raise ValueError("Save() keeps nothing: ask for start, end, times, steps or dense")
        if self.steps and self.times is not None:
            raise ValueError("Save(steps=True, times=...): ask for one of them, or for dense output and evaluate it")


class Pairs(NamedTuple):
    """Save requests that lie in one step.

    Attributes:
        number: which request of the row, ``(P,)``.
        row: which row, ``(P,)``.
        theta: position in the step, in (0, 1], float64 on the host.
        t: the requested times.
    """

    number: np.ndarray
    row: np.ndarray
    theta: np.ndarray
    t: np.ndarray


@dataclass
class SaveTimes:
    """Requests at given times, taken in order by each row.

    Attributes:
        times: ``(T, R)`` or ``(T, 1)``, in the direction of each row.
        sign: direction of time, ``(R,)``.
        next: first request of each row that is still open.
    """

    times: np.ndarray
    sign: np.ndarray
    next: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def begin(self, t0: np.ndarray) -> np.ndarray:
        """Skip requests at the start; returns how many, per row."""
        self.next = np.zeros(len(self.sign), dtype=np.int64)
        self._take(t0)
        return self.next.copy()

    def take(self, t: np.ndarray, dt: np.ndarray, end: np.ndarray, ok: np.ndarray, whole: np.ndarray) -> Pairs | None:
        """Requests in (t, end] of the rows that accepted this step; ``whole`` rows end at t + dt."""
        before = self.next
        self._take(np.where(ok, end, -np.inf * self.sign))
        counts = self.next - before
        if not counts.any():
            return None
        row = np.repeat(np.arange(len(counts)), counts)
        index = np.concatenate([np.arange(a, b) for a, b in zip(before, self.next, strict=True) if b > a])
        wanted = self.times[index, row if self.times.shape[1] > 1 else 0]
        theta = np.where((wanted == end[row]) & whole[row], 1.0, (wanted - t[row]) / dt[row])
        return Pairs(index, row, theta, wanted)

    def reach(self, end: np.ndarray) -> None:
        """Take all requests up to ``end``, ``(R,)``."""
        self._take(end)

    def _take(self, end: np.ndarray) -> None:
        if not len(self.sign):
            return
        if self.times.shape[1] == 1 and (self.sign == self.sign[0]).all():
            ordered = self.times[:, 0] * self.sign[0]
            found = np.searchsorted(ordered, end * self.sign[0], side="right")
            self.next = np.maximum(self.next, found)
            return
        total, rows = len(self.times), np.arange(len(self.sign))
        column = rows if self.times.shape[1] > 1 else 0
        following = self.next.copy()
        while True:
            wanted = self.times[np.minimum(following, total - 1), column]
            due = (following < total) & (wanted * self.sign <= end * self.sign)
            if not due.any():
                break
            following = following + due
        self.next = following


def polynomial(dense: Tensor, theta: Tensor) -> Tensor:
    """sum_j c[j] theta^(j+1) for coefficients ``(degree, P or 1, n)`` and theta ``(P,)``."""
    theta = theta[:, None]
    *lower, value = dense.unbind(0)
    for c in reversed(lower):
        value = torch.addcmul(c, theta, value)
    return theta * value


def interpolate(y0: Tensor, y1: Tensor, dense: Tensor | None, theta: Tensor, exact: bool = True) -> Tensor:
    """Values at ``theta`` of steps with the given ends.

        y(theta) = y0 + sum_j c[j] theta^(j+1), and exactly y1 at theta = 1

    Args:
        y0, y1: ends, ``(P, n)`` or ``(1, n)``.
        dense: coefficients ``(degree, P or 1, n)``, or None where every theta is 1.
        theta: ``(P,)`` in the dtype of y.
        exact: return y1 itself at theta = 1 (its derivative for theta is then lost).
    """
    if dense is None:
        return y1.expand(theta.shape[0], -1)
    value = y0 + polynomial(dense, theta)
    return torch.where(theta[:, None] == 1, y1, value) if exact else value
