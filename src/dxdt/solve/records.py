"""Where a compiled solve writes its steps down."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dxdt.solve.phases import Kinds

__all__ = ["Records"]


class Records(NamedTuple):
    """Accepted steps, one slot an attempt: clocks ``(K, R)``, starts ``(K, R, n)``, coefficients
    ``(K, degree, R, n)``, and solver states ``(K, R, ...)`` where they are wanted; dt is zero where a row
    did not accept. Once they are made, clocks are on the host."""

    t: Tensor
    dt: Tensor
    end: Tensor
    y: Tensor
    coefficients: Tensor | None
    states: tuple[Tensor, ...] = ()

    @classmethod
    def empty(cls, slots: int, degree: int, y: Tensor, kinds: Kinds) -> Records:
        """Room for so many attempts, with coefficients up to a degree and states of such kinds."""
        # Tensors of their own, not views of one: programs write into them, each slot that is used whole.
        clock, shape = (slots, y.shape[0]), tuple(y.shape)
        t, dt, end = (torch.empty(clock, dtype=torch.float64, device=y.device) for _ in range(3))
        starts = torch.empty((slots, *shape), dtype=y.dtype, device=y.device)
        coefficients = torch.empty((slots, degree, *shape), dtype=y.dtype, device=y.device) if degree else None
        states = tuple(torch.empty((slots, *size), dtype=dtype, device=y.device) for size, dtype in kinds)
        return cls(t, dt, end, starts, coefficients, states)
