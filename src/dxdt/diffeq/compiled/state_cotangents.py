"""Cotangents of the state of a solver that remembers, on their way back through the chunks of a solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.compiled.forward import Read
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.step import beyond
from dxdt.diffeq.programs.pullback import Found, Memory
from dxdt.diffeq.programs.starters import kinds_of, phases_of
from dxdt.ops.times import beside

__all__ = ["Memories"]


@dataclass
class Memories:
    """What enters the programs of the chunks, from last to first.

    Attributes:
        before: steps that the quickest row had accepted before each chunk that is still to come.
        untils: steps at which each phase of the solve but the last ends.
        state: cotangents found so far.
        start: where the solve began: times ``(R,)`` and states ``(R, n)``; rows that never moved stand by another.
    """

    before: list[int]
    untils: list[int]
    state: tuple[Tensor, ...]
    start: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, plan: Plan, y: Tensor, tape: Sequence[Read]) -> Memories:
        """At the end of a solve."""
        before, total = list[int](), np.zeros(y.shape[0], dtype=np.int64)
        for read in tape:
            before.append(int(total.max()))
            total = total + (read.kept.dt.numpy() != 0).sum(0)
        rows = np.where(total > 0, np.arange(len(total)), int(total.argmax()))
        t0, source = beside(y, np.atleast_1d(beyond(plan, plan.span.t0))[rows], rows)
        zeros = tuple(torch.zeros(size, dtype=dtype, device=y.device) for size, dtype in kinds_of(plan, y))
        untils = [phase.until for phase in phases_of(plan) if phase.until is not None]
        return cls(before, untils, zeros, (t0, y.detach()[source]))

    def turn(self) -> Memory:
        """What the program of the chunk before is given."""
        taken = self.before.pop()
        numbers = [*(max(0, until - taken) for until in self.untils), not self.before]
        *bounds, first = (torch.tensor(x, device=self.start[0].device) for x in numbers)
        return Memory(self.state, *self.start, first, tuple(bounds))

    def enter(self, found: Found) -> None:
        """What that program found."""
        self.state = found.state
