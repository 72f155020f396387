"""Diagonally implicit Runge-Kutta methods: each stage is an equation for its own slope.

    k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j + dt g k_i),      y' = y + dt sum_i b_i k_i

All implicit stages have the same number g on the diagonal, so that one factorisation of 1 - g dt df/dy serves a step.
The first stage is explicit: it is the slope that the step before ended with.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", IV.6 and IV.8 (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.implicit.newton import (
    Field,
    StageNewton,
    slopes_of,
    step_size,
    tied,
    wants_gradient,
)
from dxdt.diffeq.methods.implicit.tableau import ImplicitTableau
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.linear import Factored, factor, identity
from dxdt.ops.times import END, START, Table, Ticks, factors, moments

__all__ = [
    "DIRK",
    "SDIRK2",
    "TRBDF2",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "Stages",
    "Trapezoidal",
    "marked",
    "weighted_sum",
]


@dataclass(frozen=True)
class DIRK(Solver):
    """Base of the diagonally implicit methods; a method is a subclass that gives ``tableau``.

    Args:
        newton: how the equations of the stages are solved.
    """

    newton: StageNewton = StageNewton()  # noqa: RUF009

    tableau: ClassVar[ImplicitTableau]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "tableau" not in vars(cls):
            return
        tableau = cls.tableau
        order, stages = tableau.order, tableau.stages
        cls.facts = Facts(order, stages, min(3, order), tableau.error_order, degree=3, implicit=True)
        cls.part = max(row[i] for i, row in enumerate(tableau.matrix))

    part: ClassVar[float]

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, eq.layout)
        return (eq.drift(start, y),)

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        tableau = self.tableau
        times = moments(t, dt, tableau.nodes, eq.layout)
        stages = Stages.of(self, eq.drift, eq, dt, y, index, times[0], wants_gradient(t, dt, y, *state))
        slopes = [state[0]]
        for row, time in zip(tableau.matrix[1:], times[1:], strict=True):
            base = weighted_sum(y, row[: len(slopes)], dt, slopes)
            slopes.append(stages.solve(time, base, slopes[-1]))
        new = weighted_sum(y, tableau.b, dt, slopes)
        end = slopes[-1]
        if not tableau.stiffly_accurate:
            (after,) = moments(t, dt, END, eq.layout)
            end = eq.drift(after, new)
        error = None
        if tableau.error is not None:
            error = stages.smoothed(weighted_sum(None, tableau.error, dt, [k.detach() for k in slopes]), tableau.smooth)
        new, error = stages.marked(new, error)
        return Step(new, error, (end,), (slopes[0], end))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))


@dataclass(eq=False)
class Stages:
    """What the implicit stages of one step share.

    Attributes:
        field: the term that is implicit, on rows.
        method, eq, dt, y, index: of the step.
        size: g dt as a factor of rows.
        system: 1 - g dt df/dy at the start of the step, factored.
        follows: whether derivatives of the stages are wanted.
        ok: rows whose stages so far were found, or None before the first.
        rest: what the iteration before tells the next.
    """

    method: DIRK
    field: Field
    eq: Rows
    dt: Ticks
    y: Tensor
    index: Ticks
    size: Any
    system: Factored
    follows: bool
    ok: Ticks = None
    rest: Ticks = None

    @classmethod
    def of(
        cls, method: DIRK, field: Field, eq: Rows, dt: Ticks, y: Tensor, index: Ticks, start: Tensor, follows: bool
    ) -> Stages:
        """Factor the system of a step."""
        size = step_size(dt, method.part, y)
        system = _system(field, start, y, size)
        return cls(method, field, eq, dt, y, index, size, system, follows)

    def solve(self, time: Tensor, base: Tensor, guess: Tensor) -> Tensor:
        """k = f(time, base + g dt k)."""
        field, fixed = self.field, base.detach()

        def residual(k: Tensor) -> Tensor:
            return k - field(time, fixed + self.size * k)

        def renewed(k: Tensor) -> Any:
            return _system(field, time, fixed + self.size * k, self.size).solve

        found = self.method.newton.solve(
            self.eq, guess, self.size, self.y, self.index, self.rest, residual, self.system.solve, renewed
        )
        self.ok, self.rest = found.ok if self.ok is None else self.ok & found.ok, found.rest
        if not self.follows:
            return found.k
        (h,) = factors(Table.of([self.method.part]), self.dt, self.y)
        matrix = _matrix(slopes_of(field, time, fixed + self.size * found.k), self.size)
        return tied(lambda k: k - field(time, base + h * k), matrix, found.k)

    def smoothed(self, error: Tensor, part: float) -> Tensor:
        """An estimate without what is fast and dead."""
        return self.system.solve(error) if part else error

    def marked(self, new: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows without stages are not finite, so that no step begins where they lead."""
        return marked(self.ok, new, error)


