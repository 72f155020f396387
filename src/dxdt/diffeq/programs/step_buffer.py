"""Where a compiled solve writes its steps down."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dxdt.diffeq.programs.starters import Kinds

__all__ = ["Records"]


class Records(NamedTuple):
    """Accepted steps, one slot an attempt: clocks ``(K, R)``, starts ``(K, R, n)``, coefficients
    ``(K, degree, R, n)``, and solver states ``(K, R, ...)`` where they are wanted; dt is zero where a row
    did not accept. ``clocks`` are the step and the controller's state before each attempt,
    ``(K, 1 + state_size, R)``, where they may be asked for. Once they are made, t, dt and end are on the host."""

    t: Tensor
    dt: Tensor
    end: Tensor
    y: Tensor
    coefficients: Tensor | None
    states: tuple[Tensor, ...] = ()
    clocks: Tensor | None = None

    @classmethod
    def empty(cls, slots: int, degree: int, y: Tensor, kinds: Kinds, clocks: int = 0) -> Records:
        """Room for so many attempts, with coefficients up to a degree, states of such kinds and so many clocks."""
        # Tensors of their own, not views of one: programs write into them, each slot that is used whole.
        clock, shape = (slots, y.shape[0]), tuple(y.shape)
        t, dt, end = (torch.empty(clock, dtype=torch.float64, device=y.device) for _ in range(3))
        starts = torch.empty((slots, *shape), dtype=y.dtype, device=y.device)
        coefficients = torch.empty((slots, degree, *shape), dtype=y.dtype, device=y.device) if degree else None
        states = tuple(torch.empty((slots, *size), dtype=dtype, device=y.device) for size, dtype in kinds)
        ticks = torch.empty((slots, clocks, y.shape[0]), dtype=torch.float64, device=y.device) if clocks else None
        return cls(t, dt, end, starts, coefficients, states, ticks)

    def each(self, f: Callable[[Tensor], Tensor]) -> Records:
        """``f`` of all that there is."""
        t, dt, end, y = (f(x) for x in (self.t, self.dt, self.end, self.y))
        coefficients, clocks = (None if x is None else f(x) for x in (self.coefficients, self.clocks))
        return Records(t, dt, end, y, coefficients, tuple(map(f, self.states)), clocks)

    def first(self, used: int) -> Records:
        """The slots that were used."""
        return self.each(lambda x: x[:used])
