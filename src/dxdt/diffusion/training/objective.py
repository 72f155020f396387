"""Objectives: noise the data, ask a denoiser for what was added, and weigh its error.

    loss(x_0) = w(t) |eps_hat(a x_0 + b mu + c eps, t) - eps|^2,    t ~ a law of times

The error of the score, of the data and of the noise are the same up to known factors,

    c^2 |s_hat - s|^2 = |eps_hat - eps|^2 = (a / c)^2 |x_hat - x_0|^2,

so a weight on one is a weight on all. With w = g^2 / c^2 and uniform times the mean is, up to
constants, the bound on the negative log likelihood of the reverse equation.

Source: Song et al., "Score-based generative modeling through SDEs" (2021), equation 7; Song et
al., "Maximum likelihood training of score-based diffusion models" (2021), theorem 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.denoisers.denoiser import DenoiserLike
from dxdt.diffusion.processes.process import Process, along
from dxdt.diffusion.training.time_law import (
    DiscreteTimes,
    LogNormalScale,
    TimeLaw,
    UniformLogSNR,
    UniformTime,
    Weight,
    loss_of_information,
    low_discrepancy,
)


@final
@dataclass(frozen=True)
class NoiseWeight:
    """w = 1: the plain error of the noise, lambda = c^2 on the score."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)


@final
@dataclass(frozen=True)
class LikelihoodWeight:
    """w = g^2 / c^2, lambda = g^2 on the score: the bound on the likelihood."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return g^2 / c^2 = -2 lam'(t)."""
        return 2 * loss_of_information(process, t)


@final
@dataclass(frozen=True)
class DataWeight:
    """w = (s^2 + d^2) / d^2 with s = c / a, that is (s^2 + d^2) / (s d)^2 on the data: EDM's weight.

    Args:
        std: d, the standard deviation of the data.

    Source: Karras et al. (2022), table 1.
    """

    std: float = 0.5

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return (c / a)^2 / d^2 + 1."""
        return (-2 * process.lam(t)).exp() / self.std**2 + 1


@final
@dataclass(frozen=True)
class MinSNR:
    """w = min(1, gamma c^2 / a^2): early times count less.

    Source: Hang et al., "Efficient diffusion training via min-SNR weighting strategy" (2023).
    """

    gamma: float = 5.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return min(1, gamma exp(-2 lam))."""
        return (self.gamma * (-2 * process.lam(t)).exp()).clamp(max=1.0)


