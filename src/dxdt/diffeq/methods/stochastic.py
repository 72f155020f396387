"""One-step methods for stochastic equations that need increments of W only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Ito, Rows, Stratonovich
from dxdt.ops.autodiff import jvp
from dxdt.ops.times import END, START, Table, Ticks, factors, moments, scaled_sum

__all__ = [
    "EulerHeun",
    "EulerMaruyama",
    "Milstein",
    "Stochastic",
    "StochasticHeun",
    "StochasticMidpoint",
    "stochastic_facts",
]


def stochastic_facts(order: float, stages: int, noise: Noisy, error_order: float | None = None) -> Facts:
    """The facts of a method for equations with noise."""
    return Facts(order, stages, error_order=error_order, stochastic=True, noise=noise, compiles=True)


class Stochastic(Solver):
    """Base of the methods for equations with noise: no state, linear dense output."""

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return ()

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)


@final
@dataclass(frozen=True)
class EulerMaruyama(Stochastic):
    """Euler-Maruyama for Ito equations: y' = y + f(t, y) dt + g(t, y) (W(t + dt) - W(t)).

    Strong order 1/2 (1 for additive noise), weak order 1; dense output is linear.

    G. Maruyama, "Continuous Markov processes and stochastic equations", Rend. Circ. Mat.
    Palermo 4 (1955).
    """

    facts = stochastic_facts(1, 1, Noisy((Ito,), 0.5, 0.5, 1.0, 1.0, 1.0))

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        (time,) = moments(t, dt, START, eq.layout)
        (h,) = factors(END, dt, y)
        moved = scaled_sum(y, h, eq.drift(time, y))
        new = eq.kicked(moved, eq.diffusion(time, y), eq.increment(t, dt, index).W)
        return Step(new, None, (), ())


@final
@dataclass(frozen=True)
class EulerHeun(Stochastic):
    """Euler-Heun for Stratonovich equations.

        z = y + g(t, y) dW,   y' = y + f(t, y) dt + (g(t, y) + g(t + dt, z)) dW / 2

    Strong order 1/2 (1 for commutative noise), weak order 1; dense output is linear.

    P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations", 11.1 (1992).
    """

    facts = stochastic_facts(1, 1, Noisy((Stratonovich,), 0.5, 1.0, 1.0, 1.0, 1.0))

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, end = moments(t, dt, _ENDS, eq.layout)
        (h,) = factors(END, dt, y)
        w = eq.increment(t, dt, index).W
        g = eq.diffusion(start, y)
        later = eq.diffusion(end, eq.kicked(y, g, w))
        new = eq.kicked(scaled_sum(y, h, eq.drift(start, y)), g + later, 0.5 * w)
        return Step(new, None, (), ())


@final
@dataclass(frozen=True)
class Milstein(Stochastic):
    """Milstein's method, in the calculus of the equation.

        y' = y + f dt + g dW + 1/2 (D(g dW) (g dW) - dt sum_j (D g_j) g_j)        (Ito)
        y' = y + f dt + g dW + 1/2 D(g dW) (g dW)                                 (Stratonovich)

    with D g the derivative of g in y; no matrix of derivatives is formed. Strong order 1 for
    commutative noise (1/2 in general), weak order 1; dense output is linear. Diagonal and scalar
    noise cost one derivative, Ito noise of a matrix m + 1.

    G. Milstein, "Approximate integration of stochastic differential equations", Theory Probab.
    Appl. 19 (1974); without derivatives: P. Kloeden, E. Platen, "Numerical Solution of Stochastic
    Differential Equations", 11.1 (1992).

    Args:
        derivative_free: differences of g over displacements of the size of sqrt(dt) g instead of
            derivatives: cheaper, and for fields that forward differentiation does not go through.
    """

    derivative_free: bool = False

    facts = stochastic_facts(1, 1, Noisy((Ito, Stratonovich), 0.5, 1.0, 1.0, 1.0, 1.0))

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        (time,) = moments(t, dt, START, eq.layout)
        (h,) = factors(END, dt, y)
        w = eq.increment(t, dt, index).W
        g = eq.diffusion(time, y)
        new = eq.kicked(scaled_sum(y, h, eq.drift(time, y)), g, w)
        noise = eq.stochastic.noise
        if noise.additive:
            return Step(new, None, (), ())
        ito = isinstance(eq.stochastic.calculus, Ito)
        if noise.elementwise and (ito or not self.derivative_free):
            slope, unit = self._slope(eq, time, y, g, dt)
            area = w * w
            area = area - h if ito else area
            return Step(eq.kicked(new, slope, 0.5 / unit * area), None, (), ())
        kick = eq.spread(g, w)
        if self.derivative_free:
            turn = eq.diffusion(time, y + kick) - g
        else:
            turn = self._push(eq, time, y, kick)
        new = eq.kicked(new, turn, 0.5 * w)
        return Step(self._less_mean(eq, time, dt, new, y, g) if ito else new, None, (), ())

    def _slope(self, eq: Rows, time: Tensor, y: Tensor, g: Tensor, dt: Ticks) -> tuple[Tensor, Any]:
        """(D g) g times a factor, and the factor: sqrt(dt) for a difference, else one."""
        if not self.derivative_free:
            return self._push(eq, time, y, g), 1.0
        (unit,) = factors(END, root(dt), y)
        return eq.diffusion(time, scaled_sum(y, unit, g)) - g, unit

    def _less_mean(self, eq: Rows, time: Tensor, dt: Ticks, new: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """``new`` less dt / 2 sum_j (D g_j) g_j; differences are central, to leave no bias."""
        noise = eq.stochastic.noise
        columns = noise.columns(g)
        if not self.derivative_free:
            (scale,) = factors(END, -0.5 * dt, y)
            return scaled_sum(new, scale, noise.along([self._push(eq, time, y, v) for v in columns]))
        (unit,) = factors(END, root(dt), y)
        (scale,) = factors(END, -0.25 * dt / root(dt), y)
        ahead = [eq.diffusion(time, scaled_sum(y, unit, v)) for v in columns]
        behind = [eq.diffusion(time, scaled_sum(y, -unit, v)) for v in columns]
        turns = [a - b for a, b in zip(ahead, behind, strict=True)]
        return scaled_sum(new, scale, noise.along(turns))

    def _push(self, eq: Rows, time: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(D g) v."""
        # Forward differentiation writes to what it is given, which must not share its memory.
        y, v = y.contiguous(), v.contiguous()
        return jvp(lambda x: eq.diffusion(time, x), y, v)[1]


