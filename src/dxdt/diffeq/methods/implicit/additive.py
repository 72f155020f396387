"""Additive Runge-Kutta methods: two methods with common nodes and weights, one for each term of a sum.

    z_i = y + dt sum_{j<i} (a_ij f_j + e_ij g_j) + dt a_ii f_i,      f_i = stiff(t + c_i dt, z_i),
    y' = y + dt sum_i b_i (f_i + g_i),                               g_i = other(t + c_i dt, z_i)

Only the stiff term is evaluated inside the iterations of a stage. On equations that are no sum the method is its
implicit part.

C. Kennedy, M. Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations",
Appl. Numer. Math. 44 (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from dxdt.diffeq.methods.implicit.dirk import DIRK, Stages, weighted_sum
from dxdt.diffeq.methods.implicit.newton import wants_gradient
from dxdt.diffeq.methods.solver import State, Step
from dxdt.diffeq.problem.equation import Rows
from dxdt.diffeq.problem.split import SplitODE, term
from dxdt.ops.times import END, START, Ticks, moments

__all__ = ["AdditiveRungeKutta"]


class AdditiveRungeKutta(DIRK):
    """Base of the additive methods; a method gives ``tableau`` and the rows of the ``explicit`` one."""

    explicit: ClassVar[Sequence[Sequence[Any]]]

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        if not isinstance(eq.equation, SplitODE):
            return super().init(eq, t, y, dense)
        (start,) = moments(t, t * 0, START, eq.layout)
        stiff = term(eq, eq.equation.stiff, start, y)
        return stiff + term(eq, eq.equation.other, start, y), stiff

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        split = eq.equation
        if not isinstance(split, SplitODE):
            return super().step(eq, t, dt, y, state, index)
        tableau = self.tableau
        times = moments(t, dt, tableau.nodes, eq.layout)
        follows = wants_gradient(t, dt, y, *state)
        stages = Stages.of(self, lambda s, z: term(eq, split.stiff, s, z), eq, dt, y, index, times[0], follows)
        stiff, other = [state[1]], [state[0] - state[1]]
        for row, explicit, time in zip(tableau.matrix[1:], self.explicit, times[1:], strict=True):
            known = weighted_sum(y, explicit, dt, other)
            base = weighted_sum(known, row[: len(stiff)], dt, stiff)
            stiff.append(stages.solve(time, base, stiff[-1]))
            reached = weighted_sum(base, (self.part,), dt, (stiff[-1],))
            other.append(term(eq, split.other, time, reached))
        slopes = [f + g for f, g in zip(stiff, other, strict=True)]
        new = weighted_sum(y, tableau.b, dt, slopes)
        error = None
        if tableau.error is not None:
            error = weighted_sum(None, tableau.error, dt, [k.detach() for k in slopes])
            error = stages.smoothed(error, tableau.smooth)
        new, error = stages.marked(new, error)
        (after,) = moments(t, dt, END, eq.layout)
        end = term(eq, split.stiff, after, new)
        whole = end + term(eq, split.other, after, new)
        return Step(new, error, (whole, end), (state[0], whole))
