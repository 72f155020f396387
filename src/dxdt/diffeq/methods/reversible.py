"""Algebraically reversible methods: each step is inverted in closed form, to rounding.

``step`` carries an auxiliary state beside y; ``reverse`` maps the end of a step to its start, so
that a gradient may walk back along the numbers of the forward solve and keep none of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dxdt.diffeq.methods.explicit import RungeKutta
from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Rows, Stratonovich
from dxdt.ops.times import END, START, Table, Ticks, factors, moments, scaled_sum

__all__ = ["AsynchronousLeapfrog", "McCallumFoster", "ReversibleHeun", "ReversibleSolver"]

_LEAP = Table.of([0.5, 1.0])
_HALF = Table.of([0.5])


_SECOND_ORDER = Facts(
    order=2, stages=1, dense_order=2, error_order=2, degree=2, compiles=True, stateful=True, reversible=True
)


class ReversibleSolver(Solver):
    """Base of the methods whose steps have an exact inverse."""

    @abstractmethod
    def reverse(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, State]:
        """State and solver state at t, of the step over [t, t + dt] that ended with these.

        ``index`` counts the accepted steps before that step, as for ``step``.
        """


@final
@dataclass(frozen=True)
class AsynchronousLeapfrog(ReversibleSolver):
    """Asynchronous leapfrog (ALF, the method of MALI) on pairs (y, v), v(t0) = f(t0, y0).

        u = f(t + dt/2, y + dt v / 2),   v' = 2 u - v,   y' = y + dt u

    Order two with one evaluation a step. Linearly stable for dt lambda in [-i, i] only: fit for
    oscillation and for short spans, not for dissipative equations. The error estimate compares
    with y + dt v; dense output is quadratic.

    U. Mutze, "An asynchronous leapfrog method II", arXiv:1311.6602 (2013);
    J. Zhuang, N. Dvornek, S. Tatikonda, J. Duncan, "MALI", ICLR (2021).
    """

    facts = _SECOND_ORDER

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, eq.layout)
        return (eq.drift(start, y),)

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        (v,) = state
        half, whole = factors(_LEAP, dt, y)
        (middle,) = moments(t, dt, _HALF, eq.layout)
        u = eq.drift(middle, scaled_sum(y, half, v))
        new, after = scaled_sum(y, whole, u), 2 * u - v
        error = (u.detach() - v.detach()) * _constant(whole)
        return Step(new, error, (after,), (v, after))

    def reverse(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, State]:
        (after,) = state
        half, whole = factors(_LEAP, -dt, y)
        (middle,) = moments(t, dt, _HALF, eq.layout)
        u = eq.drift(middle, scaled_sum(y, half, after))
        return scaled_sum(y, whole, u), (2 * u - after,)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return _parabola(step, dt, y)


@final
@dataclass(frozen=True)
class ReversibleHeun(ReversibleSolver):
    """Reversible Heun on (y, z, v), z(t0) = y(t0), v(t0) = f(t0, y0).

        z' = 2 y - z + dt v,   v' = f(t + dt, z'),   y' = y + dt (v + v') / 2

    Order two with one evaluation a step. Linearly stable for dt lambda in [-i, i] only. The error
    estimate dt (v' - v) / 2 compares with Euler's method; dense output is quadratic. On rows of a
    Stratonovich equation dt v becomes f dt + g dW, both fields are carried, and dense output is
    linear.

    P. Kidger, J. Foster, X. Li, T. Lyons, "Efficient and accurate gradients for neural SDEs",
    NeurIPS (2021).
    """

    facts = replace(_SECOND_ORDER, noise=Noisy((Stratonovich,), 0.5, 1.0, 1.0, 1.0, 1.0, error=(1.0, 1.5)))

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, eq.layout)
        return (y, *_fields(eq, start, y))

    def slope(self, state: State) -> Tensor | None:
        return state[1]

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        if eq.noise is not None:
            w = eq.increment(t, dt, index).W
            new, after, error = _noisy_heun(eq, t, dt, y, state, w, back=False)
            return Step(new, error, after, ())
        new, after = _heun(eq, t, dt, y, state, back=False)
        (half,) = factors(_HALF, dt, y)
        error = (after[1].detach() - state[1].detach()) * _constant(half)
        return Step(new, error, after, (state[1], after[1]))

    def reverse(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, State]:
        if eq.noise is None:
            return _heun(eq, t, dt, y, state, back=True)
        w = -eq.increment(t, dt, index).W
        return _noisy_heun(eq, t, dt, y, state, w, back=True)[:2]

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return _parabola(step, dt, y)


@final
@dataclass(frozen=True)
class McCallumFoster(ReversibleSolver):
    """A reversible form of any explicit Runge-Kutta method, on pairs (y, z), z(t0) = y(t0).

        y' = lam y + (1 - lam) z + Psi_dt(t, z),   z' = z - Psi_{-dt}(t + dt, y')

    with Psi_dt(t, y) the increment of a step. Keeps the order and the error estimate of the method
    at twice its evaluations. Real negative dt lambda is stable up to about 1 - lam only; the
    imaginary extent is near the method's own: fit for oscillation and for short spans. Walking
    back multiplies rounding by 1/lam a step, so long solves want float64 or lam close to one.

    S. McCallum, J. Foster, "Efficient, accurate and stable gradients for neural ODEs",
    arXiv:2410.11648 (2024).

    Args:
        solver: the explicit method.
        coupling: lam, in (0, 1].

    Raises:
        TypeError: the solver is not an explicit Runge-Kutta method.
        ValueError: lam outside (0, 1].
    """

    solver: RungeKutta
    coupling: float = 0.999

    def __post_init__(self) -> None:
        if not isinstance(self.solver, RungeKutta):
            raise TypeError(
                f"McCallumFoster was given a {type(self.solver).__name__}: "
                f"give an explicit Runge-Kutta method, such as dxdt.Bosh3()"
            )
        if not 0 < self.coupling <= 1:
            raise ValueError(f"McCallumFoster(coupling={self.coupling}): give a number in (0, 1]")
        inner = self.solver.facts
        self.claim(
            replace(
                _SECOND_ORDER,
                order=inner.order,
                stages=2 * (inner.stages + bool(self.solver.tableau.fsal)),
                dense_order=min(3, inner.order),
                error_order=inner.error_order,
                degree=3,
            )
        )

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return (y,)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        (z,) = state
        there = self._inner(eq, t, dt, z, index)
        new = torch.lerp(z, y, self.coupling) + (there.y - z)
        back = self._inner(eq, t + dt, -dt, new, index)
        slopes = there.data[0].reshape(y.shape), back.data[0].reshape(y.shape)
        return Step(new, there.error, (z - (back.y - new),), slopes)

    def reverse(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, State]:
        back = self._inner(eq, t + dt, -dt, y, index)
        z = state[0] + (back.y - y)
        there = self._inner(eq, t, dt, z, index)
        lam = self.coupling
        return (y - (1 - lam) * z - (there.y - z)) / lam, (z,)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))

    def _inner(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, index: Ticks) -> Step:
        """One step of the method from anywhere."""
        return self.solver.step(eq, t, dt, y, self.solver.init(eq, t, y, False), index)


def _constant(factor: Tensor | float) -> Tensor | float:
    """A factor without its graph."""
    return factor.detach() if isinstance(factor, Tensor) else factor


def _parabola(step: Step, dt: Ticks, y: Tensor) -> Tensor:
    """The quadratic with slope v at the start, or the line where there is noise, to the end."""
    if not step.data:
        return torch.stack((step.y - y, torch.zeros_like(y)))
    (h,) = factors(END, dt, y)
    first = h * step.data[0]
    return torch.stack((first, step.y - y - first))


def _fields(eq: Rows, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What drives the equation: its drift, and its diffusion where there is noise."""
    drift = eq.drift(t, y)
    return (drift,) if eq.noise is None else (drift, eq.diffusion(t, y))


def _heun(eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, *, back: bool) -> tuple[Tensor, State]:
    """The map of reversible Heun; its inverse is the same map with dt negated."""
    z, v = state
    half, whole = factors(_LEAP, -dt if back else dt, y)
    (time,) = moments(t, dt, START if back else END, eq.layout)
    z = scaled_sum(2 * y - z, whole, v)
    after = eq.drift(time, z)
    return scaled_sum(y, half, v + after), (z, after)


def _noisy_heun(
    eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, w: Tensor, *, back: bool
) -> tuple[Tensor, State, Tensor]:
    """The same with noise: the new y, the state, and the error estimate."""
    z, f, g = state
    (h,) = factors(END, -dt if back else dt, y)
    (time,) = moments(t, dt, START if back else END, eq.layout)
    first = scaled_sum(eq.spread(g, w), h, f)
    z = torch.add(first, y, alpha=2) - z
    f, g = eq.drift(time, z), eq.diffusion(time, z)
    second = scaled_sum(eq.spread(g, w), h, f)
    new = torch.add(y, first + second, alpha=0.5)
    return new, (z, f, g), 0.5 * (second.detach() - first.detach())
