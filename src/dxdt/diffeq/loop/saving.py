"""What the observers of a loop keep: which requests lie in a step, and the values that answer them.

The bookkeeping (which step, which row, where in the step) is made once, on the host; the values are
a pure function of the step and that bookkeeping, so that a gradient can form them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Attempt, Carry, Plan
from dxdt.diffeq.loop.save import Pairs, SaveTimes, interpolate
from dxdt.diffeq.loop.step import attach
from dxdt.ops.times import Ticks, from_host

__all__ = ["Recorder", "Request", "Served"]


class Request(NamedTuple):
    """What is wanted of one accepted step.

    Attributes:
        pairs: given times inside it.
        rows: rows whose value at its end is wanted, or None.
    """

    pairs: Pairs | None
    rows: np.ndarray | None


class Served(NamedTuple):
    """Answers of one step.

    Attributes:
        values: requested values ``(P, n)``.
        coefficients: for a dense path, ``(degree, R, n)``.
        time: of events that were met, ``(R,)``.
    """

    values: Tensor | None
    coefficients: Tensor | None
    time: Tensor | None


@dataclass
class Recorder:
    """Requests of a solve and where their answers go.

    Attributes:
        times: requests at given times.
        every: keep the value after every n-th accepted step; 0 for never.
        dense: keep the path.
        moments: the given times as a differentiable tensor ``(T, R)`` or ``(T, 1)``, or None.
        index, row, t: for each answer its place and time, one array a step.
        starts, lengths, ends: clocks of the steps of the path.
        crossings: events that were met, one array of their numbers a step, -1 for none.
    """

    times: SaveTimes | None = None
    every: int = 0
    dense: bool = False
    moments: Tensor | None = None
    index: list[np.ndarray] = field(default_factory=list)
    row: list[np.ndarray] = field(default_factory=list)
    t: list[np.ndarray] = field(default_factory=list)
    starts: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    ends: list[np.ndarray] = field(default_factory=list)
    crossings: list[np.ndarray] = field(default_factory=list)

    @property
    def wants(self) -> bool:
        """Whether anything but the end of the solve is asked for."""
        return self.times is not None or self.every > 0 or self.dense

    def request(self, carry: Carry, attempt: Attempt) -> Request | None:
        """What is wanted of a step; enters its place in the books."""
        if not attempt.ok.any():
            return None
        crossing = attempt.crossing
        if crossing is not None:
            self.crossings.append(np.atleast_1d(crossing.which))
        if not self.wants:
            return None if crossing is None else Request(None, None)
        ok, t, dt, end, accepted = np.atleast_1d(attempt.ok, attempt.at.t, attempt.at.dt, attempt.end, carry.accepted)
        if self.dense:
            self.starts.append(np.where(ok, t, end))
            self.lengths.append(np.where(ok, dt, 0.0))
            self.ends.append(np.array(end))
        pairs = rows = None
        if self.times is not None:
            whole = ok if crossing is None else ~np.atleast_1d(crossing.rows)
            pairs = self.times.take(t, dt, end, ok, whole)
            if pairs is not None:
                self._enter(pairs.number, pairs.row, pairs.t)
        elif self.every:
            rows = np.flatnonzero(ok & (accepted % self.every == 0))
            self._enter(accepted[rows] // self.every - 1, rows, end[rows])
        if pairs is None and not self.dense and crossing is None and (rows is None or not len(rows)):
            return None
        return Request(pairs, rows)

    def serve(self, plan: Plan, attempt: Attempt, after: After, request: Request) -> Served:
        """The answers of a step."""
        at, step = attempt.at, attempt.step
        pairs, rows = request
        t, dt = attach(plan, attempt)
        needs = self.dense or (pairs is not None and (self.moments is not None or bool((pairs.theta < 1).any())))
        dense = plan.solver.dense(step, dt, at.y) if needs else None
        values = None
        if pairs is not None:
            values = self._at_times(pairs, t, dt, at.y, step.y, dense)
        elif rows is not None and len(rows):
            y = after.arrive
            values = y if len(rows) == y.shape[0] else y[torch.as_tensor(rows, device=y.device)]
        time = None
        if attempt.crossing is not None:
            time = after.origin
            if time is None:
                time = torch.as_tensor(attempt.end, device=at.y.device).reshape(-1)
        return Served(values, dense if self.dense else None, time)

    def _enter(self, index: np.ndarray, row: np.ndarray, t: np.ndarray) -> None:
        self.index.append(index)
        self.row.append(row)
        self.t.append(t)

    def _at_times(self, pairs: Pairs, t: Ticks, dt: Ticks, y0: Tensor, y1: Tensor, dense: Tensor | None) -> Tensor:
        if y0.shape[0] > 1:
            row = torch.as_tensor(pairs.row, device=y0.device)
            y0, y1 = y0[row], y1[row]
            dense = None if dense is None else dense[:, row]
        if self.moments is None and not isinstance(dt, Tensor):
            return interpolate(y0, y1, dense, from_host(pairs.theta, y0))
        return interpolate(y0, y1, dense, self._theta(pairs, t, dt, y0), exact=self.moments is None)

    def _theta(self, pairs: Pairs, t: Ticks, dt: Ticks, like: Tensor) -> Tensor:
        t, dt = (torch.as_tensor(x, device=like.device).reshape(-1)[pairs.row] for x in (t, dt))
        wanted = torch.as_tensor(pairs.t, device=like.device)
        if self.moments is not None:
            wanted = self.moments[pairs.number, pairs.row if self.moments.shape[1] > 1 else 0]
        whole = torch.as_tensor(pairs.theta == 1, device=like.device)
        theta = (wanted - t) / dt
        return (theta if self.moments is not None else torch.where(whole, 1.0, theta)).to(like.dtype)
