"""Cotangents of times in a compiled solve: of the ends of the span, and of the times of saved values.

Inner times are constants. A row's first accepted step runs from t0 to a constant, its last from a
constant to t1, and a saved value stands at theta = (time - t) / dt of its step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import beside, from_host
from dxdt.solve.compiled import Asked
from dxdt.solve.engine import Records
from dxdt.solve.gradient import Inputs
from dxdt.solve.plan import Plan
from dxdt.solve.reverse_chunk import any_length, room

__all__ = ["TimeCotangents"]


@dataclass
class TimeCotangents:
    """What the steps of the chunks, from last to first, give to times.

    Attributes:
        inputs: of the solve.
        t1: where the span ends, ``(R,)``.
        before: steps that rows had accepted before each chunk that is still to come.
        t0, end, moments: cotangents found so far.
    """

    inputs: Inputs
    t1: np.ndarray
    before: list[np.ndarray]
    t0: Tensor
    end: Tensor
    moments: Tensor | None
    _fresh: np.ndarray = field(init=False)
    _last: np.ndarray = field(init=False)
    _records: Records = field(init=False)
    _direct: tuple[Tensor, Tensor] = field(init=False)

    @classmethod
    def of(cls, inputs: Inputs, plan: Plan, tape: list[tuple[Records, int]]) -> TimeCotangents | None:
        """None where no gradient for a time is wanted."""
        if inputs.ends is None and inputs.moments is None:
            return None
        t1, before = np.atleast_1d(plan.span.t1), list[np.ndarray]()
        total = np.zeros(len(t1), dtype=np.int64)
        for records, count in tape:
            before.append(total)
            total = total + (records.dt[:count].numpy() != 0).sum(0)
        zero = torch.zeros(len(t1), dtype=torch.float64, device=inputs.y.device)
        moments = None if inputs.moments is None else torch.zeros_like(inputs.moments)
        return cls(inputs, t1, before, zero, zero, moments)

    def turn(self, records: Records, count: int) -> None:
        """Look at the chunk before."""
        dt = records.dt[:count]
        ok = dt.numpy() != 0
        self._records = records
        self._fresh = ok & (self.before.pop() + np.cumsum(ok, axis=0) == 1)
        self._last = ok & (records.end[:count].numpy() == self.t1)
        self._direct = torch.zeros_like(dt, device=records.y.device), torch.zeros_like(dt, device=records.y.device)

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
        """Which of the attempts ``kept`` begin at t0, and which end at t1."""
        size = room(len(kept), self.t0.device)
        rest = np.zeros((size - len(kept), len(self.t1)), dtype=bool)
        fresh, last = beside(self.t0, *(np.concatenate([x[kept], rest]) for x in (self._fresh, self._last)))
        any_length((fresh, last))
        return fresh, last

    def enter(self, start: Tensor, end: Tensor) -> None:
        """Add what the program found for t0 and t1, ``(R,)`` each, and what saved values say of them."""
        begun, length = self._direct
        fresh, last = beside(begun, self._fresh, self._last)
        self.t0 = self.t0 + start + torch.where(fresh, begun - length, 0.0).sum(0)
        self.end = self.end + end + torch.where(last, length, 0.0).sum(0)

    def found(self) -> list[Tensor | None]:
        """The cotangents in the order of the inputs."""
        ends = [] if self.inputs.ends is None else [self.t0, self.end]
        return [*ends, *([] if self.moments is None else [self.moments])]
