"""The product space of data and noise level, p(x, sigma) = p_sigma(x) p(sigma), for every process.

With x_t = a x_0 + b mu + c eps the chains live on x = (x_t - b mu) / a = x_0 + sigma eps, sigma = c / a: whatever the
process, what is left of it is the noise level. Then, with E[eps | x, sigma] from the denoiser,

    grad_x log p_sigma(x) = -E[eps | x, sigma] / sigma,        E[x_0 | x, sigma] = x - sigma E[eps | x, sigma].

Source: Kim and Ye, "Denoising MCMC for accelerating diffusion-based generative models" (2023), there for processes
that explode, where a = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.chains.levels import LevelPrior, LogUniform
from dxdt.diffusion.denoisers.denoiser import DenoiserLike
from dxdt.diffusion.denoisers.posterior import Posterior
from dxdt.diffusion.processes.exploding import EDM, VE
from dxdt.diffusion.processes.process import Process, along
from dxdt.mcmc import Local

__all__ = ["AtLevel", "LevelState", "ProductSpace", "Rescaled"]


@final
@dataclass(frozen=True, eq=False)
class Rescaled:
    """A denoiser of any process, asked as one of a process with a = 1.

    Args:
        denoiser: of x_t.
        process: of x = (x_t - b mu) / a, such as `EDM(low, high)`, whose time is the level, or `VE(low, high)`, whose
            time is its logarithm.
        mu: mean of the denoiser's process, shaped like x, or None for zero.
    """

    denoiser: DenoiserLike
    process: Process
    mu: Tensor | None = None

    def place(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t, t and a at levels () or (batch,)."""
        inner = self.denoiser.process
        t = inner.time(-level.double().log())
        a = inner.a(t)
        x_t = along(a, x) * x
        if self.mu is not None:
            x_t = x_t + along(inner.b(t), x) * self.mu
        return x_t, t, a

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return what is known about x_0 given x at time `t` of the process with a = 1; `mu` is not asked for."""
        x_t, time, _ = self.place(x, self.process.c(t.double()))
        known = self.denoiser(x_t, time, self.mu)
        return Posterior(self.process, t, x, known.data, known.noise, None)


@final
@dataclass(frozen=True, eq=False)
class LevelState:
    """Where chains are in the product space.

    Attributes:
        x: (chains, *shape), the data with noise of their levels.
        level: sigma (chains,), float64.
        local: what is known of p_sigma there, or None.
        momentum: of kernels that keep one, in units of sigma, or None.
    """

    x: Tensor
    level: Tensor
    local: Local | None = None
    momentum: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class AtLevel:
    """The law p_sigma with a level for each chain, as a target of kernels.

    Attributes:
        space: the product space.
        level: (chains,).
    """

    space: ProductSpace
    level: Tensor

    def __call__(self, x: Float[Tensor, "chains *shape"]) -> Local:
        """Return score and, where the space shows it, log density at `x`."""
        score = self.space.score(x, self.level)
        return Local(score, self.space.log_prob(x, self.level) if self.space.density else None)


@final
@dataclass(frozen=True, eq=False)
class ProductSpace:
    """p(x, sigma) = p_sigma(x) p(sigma).

    Args:
        denoiser: of any process; conditional and guided ones move in the product space of their conditional law.
        prior: of sigma; by default log sigma is uniform over all levels of the process.
        mu: mean of the process, where it has one, shaped like x (chains, *shape).
        density: whether kernels see the denoiser's `log_prob`, which exact denoisers have, and networks do not.

    Raises:
        ValueError: the process does not reach the levels of the prior, or there is no log density to see.
        TypeError: what was given is no denoiser.
    """

    denoiser: DenoiserLike
    prior: LevelPrior = cast(Any, None)
    mu: Tensor | None = None
    density: bool = False

    def __post_init__(self) -> None:
        if not callable(self.denoiser) or not isinstance(getattr(self.denoiser, "process", None), Process):
            raise TypeError(
                f"ProductSpace: a {type(self.denoiser).__name__} has no process and no score; give a denoiser, such as "
                "Denoiser(network, process)."
            )
        process = self.denoiser.process
        if self.prior is None:
            object.__setattr__(self, "prior", LogUniform(*_levels_of(process, process.t0)))
        prior = self.prior
        low, high = _levels_of(process, 0.0)
        if not (low * (1 - 1e-6) <= prior.low and prior.high <= high * (1 + 1e-6)):
            raise ValueError(
                f"ProductSpace: levels from {prior.low:g} to {prior.high:g} leave those of {type(process).__name__}, "
                f"{low:g} to {high:g}; choose a prior inside them."
            )
        if self.density and not hasattr(self.denoiser, "log_prob"):
            raise ValueError(
                f"ProductSpace: a {type(self.denoiser).__name__} knows no log density; leave density=True out, and "
                "give kernels ratio=LineIntegral()."
            )

    @property
    def clock(self) -> EDM:
        """The process whose time is the level, up to the highest of the prior."""
        return EDM(self.prior.low, self.prior.high)

    def under(self, process: EDM | VE | None = None) -> Rescaled:
        """Return the denoiser under a process with a = 1; by default under the one whose time is the level."""
        return Rescaled(self.denoiser, self.clock if process is None else process, self.mu)

    def answer(self, x: Float[Tensor, "chains *shape"], level: Float[Tensor, " chains"]) -> Posterior:
        """Return what is known about x_0: one evaluation."""
        return self.under()(x, level)

    def score(self, x: Float[Tensor, "chains *shape"], level: Float[Tensor, " chains"]) -> Tensor:
        """Return grad log p_sigma(x): one evaluation."""
        return -self.answer(x, level).noise / along(level.double(), x)

    def denoise(self, x: Float[Tensor, "chains *shape"], level: Float[Tensor, " chains"]) -> Tensor:
        """Return E[x_0 | x, sigma]: one evaluation."""
        return self.answer(x, level).data

    def log_prob(self, x: Float[Tensor, "chains *shape"], level: Float[Tensor, " chains"]) -> Tensor:
        """Return log p_sigma(x) = log p_t(x_t) + D log a, (chains,).

        Raises:
            ValueError: the denoiser knows no log density.
        """
        known = getattr(self.denoiser, "log_prob", None)
        if known is None:
            raise ValueError(
                f"ProductSpace: a {type(self.denoiser).__name__} knows no log density; use a rule that needs none, "
                "such as ratio=LineIntegral() or by=Flow(4)."
            )
        x_t, t, a = self.under().place(x, level)
        return known(x_t, t, self.mu) + x[0].numel() * a.log()

    def at(self, level: Float[Tensor, " chains"]) -> AtLevel:
        """Return the law of x given the level of each chain, as a target of kernels."""
        return AtLevel(self, level)

    def start(self, x: Float[Tensor, "chains *shape"], level: float | Float[Tensor, " chains"]) -> LevelState:
        """Return the state of chains at `x`, data with noise of the given levels.

        Raises:
            ValueError: there are no chains, or levels are not inside the prior's.
        """
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"ProductSpace: a start of shape {tuple(x.shape)} holds no chains; give (chains, *shape).")
        levels = torch.as_tensor(level, dtype=torch.float64, device=x.device).expand(len(x)).contiguous()
        low, high = self.prior.low * (1 - 1e-9), self.prior.high * (1 + 1e-9)
        if not bool(((levels >= low) & (levels <= high)).all()):
            raise ValueError(
                f"ProductSpace: levels from {float(levels.min()):g} to {float(levels.max()):g} are not inside the "
                f"prior's, {self.prior.low:g} to {self.prior.high:g}; noise the data to a level between."
            )
        return LevelState(x, levels)


def _levels_of(process: Process, first: float) -> tuple[float, float]:
    """c / a at a first time and at the last at which it is finite."""
    late = 0.999 * process.t1
    low, last, before = (-process.lam(torch.tensor([first, process.t1, late], dtype=torch.float64))).exp().tolist()
    return low, last if math.isfinite(last) else before