class Reduction(Protocol):
    """From squared errors of entries to a number for each sample."""

    def __call__(self, error: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return one number a sample."""
        ...


@final
@dataclass(frozen=True)
class Mean:
    """The mean over the entries of a sample."""

    def __call__(self, error: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the mean."""
        return error.flatten(1).mean(1)


@final
@dataclass(frozen=True)
class HalfSum:
    """Half the sum over the entries of a sample, in which the bound on the likelihood is in nats."""

    def __call__(self, error: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the sum over two."""
        return 0.5 * error.flatten(1).sum(1)


class Objective(Protocol):
    """What training asks of a loss."""

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times for `u` uniform in [0, 1)."""
        ...

    def at(
        self, denoiser: DenoiserLike, x0: Tensor, t: Tensor, eps: Tensor, mu: Tensor | None = None, **given: Any
    ) -> Tensor:
        """Return the loss of every sample at given times and noise."""
        ...


class Drawn(ABC):
    """An objective that draws its own times and noise when it is called."""

    @abstractmethod
    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times for `u` uniform in [0, 1)."""

    @abstractmethod
    def at(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        eps: Float[Tensor, "batch *shape"],
        mu: Tensor | None = None,
        **given: Any,
    ) -> Float[Tensor, " batch"]:
        """Return the loss of every sample at given times and noise.

        Args:
            given: anything else that the denoiser is told (a label).
        """

    def __call__(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        generator: torch.Generator,
        mu: Tensor | None = None,
        **given: Any,
    ) -> Float[Tensor, " batch"]:
        """Return the loss of every sample, with times and noise from `generator` (on the CPU)."""
        u = low_discrepancy(x0.shape[0], generator).to(x0.device)
        t = self.times(denoiser.process, u)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        return self.at(denoiser, x0, t, eps, mu, **given)


@final
@dataclass(frozen=True)
class DenoisingScoreMatching(Drawn):
    """The weighted error of the noise, per sample.

    Args:
        law: where in time examples are noised.
        weight: w(t); one by default.
        proposal: where times are drawn instead, with the weight law / proposal: another variance,
            the same mean (importance sampling).
        reduction: over the entries of a sample; their mean by default.
    """

    law: TimeLaw = UniformTime()
    weight: Weight = NoiseWeight()
    proposal: TimeLaw | None = None
    reduction: Reduction = Mean()

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times of the proposal, or else of the law, for `u` uniform in [0, 1)."""
        return (self.proposal or self.law).times(process, u)

    def weights(self, process: Process, t: Tensor) -> Tensor:
        """Return w(t), times law / proposal where there is a proposal."""
        weight = self.weight(process, t)
        if self.proposal is None:
            return weight
        return weight * (self.law.density(process, t) / self.proposal.density(process, t))

    def at(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        eps: Float[Tensor, "batch *shape"],
        mu: Tensor | None = None,
        **given: Any,
    ) -> Float[Tensor, " batch"]:
        process = denoiser.process
        noise = denoiser(process.perturb(x0, t, eps, mu), t, mu, **given).noise
        weight = along(self.weights(process, t.double()), x0)
        return self.reduction(weight * (noise - eps).square())


@final
@dataclass(frozen=True)
class EDMLoss(Drawn):
    """The error of the data under log-normal noise levels, per sample.

        loss(x_0) = (s^2 + d^2) / (s d)^2 |D(x_0 + s eps; s) - x_0|^2,    log s ~ N(mean, std^2)

    for s = c / a, so that it serves any process.

    Args:
        law: of the noise levels.
        data_std: d, the standard deviation of the data.
        reduction: over the entries of a sample; their mean by default.

    Source: Karras et al. (2022), equation 8 and table 1.
    """

    law: TimeLaw = LogNormalScale()
    data_std: float = 0.5
    reduction: Reduction = Mean()

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times of the law for `u` uniform in [0, 1)."""
        return self.law.times(process, u)

    def at(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        eps: Float[Tensor, "batch *shape"],
        mu: Tensor | None = None,
        **given: Any,
    ) -> Float[Tensor, " batch"]:
        process = denoiser.process
        data = denoiser(process.perturb(x0, t, eps, mu), t, mu, **given).data
        precision = (2 * process.lam(t.double())).exp() + 1 / self.data_std**2
        return self.reduction(along(precision, x0) * (data - x0).square())


def maximum_likelihood(t0: float = 1e-5) -> DenoisingScoreMatching:
    """Return the bound on the likelihood with importance sampling of t.

    Its mean is that of the likelihood weighting under uniform times; its weight is the constant
    2 (lam(t0) - lam(t1)) / (t1 - t0).

    Source: Song et al., "Maximum likelihood training" (2021), section 4.2.
    """
    return DenoisingScoreMatching(UniformTime(t0), LikelihoodWeight(), UniformLogSNR(t0), HalfSum())


def smld(count: int = 1000) -> DenoisingScoreMatching:
    """Return the loss of the discrete VE model: 1/2 sum |sigma s_hat + eps|^2, sigma_i geometric.

    Times are i / (count - 1), where `VE` has sigma = low (high / low)^(i / (count - 1)).

    Source: Song and Ermon, "Improved techniques for training score-based generative models" (2020).
    """
    return DenoisingScoreMatching(DiscreteTimes(count, 0.0, 1.0), reduction=HalfSum())


def ddpm(count: int = 1000) -> DenoisingScoreMatching:
    """Return the loss of the discrete VP model: the mean |eps_hat - eps|^2 at t = (i + 1) / count.

    Source: Ho et al., "Denoising diffusion probabilistic models" (2020), equation 14.
    """
    return DenoisingScoreMatching(DiscreteTimes(count, 1 / count, 1.0))
