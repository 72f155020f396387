"""Correctors: Langevin moves that draw x_t towards its marginal, between the steps of a predictor.

    x <- x + e score(x, t) + sqrt(2 e) z

leaves the marginal at t unchanged up to O(e^2) a move where e does not depend on x. The rules for e are
those of score_sde, for every process: alpha is the squared ratio r^2 = (a_t / a_s)^2 of neighbouring times,
which is 1 - beta_i of a preserving chain and one for an exploding process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Equation, Rows, StochasticEquation
from dxdt.diffusion.sampling.predictor import (
    CLAIMS,
    Identity,
    answer,
    ends_of,
    equation_of,
    normals,
    reverse_of,
    settled,
)
from dxdt.ops.times import Ticks
from dxdt.ops.tree import Layout

__all__ = ["AnnealedLangevin", "Corrector", "Langevin", "PredictorCorrector"]


@dataclass(frozen=True)
class Corrector(ABC):
    """Base of the correctors.

    Args:
        snr: r, the ratio of signal and noise in a move.
        steps: moves at every time, each with an evaluation of its own.

    Raises:
        ValueError: `snr` is not positive, or `steps` below 1.
    """

    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        if not (self.snr > 0 and self.steps >= 1):
            raise ValueError(
                f"{type(self).__name__}(snr={self.snr}, steps={self.steps}) moves nothing: "
                f"give snr > 0 and at least 1 step, or leave the corrector out"
            )

    @abstractmethod
    def length(self, alpha: Tensor, c: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """e for score and noise (batch, *shape), of a shape that broadcasts against them."""


@final
@dataclass(frozen=True)
class Langevin(Corrector):
    """e = 2 alpha (r |z| / |score|)^2, with the norms of each sample.

    Norms fluctuate little in many dimensions, and bias the law by a relative 1/D: for samples of few entries,
    whose score may come close to zero, take `AnnealedLangevin`.

    Song et al., "Score-based generative modeling through stochastic differential equations" (2021),
    algorithms 4 and 5.

    Args:
        batch_mean: the means of the norms over the batch instead, as score_sde does; samples then depend on
            each other.
        expected: sqrt(D) instead of |z|, which the paper advises for small batches.
    """

    batch_mean: bool = False
    expected: bool = False

    def length(self, alpha: Tensor, c: Tensor, score: Tensor, z: Tensor) -> Tensor:
        top = _norm(z).fill_(z[0].numel() ** 0.5) if self.expected else _norm(z)
        low = _norm(score)
        if self.batch_mean:
            top, low = top.mean(0, keepdim=True), low.mean(0, keepdim=True)
        # A score of zero gives no scale: such a sample stays where it is.
        ratio = torch.where(low > 0, self.snr * top / torch.where(low > 0, low, 1.0), 0.0)
        return 2 * alpha * ratio.square().to(z.dtype)


@final
@dataclass(frozen=True)
class AnnealedLangevin(Corrector):
    """e = 2 alpha (r c(t))^2, where c(t) is the deviation of the noise at t.

    Song and Ermon, "Generative modeling by estimating gradients of the data distribution" (2019),
    algorithm 1, with the step sizes of score_sde.
    """

    def length(self, alpha: Tensor, c: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return 2 * alpha * (self.snr * c).square()


def _norm(x: Tensor) -> Tensor:
    """Norm of each sample, (batch, 1, ...), in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=wide)
    return size.reshape(-1, *(1,) * (x.dim() - 1))


@final
@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Any one-step method with a corrector beside each of its steps, on known grids.

    The corrector moves at the beginning of a step, before the predictor, or at its end. Its noise comes from
    the driver but not from its path: it depends on the seed, the step and the move alone. Where the equation
    has no noise (tau = 0) the predictor follows the probability flow, and so may be any method; a share of
    noise needs a method for it. Dense output is linear.

    Song et al., "Score-based generative modeling through stochastic differential equations" (2021),
    algorithm 1 and appendix G.

    Args:
        predictor: a one-step method, or None for sampling by the corrector alone (`Identity`).
        corrector: `Langevin(snr, steps)` or `AnnealedLangevin(snr, steps)`.
        first: whether the corrector comes before the predictor.

    Raises:
        TypeError: `corrector` is none.
        ValueError: the predictor has history.
    """

    predictor: Solver | None
    corrector: Corrector = Langevin()
    first: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.corrector, Corrector):
            raise TypeError(
                f"PredictorCorrector was given {self.corrector!r} as corrector: give Langevin(snr=0.16) or its like"
            )
        if self.predictor is not None and self.predictor.facts.known_grid:
            raise ValueError(
                f"PredictorCorrector was given {type(self.predictor).__name__}, whose history a corrector would "
                f"make untrue: give a one-step method"
            )
        inner = self.inner.facts
        stages = inner.stages + self.corrector.steps
        self.claim(Facts(inner.order, stages, stochastic=True, noise=inner.noise or CLAIMS, known_grid=True))

    @property
    def inner(self) -> Solver:
        """The predictor, where there is none the identity."""
        return Identity() if self.predictor is None else self.predictor

    def check(self, equation: Equation) -> None:
        self.inner.check(equation)

    def bind(self, driver: Any, equation: StochasticEquation, t0: np.ndarray, t1: np.ndarray, layout: Layout) -> Any:
        return self.inner.bind(driver, equation, t0, t1, layout)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        tau = equation_of(self, eq).tau
        if tau > 0 and self.inner.facts.noise is None:
            raise ValueError(
                f"{type(self.inner).__name__} follows the probability flow but the equation has tau={tau}: "
                f"give tau=0, or a predictor for noise such as ReverseDiffusion()"
            )
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, end = ends_of(eq, t, dt)
        if self.first:
            y = self._correct(eq, start, (start, end), y, index)
        state = self.inner.init(eq, t, y, False)
        new = self.inner.step(eq, t, dt, y, state, index).y
        if not self.first:
            new = self._correct(eq, end, (start, end), new, index)
        return Step(new, None, (), ())

    def _correct(self, eq: Rows, time: Tensor, ends: tuple[Tensor, Tensor], y: Tensor, index: Ticks) -> Tensor:
        """Move ``y`` at a time, an end of the step between ``ends``."""
        x, process = eq.layout.unpack(y), reverse_of(eq).process
        start, end = ends
        alpha = process.transition(end, start, x).r.square()
        c = process.moments(time, x).c
        for move in range(self.corrector.steps):
            score = answer(eq, time, x).score
            z = normals(eq, index, move)
            e = self.corrector.length(alpha, c, score, z)
            x = x + e * score + (2 * e).sqrt() * z
        return settled(eq, x, y)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)
