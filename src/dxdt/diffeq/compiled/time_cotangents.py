"""Cotangents of times in a compiled solve: of the ends of the span, and of the times of saved values.

Inner times are constants. A row's first accepted step runs from t0 to a constant, its last from a
constant to t1, and a saved value stands at theta = (time - t) / dt of its step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.compiled.forward import Asked, Read
from dxdt.diffeq.gradients.gradient import Inputs
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.programs.engine import Records
from dxdt.diffeq.programs.pullback import any_length, room
from dxdt.ops.times import beside, from_host

__all__ = ["TimeCotangents"]


@dataclass
class TimeCotangents:
    """What the steps of the chunks of a piece, from last to first, give to times.

    Attributes:
        t1: where the span ends, ``(R,)``.
        origin: cotangents found so far of where the present piece of each row began: of t0, or of its last event.
        end: those of t1.
        moments: those of the times of saved values, or None where none are wanted.
    """

    t1: np.ndarray
    origin: Tensor
    end: Tensor
    moments: Tensor | None
    _fresh: np.ndarray = field(init=False)
    _last: np.ndarray = field(init=False)
    _records: Records = field(init=False)
    _direct: tuple[Tensor, Tensor] = field(init=False)

    @classmethod
    def of(cls, inputs: Inputs, plan: Plan) -> TimeCotangents | None:
        """None where no gradient for a time is wanted."""
        goes_on = plan.watch is not None and plan.watch.goes_on
        if inputs.ends is None and inputs.moments is None and not goes_on:
            return None
        t1 = np.atleast_1d(plan.span.t1)
        zero = torch.zeros(len(t1), dtype=torch.float64, device=inputs.y.device)
        moments = None if inputs.moments is None else torch.zeros_like(inputs.moments)
        return cls(t1, zero, zero, moments)

    def turn(self, read: Read) -> None:
        """Look at the chunk before."""
        self._records = read.kept
        dt = self._records.dt
        ok = dt.numpy() != 0
        self._fresh = ok & (read.accepted - read.since + np.cumsum(ok, axis=0) == 1)
        self._last = ok & (self._records.end.numpy() == self.t1)
        if read.met is not None:
            row = np.flatnonzero(read.met.last)
            self._last[read.met.slot[row], row] = True
        device = self._records.y.device
        self._direct = torch.zeros_like(dt, device=device), torch.zeros_like(dt, device=device)

    def answer(self, asked: Asked, g: Tensor) -> None:
        """Saved values: their place in a step moves with their own time and with the step."""
        if asked.ends or not len(asked.slot):
            return
        moves = np.ones(len(asked.slot), dtype=bool) if self.moments is not None else asked.theta < 1
        if not moves.any():
            return
        places = asked.slot[moves], asked.row[moves]
        length = self._records.dt.numpy()[places]
        slot, row, dt, some, place, index = beside(g, *places, length, moves, asked.theta[moves], asked.request[moves])
        theta, coefficients = from_host(asked.theta[moves], g)[:, None], self._records.coefficients
        assert coefficients is not None
        slope = torch.zeros_like(g[some])
        for j in reversed(range(coefficients.shape[1])):
            slope = slope * theta + (j + 1) * coefficients[slot, j, row]
        turned = (g[some] * slope).sum(-1).to(torch.float64) / dt
        self._direct[0].index_put_((slot, row), -turned, accumulate=True)
        self._direct[1].index_put_((slot, row), -turned * place, accumulate=True)
        if self.moments is not None:
            column = row if self.moments.shape[1] > 1 else row * 0
            self.moments.index_put_((index, column), turned, accumulate=True)

    def masks(self, kept: np.ndarray) -> tuple[Tensor, Tensor]:
        """Which of the attempts ``kept`` begin, and which end, at a differentiable time."""
        size = room(len(kept), self.origin.device)
        rest = np.zeros((size - len(kept), len(self.t1)), dtype=bool)
        fresh, last = beside(self.origin, *(np.concatenate([x[kept], rest]) for x in (self._fresh, self._last)))
        any_length((fresh, last))
        return fresh, last

    def enter(self, start: Tensor, end: Tensor) -> None:
        """Add what the program found, ``(R,)`` each, and what saved values say."""
        begun, length = self._direct
        fresh, last = beside(begun, self._fresh, self._last)
        self.origin = self.origin + start + torch.where(fresh, begun - length, 0.0).sum(0)
        self.end = self.end + end + torch.where(last, length, 0.0).sum(0)

    def found(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The cotangents of origin, end and moments."""
        return self.origin, self.end, self.moments
