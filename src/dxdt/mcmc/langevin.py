"""Langevin kernels: a step of dx = score / 2 dt + dW, taken as it is or corrected.

    y = x + h / 2 score(x) + sqrt(h) z,        z ~ N(0, I)

Source: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations"
(1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Moving, State, Tunable, chosen, dot, known, local_of, metropolis
from dxdt.mcmc.ratio import Energy, Ratio
from dxdt.mcmc.target import Target

__all__ = ["MALA", "UnadjustedLangevin", "positive"]


def positive(name: str, **values: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        ValueError: one of them is not.
    """
    for what, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {what}={value} is not positive; give a number above zero.")


@final
@dataclass(frozen=True)
class UnadjustedLangevin(Moving):
    """The step itself, without a correction: one evaluation, biased by an amount that grows with h.

        y = x + h / 2 score(x) + sqrt(h - k h^2 / 4) z

    With k = 0 it is the step of Euler and Maruyama, which widens a normal law N(m, 1 / k) by h^2 k / 4 a step; with k
    the curvature of the target it leaves such a law as wide as it is.

    Args:
        step_size: h.
        curvature: k.

    Raises:
        ValueError: h is not positive, or k is negative or at least 4 / h.
    """

    step_size: float
    curvature: float = 0.0

    def __post_init__(self) -> None:
        positive("UnadjustedLangevin", step_size=self.step_size)
        if not 0 <= self.curvature * self.step_size < 4:
            raise ValueError(
                f"UnadjustedLangevin: curvature={self.curvature} leaves no noise in a step of {self.step_size}; "
                f"give a curvature from 0 to below {4 / self.step_size:g}."
            )

    def init(self, target: Target, x: Tensor) -> State:
        """Return the state at `x`; the score is asked when it is needed."""
        return State(x)

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        here, evaluations = known(target, state)
        h = self.step_size
        std = math.sqrt(h - 0.25 * self.curvature * h * h)
        x = state.x + 0.5 * h * here.score + std * draws.normal(state.x)
        return State(x, None, state.momentum), Info(evaluations)


@final
@dataclass(frozen=True)
class MALA(Tunable):
    """The Metropolis-adjusted Langevin algorithm: the step is a proposal.

        accepted with probability min(1, p(y) q(x | y) / (p(x) q(y | x))),    q(y | x) = N(x + h / 2 score(x), h)

    for each chain on its own; one evaluation a step. In D dimensions h ~ D^(-1/3) keeps the acceptance.

    Args:
        step_size: h.
        ratio: how p(y) / p(x) is known: `Energy()`, or `LineIntegral()` where only the score is.

    Raises:
        ValueError: h is not positive; on stepping, the ratio needs a density that the target does not give.

    Source: Roberts and Rosenthal, "Optimal scaling of discrete approximations to Langevin diffusions" (1998), for
    the rate of 0.574.
    """

    step_size: float
    ratio: Ratio = Energy()  # noqa: RUF009

    rate: ClassVar[float] = 0.574

    def __post_init__(self) -> None:
        positive("MALA", step_size=self.step_size)

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        here, first = known(target, state)
        x, h = state.x, self.step_size
        z = draws.normal(x)
        y = x + 0.5 * h * here.score + math.sqrt(h) * z
        there = target(y)
        climb, extra = self.ratio(target, ((x, here), (y, there)))
        back = (x - y - 0.5 * h * there.score) / math.sqrt(h)
        log_ratio = climb + 0.5 * (dot(z, z) - dot(back, back))
        accepted, rate = metropolis(log_ratio, draws, 0)
        new = State(chosen(accepted, y, x), local_of(accepted, there, here), state.momentum)
        return new, Info(first + 1 + extra, rate, -log_ratio)
