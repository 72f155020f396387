"""Kvaerno's methods: L-stable, stiffly accurate, and so is the method of lower order in each.

The last but one stage is a solution of lower order, so that the estimate is the difference of two stages, which needs
no smoothing. The coefficients follow from the number g on the diagonal.

A. Kvaerno, "Singly diagonally implicit Runge-Kutta methods with an explicit first stage", BIT 44 (2004).
"""

from __future__ import annotations

from typing import final

import numpy as np

from dxdt.diffeq.methods.implicit.dirk import DIRK
from dxdt.diffeq.methods.implicit.tableau import ImplicitTableau

__all__ = ["Kvaerno3", "Kvaerno4", "Kvaerno5"]


def _pair(rows: list[list[float]], order: int) -> ImplicitTableau:
    """A method whose last two stages are solutions."""
    lower, last = [*rows[-2], 0.0], rows[-1]
    return ImplicitTableau(
        a=rows, b=last, order=order, error=[x - y for x, y in zip(last, lower, strict=True)], error_order=order
    )


def _third() -> ImplicitTableau:
    g = 0.43586652150845900  # 6 g^3 - 18 g^2 + 9 g - 1 = 0: L-stability
    rows = [
        [0.0],
        [g, g],
        [(-4 * g**2 + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g), g],
        [(6 * g - 1) / (12 * g), -1 / (12 * g * (2 * g - 1)), (-6 * g**2 + 6 * g - 1) / (3 * (2 * g - 1)), g],
    ]
    return _pair(rows, 3)


def _fourth() -> ImplicitTableau:
    g = 0.57281606248213490  # 24 g^4 - 96 g^3 + 72 g^2 - 16 g + 1 = 0: L-stability of the method of order 4

    def p(*coefficients: float) -> float:
        return float(np.polyval(coefficients, g))

    rows = [
        [0.0],
        [g, g],
        [p(144, -180, 81, -15, 1) * g / p(12, -6, 1) ** 2, p(-36, 39, -15, 2) * g / p(12, -6, 1) ** 2, g],
        [
            p(-144, 396, -330, 117, -18, 1) / (12 * g**2 * p(12, -9, 2)),
            p(72, -126, 69, -15, 1) / (12 * g**2 * p(3, -1)),
            p(-6, 6, -1) * p(12, -6, 1) ** 2 / (12 * g**2 * p(12, -9, 2) * p(3, -1)),
            g,
        ],
        [
            p(288, -312, 120, -18, 1) / (48 * g**2 * p(12, -9, 2)),
            p(24, -12, 1) / (48 * g**2 * p(3, -1)),
            -(p(12, -6, 1) ** 3) / (48 * g**2 * p(3, -1) * p(12, -9, 2) * p(6, -6, 1)),
            p(-24, 36, -12, 1) / p(24, -24, 4),
            g,
        ],
    ]
    return _pair(rows, 4)


@final
class Kvaerno3(DIRK):
    """Kvaerno's pair of orders 3 and 2, of four stages, the first explicit."""

    tableau = _third()


@final
class Kvaerno4(DIRK):
    """Kvaerno's pair of orders 4 and 3, of five stages, the first explicit."""

    tableau = _fourth()


@final
class Kvaerno5(DIRK):
    """Kvaerno's pair of orders 5 and 4, of seven stages, the first explicit; one stage lies beyond the step."""

    tableau = _pair(
        [
            [0.0],
            [0.26, 0.26],
            [0.13, 0.84033320996790809, 0.26],
            [0.22371961478320505, 0.47675532319799699, -0.06470895363112615, 0.26],
            [0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998, 0.26],
            [0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, 0.26],
            [
                *(0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046),
                *(0.62993304899016403, 0.06962479448202728, 0.26),
            ],
        ],
        5,
    )
