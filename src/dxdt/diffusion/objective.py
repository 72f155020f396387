"""Denoising score matching: teach a denoiser by noising data and asking for the noise.

    loss(x_0) = w(t) |eps_hat(a x_0 + b mu + c eps, t) - eps|^2 / D,    t ~ a law of times

With times uniform in lam = log(a / c) and w = 1, its mean is, up to constants, the bound on the
negative log likelihood of the reverse equation; with times uniform in t it is the usual loss.

Source: Song et al., "Score-based generative modeling through SDEs" (2021), equation 7; Song et
al., "Maximum likelihood training of score-based diffusion models" (2021), theorem 1; Kingma et
al., "Variational diffusion models" (2021), equation 19 and appendix I.1 (low-discrepancy times).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.denoiser import DenoiserLike
from dxdt.diffusion.process import Process


def low_discrepancy(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Return `count` numbers in [0, 1), each uniform, together even: (u + i / count) mod 1.

    They come in random order, so that they are independent of the order of the data.
    """
    u = torch.rand((), generator=generator, dtype=torch.float64)
    grid = (u + torch.arange(count, dtype=torch.float64) / count) % 1
    return grid[torch.randperm(count, generator=generator)]


class TimeLaw(Protocol):
    """Where in time a training example is noised."""

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times for `u` uniform in [0, 1)."""
        ...


@final
@dataclass(frozen=True)
class UniformTime:
    """t uniform in [t0, t1]."""

    t0: float = 1e-5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return t0 + u (t1 - t0)."""
        return self.t0 + u * (process.t1 - self.t0)


@final
@dataclass(frozen=True)
class UniformLogSNR:
    """lam = log(a / c) uniform between its values at t0 and t1: the weights of the likelihood."""

    t0: float = 1e-5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return the t at which lam lies a fraction `u` of the way."""
        ends = torch.tensor([self.t0, process.t1], dtype=u.dtype, device=u.device)
        first, last = process.lam(ends)
        return process.time(first + u * (last - first)).clamp(self.t0, process.t1)


@final
@dataclass(frozen=True)
class Mixed:
    """A share of the times from one law, the rest from another."""

    first: TimeLaw
    second: TimeLaw
    share: float = 0.5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return first(u / share) where u < share, second((u - share) / (1 - share)) elsewhere."""
        early = self.first.times(process, (u / self.share).clamp(max=1.0))
        late = self.second.times(process, ((u - self.share) / (1 - self.share)).clamp(min=0.0))
        return torch.where(u < self.share, early, late)


@final
@dataclass(frozen=True)
class DenoisingScoreMatching:
    """The loss above, per sample.

    Args:
        law: where in time examples are noised.
        likelihood_weighting: multiply by g^2 / c^2, for times uniform in t.
    """

    law: TimeLaw = UniformTime()
    likelihood_weighting: bool = False

    def __call__(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        generator: torch.Generator,
        mu: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return the loss of every sample, with times and noise from `generator` (on the CPU)."""
        u = low_discrepancy(x0.shape[0], generator).to(x0.device)
        t = self.law.times(denoiser.process, u)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        return self.at(denoiser, x0, t, eps, mu)

    def at(
        self,
        denoiser: DenoiserLike,
        x0: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        eps: Float[Tensor, "batch *shape"],
        mu: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return the loss of every sample at given times and noise."""
        process = denoiser.process
        noise = denoiser(process.perturb(x0, t, eps, mu), t, mu).noise
        error = (noise - eps).square()
        if self.likelihood_weighting:
            error = error * process.rates(t, x0).g2 / process.moments(t, x0).c.square()
        return error.flatten(1).mean(1)
