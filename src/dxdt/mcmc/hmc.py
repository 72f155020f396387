"""Kernels with a momentum p ~ N(0, I): Hamiltonian Monte Carlo and underdamped Langevin.

    dx = p dt,    dp = (score(x) - friction p) dt + sqrt(2 friction) dW

leaves exp(log p(x) - |p|^2 / 2) invariant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dxdt.diffeq import StoermerVerlet, Symplectic
from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, State, Tunable, chosen, dot, known, local_of, metropolis, rows
from dxdt.mcmc.langevin import positive
from dxdt.mcmc.ratio import Energy, Ratio
from dxdt.mcmc.target import Local, Target

__all__ = ["HMC", "UnderdampedLangevin"]


class _Way:
    """A path of Hamiltonian steps: places at which the score was asked, and the momentum."""

    def __init__(self, target: Target, x: Tensor, local: Local, p: Tensor) -> None:
        self.target, self.p = target, p
        self.places = [(x, local)]

    def advance(self, method: Symplectic, h: float | Tensor) -> None:
        """Take one step of a method that begins with a kick."""
        rule = method.composition
        for drift, kick in zip(rule.drifts, rule.kicks, strict=True):
            if drift:
                x = self.places[-1][0] + drift * h * self.p
                self.places.append((x, self.target(x)))
            self.p = self.p + kick * h * self.places[-1][1].score

    @property
    def end(self) -> tuple[Tensor, Local]:
        """The last place."""
        return self.places[-1]


@final
@dataclass(frozen=True)
class HMC(Tunable):
    """Hamiltonian Monte Carlo: a fresh momentum, then `steps` symplectic steps of length h as a proposal.

        accepted with probability min(1, exp(H(x, p) - H(x', p'))),    H = -log p(x) + |p|^2 / 2

    for each chain on its own.

    Args:
        step_size: h.
        steps: of the trajectory.
        integrator: any symplectic method of the library that begins with a kick.
        ratio: how the difference of log densities is known; `LineIntegral()` follows the whole trajectory, at no
            evaluation.
        jitter: h is drawn for each chain from h (1 - jitter) to h (1 + jitter), so that no chain meets its own
            period.

    Raises:
        ValueError: h is not positive, there is no step, the jitter is not in [0, 1), or the integrator begins
            with a drift.

    Source: Duane et al., "Hybrid Monte Carlo" (1987); Neal, "MCMC using Hamiltonian dynamics" (2011).
    """

    step_size: float
    steps: int = 10
    integrator: Symplectic = StoermerVerlet()  # noqa: RUF009
    ratio: Ratio = Energy()  # noqa: RUF009
    jitter: float = 0.0

    rate: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        positive("HMC", step_size=self.step_size)
        if self.steps < 1 or not 0 <= self.jitter < 1:
            raise ValueError(
                f"HMC: steps={self.steps} and jitter={self.jitter} are no trajectory; give at least one step and a "
                "jitter from 0 to below 1."
            )
        if not self.integrator.composition.kicks_first:
            raise ValueError(
                f"HMC: {type(self.integrator).__name__} begins with a drift and is not its own reverse; "
                "give StoermerVerlet(), Yoshida4(), BlanesMoan4() or BlanesMoan6()."
            )

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        here, first = known(target, state)
        x = state.x
        h: float | Tensor = self.step_size
        if self.jitter:
            h = rows(h * (1 + self.jitter * (2 * draws.uniform(1) - 1)), x)
        p = draws.normal(x)
        way = _Way(target, x, here, p)
        for _ in range(self.steps):
            way.advance(self.integrator, h)
        climb, extra = self.ratio(target, way.places)
        log_ratio = climb + 0.5 * (dot(p, p) - dot(way.p, way.p))
        accepted, rate = metropolis(log_ratio, draws, 0)
        y, there = way.end
        new = State(chosen(accepted, y, x), local_of(accepted, there, here), state.momentum)
        return new, Info(first + len(way.places) - 1 + extra, rate, -log_ratio)


@final
@dataclass(frozen=True)
class UnderdampedLangevin(Tunable):
    """One step of underdamped Langevin dynamics by the splitting OBABO: one evaluation.

        O: p <- e^(-friction h / 2) p + sqrt(1 - e^(-friction h)) z,    B: p <- p + h / 2 score(x),    A: x <- x + h p

    With a ratio the part BAB is accepted or rejected, and a rejection turns the momentum round: the kernel then
    leaves the target invariant. Without it the bias is of the second order in h.

    Args:
        step_size: h.
        friction: per unit of time.
        ratio: how the difference of log densities is known, or None for no correction.

    Raises:
        ValueError: h or the friction is not positive.

    Source: Horowitz, "A generalized guided Monte Carlo algorithm" (1991); Bussi and Parrinello, "Accurate sampling
    using Langevin dynamics" (2007).
    """

    step_size: float
    friction: float = 1.0
    ratio: Ratio | None = None

    rate: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        positive("UnderdampedLangevin", step_size=self.step_size, friction=self.friction)

    @property
    def tunable(self) -> bool:
        """Whether it accepts or rejects."""
        return self.ratio is not None

    def _refreshed(self, p: Tensor, z: Tensor) -> Tensor:
        keep = math.exp(-0.5 * self.friction * self.step_size)
        return keep * p + math.sqrt(1 - keep * keep) * z

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        here, first = known(target, state)
        x = state.x
        p = draws.normal(x, 2) if state.momentum is None else state.momentum
        p = self._refreshed(p, draws.normal(x, 0))
        way = _Way(target, x, here, p)
        way.advance(StoermerVerlet(), self.step_size)
        y, there = way.end
        if self.ratio is None:
            momentum = self._refreshed(way.p, draws.normal(x, 1))
            return State(y, there, momentum), Info(first + 1)
        climb, extra = self.ratio(target, way.places)
        log_ratio = climb + 0.5 * (dot(p, p) - dot(way.p, way.p))
        accepted, rate = metropolis(log_ratio, draws, 0)
        momentum = self._refreshed(chosen(accepted, way.p, -p), draws.normal(x, 1))
        new = State(chosen(accepted, y, x), local_of(accepted, there, here), momentum)
        return new, Info(first + 1 + extra, rate, -log_ratio)
