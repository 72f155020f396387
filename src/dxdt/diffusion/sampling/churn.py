"""Churn: noise that is added before a step and removed by it, around any one-step method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Equation, Rows, StochasticEquation
from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.sampling.predictor import CLAIMS, equation_of, normals, reverse_of, settled
from dxdt.ops.times import Ticks
from dxdt.ops.tree import Layout

__all__ = ["Churn"]

_MOST = math.sqrt(2) - 1


@final
@dataclass(frozen=True)
class Churn(Solver):
    """A one-step method of the probability flow that steps down from raised noise, on known grids.

        sigma = c / a,    sigma' = (1 + gamma) sigma at the time t' > t
        x' = r x + m mu + noise q z        (the forward transition from t to t')
        then the method's step from (t', x') to the end of the step

    for low <= sigma <= high, and plainly elsewhere; times later than that of the prior are not visited. The
    noise depends on the seed and the step alone. Dense output is linear.

    Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), algorithm 2,
    there with Heun's method and a process with a = 1.

    Args:
        solver: a one-step method, such as ``Heun()``.
        gamma: relative rise of the noise before each step, S_churn / N of the paper (see ``over``).
        low, high: S_min and S_max, between which sigma is raised.
        noise: S_noise, the factor of the fresh noise.

    Raises:
        ValueError: `gamma` or `noise` is not positive, low > high, or the method has history.
    """

    solver: Solver
    gamma: float = _MOST
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.gamma < math.inf and self.noise > 0 and self.low <= self.high):
            raise ValueError(
                f"Churn(gamma={self.gamma}, low={self.low}, high={self.high}, noise={self.noise}) raises no noise: "
                f"give gamma > 0, noise > 0 and low <= high, or leave Churn out"
            )
        inner = self.solver.facts
        if inner.known_grid:
            raise ValueError(
                f"Churn was given {type(self.solver).__name__}, whose history the noise would make untrue: "
                f"give a one-step method"
            )
        self.claim(Facts(inner.order, inner.stages, stochastic=True, noise=inner.noise or CLAIMS, known_grid=True))

    @classmethod
    def over(
        cls,
        solver: Solver,
        steps: int,
        churn: float = 40.0,
        low: float = 0.05,
        high: float = 50.0,
        noise: float = 1.003,
    ) -> Self:
        """Churn in the paper's terms: gamma = min(churn / steps, sqrt 2 - 1) over a grid of ``steps`` steps.

        The defaults are the paper's for ImageNet at 64 pixels, with 256 steps.
        """
        return cls(solver, min(churn / steps, _MOST), low, high, noise)

    def check(self, equation: Equation) -> None:
        self.solver.check(equation)

    def bind(self, driver: Any, equation: StochasticEquation, t0: np.ndarray, t1: np.ndarray, layout: Layout) -> Any:
        return self.solver.bind(driver, equation, t0, t1, layout)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        tau = equation_of(self, eq).tau
        if tau > 0:
            raise ValueError(f"Churn brings all the noise but the equation has tau={tau}: give tau=0")
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        raised = self._raise(reverse_of(eq).process, t, dt)
        start, length = t, dt
        if isinstance(raised, Tensor) or (raised != t).any():
            z = normals(eq, index, 0)
            y = settled(eq, self._noised(eq, t, raised, eq.layout.unpack(y), z), y)
            start, length = raised, t + dt - raised
        state = self.solver.init(eq, start, y, False)
        return Step(self.solver.step(eq, start, length, y, state, index).y, None, (), ())

    def _raise(self, process: Process, t: Ticks, dt: Ticks) -> Ticks:
        """The time of the raised noise, t itself where none is raised."""
        host = not isinstance(t, Tensor)
        now = torch.as_tensor(t, dtype=torch.float64)
        lam, moving = process.lam(now), torch.as_tensor(dt) != 0
        sigma = (-lam).exp()
        raised = process.time(lam - math.log1p(self.gamma)).clamp(max=process.t1)
        raised = torch.where(moving & (sigma >= self.low) & (sigma <= self.high) & (raised > now), raised, now)
        if not host:
            return raised
        return raised.numpy() if isinstance(t, np.ndarray) else np.float64(raised.item())

    def _noised(self, eq: Rows, t: Ticks, raised: Ticks, x: Tensor, z: Tensor) -> Tensor:
        s, r = (torch.as_tensor(value, dtype=torch.float64) for value in (t, raised))
        if not eq.layout.per_sample:
            s, r = s.reshape(()), r.reshape(())
        forward = reverse_of(eq).process.transition(s, r, x)
        return torch.addcmul(forward.mean(x, reverse_of(eq).mu), self.noise * forward.std, z)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)
