"""Explicit Runge-Kutta methods that torchdiffeq has and the solver room lacks or has otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as F
from typing import final

from dxdt.solve import Dopri5, RungeKutta, Tableau

__all__ = ["Dopri8", "Fehlberg2", "Heun3", "LooseDopri5", "ThreeEighths"]


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


_B8 = [
    F(14005451, 335480064),
    *[0] * 4,
    F(-59238493, 1068277825),
    F(181606767, 758867731),
    F(561292985, 797845732),
    F(-1041891430, 1371343529),
    F(760417239, 1151165299),
    F(118820643, 751138087),
    F(-528747749, 2220607170),
    F(1, 4),
]
_B7 = [
    F(13451932, 455176623),
    *[0] * 4,
    F(-808719846, 976000145),
    F(1757004468, 5645159321),
    F(656045339, 265891186),
    F(-3867574721, 1518517206),
    F(465885868, 322736535),
    F(53011238, 667516719),
    F(2, 45),
    0,
]


@final
@dataclass(frozen=True)
class Dopri8(RungeKutta):
    """Dormand-Prince 8(7) with thirteen stages.

    Dense output is a quartic through both ends, their slopes and the middle; the weights of the
    middle are the ones of least norm that meet all conditions up to order 5.

    P. Prince, J. Dormand, "High order embedded Runge-Kutta formulae",
    J. Comp. Appl. Math. 7 (1981).
    """

    tableau = Tableau(
        a=[
            [F(1, 18)],
            [F(1, 48), F(1, 16)],
            [F(1, 32), 0, F(3, 32)],
            [F(5, 16), 0, F(-75, 64), F(75, 64)],
            [F(3, 80), 0, 0, F(3, 16), F(3, 20)],
            [
                F(29443841, 614563906),
                *(0, 0),
                F(77736538, 692538347),
                F(-28693883, 1125000000),
                F(23124283, 1800000000),
            ],
            [
                F(16016141, 946692911),
                *(0, 0),
                F(61564180, 158732637),
                F(22789713, 633445777),
                F(545815736, 2771057229),
                F(-180193667, 1043307555),
            ],
            [
                F(39632708, 573591083),
                *(0, 0),
                F(-433636366, 683701615),
                F(-421739975, 2616292301),
                F(100302831, 723423059),
                F(790204164, 839813087),
                F(800635310, 3783071287),
            ],
            [
                F(246121993, 1340847787),
                *(0, 0),
                F(-37695042795, 15268766246),
                F(-309121744, 1061227803),
                F(-12992083, 490766935),
                F(6005943493, 2108947869),
                F(393006217, 1396673457),
                F(123872331, 1001029789),
            ],
            [
                F(-1028468189, 846180014),
                *(0, 0),
                F(8478235783, 508512852),
                F(1311729495, 1432422823),
                F(-10304129995, 1701304382),
                F(-48777925059, 3047939560),
                F(15336726248, 1032824649),
                F(-45442868181, 3398467696),
                F(3065993473, 597172653),
            ],
            [
                F(185892177, 718116043),
                *(0, 0),
                F(-3185094517, 667107341),
                F(-477755414, 1098053517),
                F(-703635378, 230739211),
                F(5731566787, 1027545527),
                F(5232866602, 850066563),
                F(-4093664535, 808688257),
                F(3962137247, 1805957418),
                F(65686358, 487910083),
            ],
            [
                F(403863854, 491063109),
                *(0, 0),
                F(-5068492393, 434740067),
                F(-411421997, 543043805),
                F(652783627, 914296604),
                F(11173962825, 925320556),
                F(-13158990841, 6184727034),
                F(3936647629, 1978049680),
                F(-160528059, 685178525),
                F(248638103, 1413531060),
                0,
            ],
            _B8,
        ],
        b=[*_B8, 0],
        order=8,
        error=[*(x - y for x, y in zip(_B8, _B7, strict=True)), 0],
        error_order=8,
        middle=[
            0.04073672270535465,
            *(0, 0, 0, 0),
            0.1456987718909405,
            0.23498887102555943,
            0.07725446379690895,
            0.015755162207738416,
            -0.015169356575490026,
            -5.2378778491159184e-05,
            0.00026258124079549944,
            0.00026258124243402556,
            0.0002625812441633679,
        ],
        dense_order=4,
    )
