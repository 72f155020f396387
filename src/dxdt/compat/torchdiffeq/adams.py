"""Adams methods on the grid they are given, with Kutta's 3/8 rule for the first steps.

    y' = y + dt sum_i b_i f_{n-i}

with b_i the integral over the step, divided by dt, of the Lagrange basis polynomial of t_{n-i}.

The explicit method (Adams-Bashforth) interpolates f_n, f_{n-1}, ...; the implicit one
(Adams-Moulton) also f(t + dt, y'), found by functional iteration from the explicit value. Weights
are formed from the times as they are, so that grids with unequal steps keep their order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from dxdt.compat.torchdiffeq.tableaux import ThreeEighths
from dxdt.diffeq import Solver
from dxdt.diffeq.methods.adams import Multistep
from dxdt.diffeq.methods.lagrange import Around, combined, weights
from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.problem.equation import Rows

__all__ = ["Adams"]

_FIRST = 3  # values of f before the method starts, as in torchdiffeq


@final
@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth, or with ``implicit`` Adams-Bashforth-Moulton.

    Args:
        implicit: correct the explicit value by functional iteration.
        max_order: one more than the values of f that are remembered.
        max_iters: iterations of the corrector.
        rtol, atol: the corrector ends where no element changes by more.
    """

    implicit: bool = False
    max_order: int = 5
    max_iters: int = 4
    rtol: float = 1e-3
    atol: float = 1e-4

    starter: ClassVar[Solver] = ThreeEighths()

    def __post_init__(self) -> None:
        assert self.max_order <= 12, "max_order must be at most 12"
        if self.max_order < 4:
            warnings.warn("max_order is below 4, so the solver reduces to `rk4`.", stacklevel=5)
        # Where the corrector makes all its iterations.
        corrected = 1 + self.max_iters * self.implicit
        self.claim_steps(4, corrected if self.memory >= _FIRST else self.starter.facts.stages)

    @property
    def memory(self) -> int:
        return max(self.max_order - 1, 1)

    @property
    def needs(self) -> int:
        return _FIRST if self.memory >= _FIRST else 1

    def follow(self, eq: Rows, t: Any, dt: Any, y: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """State and slope at the end of a step of the method, or of the starter where so little is remembered."""
        return super().follow(eq, t, dt, y, state) if self.memory >= _FIRST else self.begin(eq, t, dt, y, state, 0)

    def advance(
        self, eq: Rows, time: Tensor, around: Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        rise = combined(None, weights(around, y), slopes)  # y is added at the end, so that a step rounds it once
        if self.implicit:
            rise = self._corrected(eq, time, around, y, rise, slopes)
        new = y + rise
        return new, eq.drift(time, new)

    def _corrected(
        self, eq: Rows, time: Tensor, around: Around, y: Tensor, rise: Tensor, slopes: Sequence[Tensor]
    ) -> Tensor:
        last, *rest = weights(around.with_end(), y)
        known, done = combined(None, rest, slopes), None
        looks = not torch.compiler.is_compiling()
        for _ in range(self.max_iters):
            new = combined(known, (last,), (eq.drift(time, y + rise),))
            settled = self._settled(rise, new)
            # Generated code, which cannot look, makes all iterations and keeps the value of the last that counts.
            rise = new if done is None or looks else torch.where(done, rise, new)
            if looks and bool(settled):  # one host sync an iteration: how many there are depends on the values
                return rise
            done = settled if done is None else done | settled
        if looks:
            warnings.warn("Functional iteration did not converge. Solution may be incorrect.", stacklevel=2)
        return rise

    def _settled(self, old: Tensor, new: Tensor) -> Tensor:
        old, new = old.detach(), new.detach()
        scale = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
        return ((old - new).abs() < scale).all()
