"""One-step methods for stochastic equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from dxdt.ops.clock import END, START, Ticks, factors, moments, scaled_sum
from dxdt.solve.equation import Rows
from dxdt.solve.solver import Solver, State, Step

__all__ = ["EulerMaruyama"]



@final
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama for Ito equations: y' = y + f(t, y) dt + g(t, y) (W(t + dt) - W(t)).

    Strong order 1/2 (1 for additive noise), weak order 1; dense output is linear.

    G. Maruyama, "Continuous Markov processes and stochastic equations", Rend. Circ. Mat. Palermo 4 (1955).
    """

    order: ClassVar[float] = 1
    strong_order: ClassVar[float] = 0.5
    weak_order: ClassVar[float] = 1.0
    dense_order: ClassVar[float] = 1
    stages: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        (time,) = moments(t, dt, START, not eq.layout.per_sample, y)
        (h,) = factors(END, dt, y)
        noise = eq.increment(t, dt, index)
        kick = eq.spread(eq.diffusion(time, y), noise.W)
        return Step(scaled_sum(y, h, eq.drift(time, y)) + kick, None, (), ())

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)
