"""Explicit Runge-Kutta methods that torchdiffeq has and the solver room lacks or has otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as F
from typing import final

from dxdt.diffeq import Dopri5, RungeKutta, Tableau

__all__ = ["Fehlberg2", "Heun3", "LooseDopri5", "ThreeEighths"]


@final
@dataclass(frozen=True)
class ThreeEighths(RungeKutta):
    """Kutta's fourth-order method of the 3/8 rule, torchdiffeq's ``rk4``."""

    tableau = Tableau(
        a=[[F(1, 3)], [F(-1, 3), 1], [1, -1, 1]],
        b=[F(1, 8), F(3, 8), F(3, 8), F(1, 8)],
        order=4,
    )


@final
@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's third-order method."""

    tableau = Tableau(a=[[F(1, 3)], [0, F(2, 3)]], b=[F(1, 4), 0, F(3, 4)], order=3)


@final
@dataclass(frozen=True)
class Fehlberg2(RungeKutta):
    """Fehlberg's second-order method with a first-order member below.

    E. Fehlberg, "Low-order classical Runge-Kutta formulas with stepsize control",
    NASA TR R-315 (1969).
    """

    tableau = Tableau(
        a=[[F(1, 2)], [F(1, 256), F(255, 256)]],
        b=[F(1, 512), F(255, 256), F(1, 512)],
        order=2,
        error=[F(-1, 512), 0, F(1, 512)],
        error_order=2,
    )


@final
@dataclass(frozen=True)
class LooseDopri5(RungeKutta):
    """Dormand-Prince 5(4) with two thirds of the usual error estimate.

    torchdiffeq measures errors so; with the same weights both take the same steps.
    """

    tableau = Tableau(
        a=Dopri5.tableau.a,
        b=Dopri5.tableau.b,
        order=5,
        error=[F(2, 3) * F(e) for e in Dopri5.tableau.error or ()],
        error_order=5,
        dense=Dopri5.tableau.dense,
        dense_order=4,
    )