def marked(ok: Ticks, new: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """State and error that are not finite in the rows that did not converge."""
    if ok is None or (not isinstance(ok, Tensor) and ok.all()):
        return new, error
    rows = torch.as_tensor(ok, device=new.device).reshape(-1, 1)
    return torch.where(rows, new, float("nan")), None if error is None else torch.where(rows, error, float("inf"))


def _matrix(slopes: Tensor, size: Any) -> Tensor:
    size = size.unsqueeze(-1) if isinstance(size, Tensor) else size
    return identity(slopes.diagonal(dim1=-2, dim2=-1)) - size * slopes


def _system(field: Field, time: Tensor, y: Tensor, size: Any) -> Factored:
    with torch.no_grad():
        return factor(_matrix(slopes_of(field, time, y), size))


def weighted_sum(y: Tensor | None, weights: Sequence[Any], dt: Ticks, slopes: Sequence[Tensor]) -> Tensor:
    """y + dt sum_j w_j k_j over the weights that are not zero."""
    some = [(float(w), k) for w, k in zip(weights, slopes, strict=True) if float(w) != 0]
    like = slopes[0]
    total = None
    for h, (_, k) in zip(factors(Table.of([w for w, _ in some]), dt, like), some, strict=True):
        total = (
            k * h if total is None else torch.addcmul(total, h, k) if isinstance(h, Tensor) else total.add(k, alpha=h)
        )
    if total is None:
        return torch.zeros_like(like) if y is None else y
    return total if y is None else y + total


@final
class ImplicitEuler(DIRK):
    """Implicit Euler method, L-stable; its estimate compares with the trapezoidal rule."""

    tableau = ImplicitTableau(a=[[0], [0, 1]], b=[0, 1], order=1, error=[-0.5, 0.5], error_order=2, smooth=1)


@final
class ImplicitMidpoint(DIRK):
    """Implicit midpoint rule, A-stable, symmetric and symplectic; no estimate (see ``StepDoubling``)."""

    tableau = ImplicitTableau(a=[[0], [0, 0.5]], b=[0, 1], order=2)


@final
class Trapezoidal(DIRK):
    """Trapezoidal rule, A-stable and symmetric; its estimate compares with the implicit Euler method."""

    tableau = ImplicitTableau(a=[[0], [0.5, 0.5]], b=[0.5, 0.5], order=2, error=[0.5, -0.5], error_order=2, smooth=0.5)


_G = 1 - sqrt(2) / 2


@final
class SDIRK2(DIRK):
    """Alexander's two-stage method of order 2, L-stable; its estimate compares with weights of 1/2.

    R. Alexander, "Diagonally implicit Runge-Kutta methods for stiff ODEs", SIAM J. Numer. Anal. 14 (1977).
    """

    tableau = ImplicitTableau(
        a=[[0], [0, _G], [0, 1 - _G, _G]],
        b=[0, 1 - _G, _G],
        order=2,
        error=[0, 0.5 - _G, _G - 0.5],
        error_order=2,
        smooth=_G,
    )


@final
class TRBDF2(DIRK):
    """Trapezoidal rule to 2 g dt and then the backward differentiation formula of order 2, as one L-stable method.

    R. Bank et al., "Transient simulation of silicon devices and circuits", IEEE Trans. CAD 4 (1985);
    M. Hosea, L. Shampine, "Analysis and implementation of TR-BDF2", Appl. Numer. Math. 20 (1996).
    """

    tableau = ImplicitTableau(
        a=[[0], [_G, _G], [sqrt(2) / 4, sqrt(2) / 4, _G]],
        b=[sqrt(2) / 4, sqrt(2) / 4, _G],
        order=2,
        error=[sqrt(2) / 4 - (1 - sqrt(2) / 4) / 3, sqrt(2) / 4 - (3 * sqrt(2) / 4 + 1) / 3, _G * 2 / 3],
        error_order=3,
        smooth=_G,
    )