class _Pair(Stochastic):
    """An explicit method of two stages on dX = f dt + g dW; the estimate compares with Euler's.

    k_1 = dX(t, y),   k_2 = dX(t + c dt, y + c k_1),   y' = y + b_1 k_1 + b_2 k_2
    """

    weights: ClassVar[tuple[float, float]]
    nodes: ClassVar[Table]

    facts = stochastic_facts(2, 2, Noisy((Stratonovich,), 0.5, 1.0, 1.0, 1.0, 1.0, error=(1.0, 1.5)), error_order=1)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, later = moments(t, dt, self.nodes, eq.layout)
        (h,) = factors(END, dt, y)
        w = eq.increment(t, dt, index).W
        first = moved(eq, start, y, h, w)
        second = moved(eq, later, scaled_sum(y, self.nodes.numbers[1], first), h, w)
        b1, b2 = self.weights
        new = scaled_sum(y, b2, second)
        new = scaled_sum(new, b1, first) if b1 else new
        return Step(new, b2 * (second.detach() - first.detach()), (), ())


_ENDS = Table.of([0.0, 1.0])


@final
@dataclass(frozen=True)
class StochasticHeun(_Pair):
    """Heun's method for Stratonovich equations, with dX = f dt + g dW.

        z = y + dX(t, y),   y' = y + (dX(t, y) + dX(t + dt, z)) / 2

    Strong order 1/2 (1 for commutative noise), weak order 1; dense output is linear. The error
    estimate compares with z.

    W. Ruemelin, "Numerical treatment of stochastic differential equations", SIAM J. Numer. Anal.
    19 (1982).
    """

    weights = (0.5, 0.5)
    nodes = _ENDS


@final
@dataclass(frozen=True)
class StochasticMidpoint(_Pair):
    """The midpoint method for Stratonovich equations, with dX = f dt + g dW.

        z = y + dX(t, y) / 2,   y' = y + dX(t + dt/2, z)

    Strong order 1/2 (1 for commutative noise), weak order 1; dense output is linear. The error
    estimate compares with Euler's step.

    W. Ruemelin, "Numerical treatment of stochastic differential equations", SIAM J. Numer. Anal.
    19 (1982).
    """

    weights = (0.0, 1.0)
    nodes = Table.of([0.0, 0.5])


def moved(eq: Rows, time: Tensor, y: Tensor, h: Tensor | float, w: Tensor) -> Tensor:
    """f h + g w."""
    return scaled_sum(eq.spread(eq.diffusion(time, y), w), h, eq.drift(time, y))


def root(dt: Ticks) -> Ticks:
    """sqrt|dt|, and one where dt is zero."""
    return (abs(dt) + (dt == 0)) ** 0.5
