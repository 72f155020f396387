"""The tape of a solve that is walked back: when each accepted step began, and nothing else.

A step ended where the next accepted one of its row began, or where the solve did; its count and
whether it was the first or the last of its row follow from its place. Steps that did something else
than to go on (events, jumps of the field, rows that are muted) are kept whole; they are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from dxdt.diffeq.gradients.checkpointed import Taped
from dxdt.diffeq.loop.plan import NOTHING, Attempt, Carry, Point
from dxdt.diffeq.loop.saving import Request
from dxdt.diffeq.problem.status import Status
from dxdt.ops.times import Ticks

__all__ = ["Starts", "donor"]

_EMPTY = torch.empty(0)
_BLOCK = 64


def donor(ok: Ticks) -> int:
    """A row that took part in a step."""
    return int(np.flatnonzero(ok)[0])


@dataclass(eq=False)
class Starts:
    """Start of each accepted step ``(R,)``, NaN in rows that idle in it: 8 bytes a step and row.

    Attributes:
        rows: R.
        single: whether clocks are numbers instead of arrays.
        blocks: the starts, ``(64, R)`` each.
        requests: what was asked of a step, by its place.
        whole: steps that are kept whole, by their place.
    """

    rows: int
    single: bool
    length: int = 0
    blocks: list[np.ndarray] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)
    whole: dict[int, Attempt] = field(default_factory=dict)
    end: np.ndarray = field(init=False)
    counts: np.ndarray = field(init=False)
    arrived: np.ndarray = field(init=False)

    def __len__(self) -> int:
        return self.length

    def append(self, attempt: Attempt, request: Request | None) -> None:
        """Enter a step."""
        i, self.length = self.length, self.length + 1
        if i % _BLOCK == 0:
            self.blocks.append(np.empty((_BLOCK, self.rows)))
        t, dt, ok = attempt.at.t, attempt.at.dt, attempt.ok
        self.blocks[-1][i % _BLOCK] = np.where(ok, t, np.nan)
        if request is not None:
            self.requests[i] = request
        after_event = (attempt.fresh & ok & (attempt.index > 0)).any()
        moved = attempt.crossing is not None or attempt.jumped is not None or attempt.muted is not None
        if after_event or moved:
            if not ok.all():
                t, dt = np.where(ok, t, t[donor(ok)]), np.where(ok, dt, 0.0)
            light = Point(t, dt, _EMPTY, ())
            self.whole[i] = attempt._replace(at=light, step=NOTHING, origin=None)

    def close(self, carry: Carry) -> None:
        """Keep where the solve ended."""
        self.end = np.array(np.broadcast_to(carry.t, (self.rows,)), dtype=np.float64)
        self.counts = np.array(np.broadcast_to(carry.accepted, (self.rows,)), dtype=np.int64)
        self.arrived = np.array(np.broadcast_to(carry.status, (self.rows,))) == Status.SUCCESS.code

    def backwards(self) -> Iterator[tuple[int, Taped]]:
        """The steps from last to first, each with its place."""
        end, counts, arrives = self.end.copy(), self.counts.copy(), self.arrived.copy()
        for i in range(self.length - 1, -1, -1):
            start = self.blocks[i // _BLOCK][i % _BLOCK]
            ok = np.isfinite(start)
            counts = counts - ok
            attempt = self.whole.get(i) or self._attempt(start, end, ok, counts, arrives)
            yield i, Taped(attempt, self.requests.get(i))
            end, arrives = np.where(ok, start, end), arrives & ~ok

    def __iter__(self) -> Iterator[Taped]:
        """The steps from first to last; forms them all."""
        return iter([tape for _, tape in self.backwards()][::-1])

    def _attempt(
        self, t: np.ndarray, end: np.ndarray, ok: np.ndarray, index: np.ndarray, arrives: np.ndarray
    ) -> Attempt:
        last, fresh = ok & arrives, ok & (index == 0)
        dt = np.where(ok, _length(t, end, last), 0.0)
        t = np.where(ok, t, t[donor(ok)])
        clocks = (t, dt, ok, fresh, last, index)
        if self.single:
            t, dt, ok, fresh, last, index = (x[0] for x in clocks)
        at = Point(t, dt, _EMPTY, ())
        return Attempt(at, t + dt, ok, fresh, last, index, NOTHING, None, None, None)


def _length(t: np.ndarray, end: np.ndarray, last: np.ndarray) -> np.ndarray:
    """What added to t gives the end by the bit: a random path, asked beside it, would be another."""
    dt = end - t
    missed = (t + dt != end) & ~last
    if missed.any():
        for near in (np.nextafter(dt, np.inf), np.nextafter(dt, -np.inf)):
            dt = np.where(missed & (t + near == end), near, dt)
    return dt
