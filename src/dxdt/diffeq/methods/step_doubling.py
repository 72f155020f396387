"""Solvers made of solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import Ticks

__all__ = ["HalfStep"]


@final
@dataclass(frozen=True)
class HalfStep(Solver):
    """Any one-step method made adaptive by step doubling: one step beside two of half the length.

        error = (y_2 - y_1) / (2^p - 1)

    with y_1 after the whole step, y_2 after the halves, and p the order (one with noise). The solution is y_2, or
    with ``extrapolate`` y_2 + error, of order p + 1; that spends what the method preserves (a
    symplectic form, an inverse), so it is refused for methods made for that. Costs three steps.
    Dense output is the quartic through both ends, their slopes and the middle.

    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", II.4 (1993).

    Args:
        solver: the method.
        extrapolate: whether to add the estimate to the solution.

    Raises:
        ValueError: a method with history or an estimate of its own, or extrapolation that would spoil it.
    """

    solver: Solver
    extrapolate: bool = False

    def __post_init__(self) -> None:
        name = type(self.solver).__name__
        facts = self.solver.facts
        if facts.known_grid:
            raise ValueError(f"HalfStep was given {name}, which needs known steps: give a one-step method")
        if facts.semilinear:
            raise ValueError(f"HalfStep was given {name}, which estimates its error by itself: give it as it is")
        if self.extrapolate and (facts.reversible or facts.separable or facts.stochastic):
            raise ValueError(f"HalfStep(extrapolate=True) spoils what {name} preserves: leave extrapolate out")
        # The estimate has half an order more than the claims on noise.
        noise = facts.noise and replace(
            facts.noise, error=(facts.noise.general + 0.5, facts.noise.additive + 0.5), inside=True
        )
        self.claim(
            Facts(
                order=facts.order + self.extrapolate,
                stages=3 * facts.stages,
                dense_order=min(4, facts.order),
                error_order=facts.noise.general + 0.5 if facts.noise and facts.stochastic else facts.order + 1,
                degree=4,
                stochastic=facts.stochastic,
                noise=noise,
                separable=facts.separable,
            )
        )

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return self.solver.init(eq, t, y, dense)

    def slope(self, state: State) -> Tensor | None:
        return self.solver.slope(state)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        half = dt / 2
        with torch.set_grad_enabled(self.extrapolate and torch.is_grad_enabled()):
            whole = self.solver.step(eq, t, dt, y, state, index).y
        first = self.solver.step(eq, t, half, y, state, index)
        second = self.solver.step(eq, t + half, half, first.y, first.state, index)
        order = self.solver.facts.order if eq.noise is None else 1
        error = (second.y - whole) / (2**order - 1)
        new = second.y + error if self.extrapolate else second.y
        data = first.y, second.y, *first.data, *second.data
        return Step(new, error.detach(), second.state, data)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        middle, end, *data = step.data
        n = len(data) // 2
        half = dt / 2
        first = self.solver.dense(Step(middle, None, (), tuple(data[:n])), half, y)
        second = self.solver.dense(Step(end, None, (), tuple(data[n:])), half, middle)
        powers = torch.arange(1, second.shape[0] + 1, dtype=y.dtype, device=y.device)
        after = torch.einsum("j,j...->...", powers, second)
        c1, c2, c3 = hermite(y, step.y, 2 * first[0], 2 * after)
        lift = 16 * (middle - y) - 8 * c1 - 4 * c2 - 2 * c3  # of lift theta^2 (1 - theta)^2
        return torch.stack((c1, c2 + lift, c3 - 2 * lift, lift))
