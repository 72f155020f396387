"""Methods for stochastic equations of strong order 3/2, which need the space-time Levy area H."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

from torch import Tensor

from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import State, Step
from dxdt.diffeq.methods.stochastic import Stochastic, moved, root, stochastic_facts
from dxdt.diffeq.problem.equation import Ito, Rows, Stratonovich
from dxdt.diffeq.problem.noise import Additive, Diagonal, Scalar
from dxdt.ops.times import END, Table, Ticks, factors, moments, scaled_sum
from dxdt.paths.driver import SpaceTime

__all__ = ["SPaRK", "SRA1", "SRIW1", "ShARK"]

_ENDS = Table.of([0.0, 1.0])


class _AdditivePair(Stochastic):
    """Two stages for additive noise.

        k_1 = f(t, y + g (a_1 W + b_1 H)),   k_2 = f(t + c dt, y + c dt k_1 + g (a_2 W + b_2 H)),
        y' = y + dt (w_1 k_1 + w_2 k_2) + g(t) (W/2 + H) + g(t + dt) (W/2 - H),

    the last being the integral of a g linear in time. The estimate compares with Euler's step.
    """

    nodes: ClassVar[Table]
    lengths: ClassVar[Table]
    first: ClassVar[float]
    second: ClassVar[tuple[float, float]]

    facts = stochastic_facts(
        2,
        2,
        Noisy((Ito, Stratonovich), 1.5, 1.5, 1.5, 2.0, 2.0, SpaceTime, (Additive,), error=(1.5, 1.5)),
        error_order=1.5,
    )

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, later, end = moments(t, dt, self.nodes, eq.layout)
        ch, h1, h2 = factors(self.lengths, dt, y)
        w, area = _areas(eq, t, dt, index)
        g0, g1 = eq.diffusion(start, y), eq.diffusion(end, y)
        k1 = eq.drift(start, eq.kicked(y, g0, self.first * area) if self.first else y)
        a, b = self.second
        k2 = eq.drift(later, eq.kicked(scaled_sum(y, ch, k1), g0, a * w + b * area))
        new = scaled_sum(scaled_sum(y, h1, k1), h2, k2)
        early, late = 0.5 * w + area, 0.5 * w - area
        new = eq.kicked(eq.kicked(new, g0, early), g1, late)
        error = h2 * (k2.detach() - k1.detach()) + eq.spread(g1.detach() - g0.detach(), late)
        return Step(new, error, (), ())


@final
@dataclass(frozen=True)
class SRA1(_AdditivePair):
    """SRA1 for additive noise.

        z = y + 3/4 dt f(t, y) + 3/2 g (W/2 + H),
        y' = y + dt (f(t, y) / 3 + 2/3 f(t + 3/4 dt, z)) + g(t) (W/2 + H) + g(t + dt) (W/2 - H)

    Strong order 3/2, weak order 2; dense output is linear. The error estimate compares with
    Euler's step.

    A. Roessler, "Runge-Kutta methods for the strong approximation of solutions of stochastic
    differential equations", SIAM J. Numer. Anal. 48 (2010).
    """

    nodes = Table.of([0.0, 0.75, 1.0])
    lengths = Table.of([0.75, 1 / 3, 2 / 3])
    first = 0.0
    second = (0.75, 1.5)


@final
@dataclass(frozen=True)
class ShARK(_AdditivePair):
    """ShARK, a shifted Ralston method for additive noise.

        u = y + g H,   z = u + 5/6 (f(t, u) dt + g W),
        y' = y + dt (2/5 f(t, u) + 3/5 f(t + 5/6 dt, z)) + g(t) (W/2 + H) + g(t + dt) (W/2 - H)

    Strong order 3/2, weak order 2; dense output is linear. The error estimate compares with
    Euler's step from u.

    J. Foster, G. dos Reis, C. Strange, "High order splitting methods for SDEs satisfying a
    commutativity condition", SIAM J. Numer. Anal. 62 (2024).
    """

    nodes = Table.of([0.0, 5 / 6, 1.0])
    lengths = Table.of([5 / 6, 0.4, 0.6])
    first = 1.0
    second = (5 / 6, 1.0)


_X1, _X2 = (3 - sqrt(3)) / 6, sqrt(3) / 3
_THIRDS = Table.of([0.0, 0.5, 1.0])


@final
@dataclass(frozen=True)
class SPaRK(Stochastic):
    """SPaRK, a splitting-path Runge-Kutta method for Stratonovich equations.

        k_1 = dX(t, y),   k_2 = dX(t + dt/2, y + k_1 / 2 + sqrt(3) g(t, y) H),
        k_3 = dX(t + dt, y + k_2),
        y' = y + x (k_1 + k_3) + sqrt(1/3) k_2 + (g_1 - g_3) H,   x = (3 - sqrt(3)) / 6

    with dX = f dt + g dW. Strong order 3/2 for additive noise, 1 for commutative, 1/2 in general;
    weak order 1 (2 for additive noise); dense output is linear. The error estimate compares with
    the mean of the ends.

    J. Foster, G. dos Reis, C. Strange, "High order splitting methods for SDEs satisfying a
    commutativity condition", SIAM J. Numer. Anal. 62 (2024).
    """

    facts = stochastic_facts(
        2, 3, Noisy((Stratonovich,), 0.5, 1.0, 1.5, 1.0, 2.0, SpaceTime, error=(1.0, 1.5)), error_order=1
    )

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, middle, end = moments(t, dt, _THIRDS, eq.layout)
        (h,) = factors(END, dt, y)
        w, area = _areas(eq, t, dt, index)
        g1 = eq.diffusion(start, y)
        k1 = scaled_sum(eq.spread(g1, w), h, eq.drift(start, y))
        k2 = moved(eq, middle, eq.kicked(scaled_sum(y, 0.5, k1), g1, sqrt(3) * area), h, w)
        ahead = y + k2
        g3 = eq.diffusion(end, ahead)
        k3 = scaled_sum(eq.spread(g3, w), h, eq.drift(end, ahead))
        ends, turn = k1 + k3, eq.spread(g1 - g3, area)
        new = scaled_sum(scaled_sum(y, _X1, ends), _X2, k2) + turn
        error = turn.detach() + _X2 * (k2.detach() - 0.5 * ends.detach())
        return Step(new, error, (), ())


_QUARTERS = Table.of([0.0, 0.25, 0.75, 1.0])
_DRIFTS = Table.of([1.0, 0.25, 0.75, 1 / 3, 2 / 3])


@final
@dataclass(frozen=True)
class SRIW1(Stochastic):
    """SRIW1, a stochastic Runge-Kutta method for Ito equations with diagonal or scalar noise.

        y' = y + dt (f_1 + 2 f_2) / 3 + sum_i g_i (a_i W + b_i I_11 / sqrt(dt) + c_i I_10 / dt
             + d_i I_111 / dt)

    with two stages of f, four of g and the iterated integrals I_11 = (W^2 - dt) / 2,
    I_10 = dt (W/2 + H), I_111 = (W^3 - 3 dt W) / 6. Strong order 3/2, weak order 2; dense output
    is linear. The error estimate leaves out the terms of order 3/2.

    A. Roessler, "Runge-Kutta methods for the strong approximation of solutions of stochastic
    differential equations", SIAM J. Numer. Anal. 48 (2010).
    """

    facts = stochastic_facts(
        2, 2, Noisy((Ito,), 1.5, 1.5, 1.5, 2.0, 2.0, SpaceTime, (Diagonal, Scalar), error=(1.5, 1.5)), error_order=1.5
    )

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        t0, t1, t2, t3 = moments(t, dt, _QUARTERS, eq.layout)
        h, hq, hs, h1, h2 = factors(_DRIFTS, dt, y)
        unit, over = factors(END, root(dt), y)[0], factors(END, 1 / root(dt), y)[0]
        w, area = _areas(eq, t, dt, index)
        single = 0.5 * w * w * over - 0.5 * unit
        mean = 0.5 * w + area
        triple = w * ((w * over) ** 2 / 6 - 0.5)
        f1, g1 = eq.drift(t0, y), eq.diffusion(t0, y)
        g2 = eq.diffusion(t1, scaled_sum(scaled_sum(y, hq, f1), 0.5 * unit, g1))
        g3 = eq.diffusion(t3, scaled_sum(scaled_sum(y, h, f1), -unit, g1))
        ahead = eq.kicked(scaled_sum(y, hs, f1), g1, 1.5 * mean)
        f2 = eq.drift(t2, ahead)
        stage = scaled_sum(scaled_sum(scaled_sum(y, -5 * unit, g1), 3 * unit, g2), 0.5 * unit, g3)
        g4 = eq.diffusion(t1, scaled_sum(stage, hq, f1))
        low = (-w - single, (w + single) * (4 / 3), (2 * w - single) / 3)
        high = (
            2 * (mean - triple),
            (5 * triple - 4 * mean) / 3,
            (mean + triple) * (-2 / 3),
        )
        new = scaled_sum(scaled_sum(y, h1, f1), h2, f2)
        for g, a in zip((g1, g2, g3), low, strict=True):
            new = eq.kicked(new, g, a)
        rest = eq.spread(g4, triple)
        for g, a in zip((g1, g2, g3), high, strict=True):
            rest = eq.kicked(rest, g, a)
        error = rest.detach() + h2 * (f2.detach() - f1.detach())
        return Step(new + rest, error, (), ())


def _areas(eq: Rows, t: Ticks, dt: Ticks, index: Ticks) -> tuple[Tensor, Tensor]:
    """W and H over the step."""
    noise = eq.increment(t, dt, index)
    return noise.W, noise.H
