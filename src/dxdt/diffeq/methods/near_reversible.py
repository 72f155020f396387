"""Explicit Runge-Kutta methods that nearly undo their own steps, with no state beside y."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as F
from typing import final

import torch
from torch import Tensor

from dxdt.diffeq.methods.explicit import RungeKutta
from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.methods.tableau import Tableau
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import Ticks

__all__ = ["EES25"]


@final
@dataclass(frozen=True)
class EES25(RungeKutta):
    """EES(2,5; 1/10): explicit, of order two, and symmetric up to order five.

    A step over dt and one over -dt from its end miss the start by O(dt^6), so the ``Reversible``
    gradient walks back with the method itself: nearly exact, with no state beside y and a region
    of stability (to -3.1 on the real axis) that suits dissipative equations, which exactly
    reversible methods do not. The error estimate compares with Euler's method.

    D. Shmelev, K. Ebrahimi-Fard, N. Tapia, C. Salvi, "Explicit and effectively symmetric
    Runge-Kutta methods", arXiv:2507.21006 (2025).
    """

    tableau = Tableau(
        a=[[F(1, 3)], [F(-5, 48), F(15, 16)]],
        b=[F(1, 10), F(1, 2), F(2, 5)],
        order=2,
        error=[F(-9, 10), F(1, 2), F(2, 5)],
        error_order=2,
        symmetric_order=5,
    )

    def reverse(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, State]:
        """Where a step that ended here began, up to O(dt^6)."""
        with torch.no_grad():
            end = self.init(eq, t + dt, y, False)
            start = self.step(eq, t + dt, -dt, y, end, index).y
            return start, self.init(eq, t, start, bool(state))
