"""Laws of the state at one time given the state at another: records that meet data as they are.

    forward      x_t | x_s        ~ N(r x_s + m mu, std^2 I),              s <= t
    posterior    x_s | x_t, x_0   ~ N(k x_t + d x_0 + m mu, std^2 I),      s <= t

Source: Ho et al., "Denoising diffusion probabilistic models" (2020), equations 6 and 7, for a
variance-preserving process; Luo et al., "Image restoration with mean-reverting SDEs" (2023), with a
mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

__all__ = ["Pinned", "Transition"]


@final
@dataclass(frozen=True)
class Transition:
    """The law of x_t given an earlier x_s: N(r x_s + m mu, std^2 I).

    Attributes:
        r, m, std: shaped to meet data.
    """

    r: Tensor
    m: Tensor
    std: Tensor

    def mean(self, xs: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return r x_s + m mu."""
        return self.r * xs if mu is None else self.r * xs + self.m * mu

    def sample(self, xs: Tensor, noise: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return mean + std noise."""
        return self.mean(xs, mu) + self.std * noise


@final
@dataclass(frozen=True)
class Pinned:
    """The law of x_s given a later x_t and the datum x_0: N(k x_t + d x_0 + m mu, std^2 I).

    Attributes:
        k, d, m, std: shaped to meet data.
    """

    k: Tensor
    d: Tensor
    m: Tensor
    std: Tensor

    def mean(self, xt: Tensor, x0: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return k x_t + d x_0 + m mu."""
        mean = self.k * xt + self.d * x0
        return mean if mu is None else mean + self.m * mu

    def sample(self, xt: Tensor, x0: Tensor, noise: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return mean + std noise."""
        return self.mean(xt, x0, mu) + self.std * noise
