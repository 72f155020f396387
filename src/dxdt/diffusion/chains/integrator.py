"""From a level down to the data: settings of solvers that each sample starts at a level of its own.

The six of the paper are functions that return such settings. What a setting costs is what it says: evaluations of the
solver, one for E[x_0 | x, low] where it denoises, one for a second such step where it is given.

Source: Kim and Ye, "Denoising MCMC for accelerating diffusion-based generative models" (2023), and their code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq import Dopri5, EulerMaruyama, Exponential, Heun, Solver
from dxdt.diffusion.chains.product_space import ProductSpace
from dxdt.diffusion.chains.transport import whole
from dxdt.diffusion.processes.exploding import VE
from dxdt.diffusion.sampling.churn import Churn
from dxdt.diffusion.sampling.grid import Karras, Landing, LogSNR, Time, TimeGrid
from dxdt.diffusion.sampling.reverse_diffusion import ReverseDiffusion
from dxdt.diffusion.sampling.sample import integrate

__all__ = [
    "Integrator",
    "euler_maruyama",
    "kar1",
    "kar2",
    "probability_flow",
    "reverse_diffusion",
    "rk45",
]


@final
@dataclass(frozen=True)
class Integrator:
    """How samples go from levels of their own to the data.

    Args:
        solver: any that `dxdt.diffusion.integrate` takes.
        steps: of the solver; 0 for none, None for one that chooses them by `tol`.
        grid: where they lie.
        tau: share of noise.
        low: level at which the solver stops; the lowest of the prior by default. What starts below is only denoised.
        log_time: whether the solver's time is log sigma instead of sigma.
        denoise: end with E[x_0 | x, low]: one evaluation.
        again: a level e for a second such step, x <- E[x_0 | x, e], as published; none by default.
        tol: relative and absolute tolerance of adaptive solvers.

    Raises:
        ValueError: `steps` is negative, or a level is not positive.
    """

    solver: Solver = Exponential(order=2)  # noqa: RUF009
    steps: int | None = 5
    grid: TimeGrid = Karras()  # noqa: RUF009
    tau: float = 0.0
    low: float | None = None
    log_time: bool = False
    denoise: bool = True
    again: float | None = None
    tol: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"Integrator: steps={self.steps} goes nowhere; give 0 or more, or None.")
        for level in (self.low, self.again):
            if level is not None and not 0 < level < math.inf:
                raise ValueError(f"Integrator: a level of {level} is no noise; give a positive number, or None.")

    @property
    def cost(self) -> int | None:
        """Evaluations, or None where the solver chooses its steps."""
        if self.steps is None:
            return None
        return self.steps * self.solver.facts.stages + self.denoise + (self.again is not None)

    def within(self, calls: int) -> Integrator:
        """Return the same with as many steps as `calls` evaluations allow.

        Raises:
            ValueError: there is none, or the solver chooses its steps.
        """
        rest = calls - self.denoise - (self.again is not None)
        if self.steps is None or rest < 0:
            raise ValueError(
                f"Integrator: {calls} calls are no budget for {type(self.solver).__name__}; give more, or fixed steps."
            )
        return replace(self, steps=rest // self.solver.facts.stages)

    def __call__(
        self,
        space: ProductSpace,
        x: Float[Tensor, "batch *shape"],
        level: Float[Tensor, " batch"],
        *,
        seed: int = 0,
        first: int = 0,
    ) -> tuple[Float[Tensor, "batch *shape"], int]:
        """Return data for x at their levels, and the evaluations, the whole batch being one.

        Args:
            space: the product space.
            x, level: where to start.
            seed: names the noise of stochastic solvers.
            first: number of the first sample.
        """
        low = space.prior.low if self.low is None else self.low
        finite, y = whole(x)
        moves = (level > low * (1 + 1e-6)) & finite
        end, evaluations = x, 0
        if self.steps != 0 and bool(moves.any()):
            end, evaluations = self._solved(space, y, torch.where(moves, level, 2 * low), low, seed, first)
            end = torch.where(moves.reshape(-1, *(1,) * (x.ndim - 1)), end, x)
        at = torch.where(moves, low, level) if self.steps != 0 else level
        if self.denoise:
            end, evaluations = space.denoise(end, at), evaluations + 1
        if self.again is not None:
            end = space.denoise(end, torch.full_like(level, self.again))
            evaluations += 1
        return end, evaluations

    def _solved(
        self, space: ProductSpace, x: Tensor, level: Tensor, low: float, seed: int, first: int
    ) -> tuple[Tensor, int]:
        high = max(space.prior.high, float(level.max()))
        process = VE(0.5 * min(low, space.prior.low), high) if self.log_time else replace(space.clock, high=high)
        start = process.time(-level.log())
        options: dict[str, Any] = {"steps": self.steps, "grid": self.grid, "tau": self.tau}
        if self.steps is None:
            options = {"rtol": self.tol, "atol": self.tol}
        t0 = float(process.time(torch.tensor(-math.log(low), dtype=torch.float64)))
        solved = integrate(
            space.under(process), x, solver=self.solver, seed=seed, first=first, t1=start, t0=t0, **options
        )
        return solved.y1, solved.stats.evaluations


def _points(name: str, points: int, least: int) -> None:
    if points < least:
        raise ValueError(f"{name}: {points} points make no step; give at least {least}.")


def kar1(points: int, low: float = 0.01, again: float | None = None) -> Integrator:
    """Return KAR1, algorithm 1 of EDM: Heun on its grid of N points, the last step to zero being E[x_0 | x, low].

    2 N - 3 evaluations, and one for `again`.

    Source: Karras et al. (2022), algorithm 1.
    """
    _points("kar1", points, 3)
    return Integrator(Heun(), points - 2, Karras(), low=low, again=again)


def kar2(points: int, low: float = 0.01, again: float | None = None, churn: float = 80.0) -> Integrator:
    """Return KAR2, algorithm 2 of EDM: KAR1 from noise raised by min(churn / N, sqrt 2 - 1) between levels 0.05 and 1.

    2 N - 3 evaluations, and one for `again`.

    Source: Karras et al. (2022), algorithm 2, with S_noise = 1.007.
    """
    _points("kar2", points, 3)
    gamma = min(churn / points, math.sqrt(2) - 1)
    return Integrator(Churn(Heun(), gamma, 0.05, 1.0, 1.007), points - 2, Karras(), low=low, again=again)


def probability_flow(points: int, low: float = 0.01, again: float | None = None) -> Integrator:
    """Return the probability flow by the reverse-diffusion predictor, on N levels even in log sigma and to zero.

    N evaluations, and one for `again`.

    Source: Song et al. (2021), appendix E.
    """
    _points("probability_flow", points, 2)
    return Integrator(ReverseDiffusion(), points, Landing(LogSNR()), low=low, denoise=False, again=again)


def reverse_diffusion(points: int, low: float = 0.01, again: float | None = None) -> Integrator:
    """Return the reverse-diffusion predictor on N levels even in log sigma, the last step being E[x_0 | x, low].

    N evaluations, and one for `again`.

    Source: Song et al. (2021), appendix E.
    """
    _points("reverse_diffusion", points, 2)
    return Integrator(ReverseDiffusion(), points - 1, LogSNR(), tau=1.0, low=low, again=again)


def euler_maruyama(points: int, low: float = 0.01) -> Integrator:
    """Return Euler and Maruyama's method on the reverse equation in log sigma, N equal steps and E[x_0 | x, low].

    N + 1 evaluations.

    Source: Song et al. (2021), equation 6. In the published code N steps of 1 / N start at N points 1 / (N - 1) apart;
    here they start where the last has ended.
    """
    _points("euler_maruyama", points, 1)
    return Integrator(EulerMaruyama(), points, Time(), tau=1.0, low=low, log_time=True)


def rk45(tol: float, low: float = 0.01) -> Integrator:
    """Return Dormand and Prince's 5(4) on the probability flow in log sigma, and E[x_0 | x, low].

    Each sample has steps of its own; in the published code one error norm couples the batch.

    Source: Song et al. (2021), appendix D.1.
    """
    return Integrator(Dopri5(), None, low=low, log_time=True, tol=tol)
