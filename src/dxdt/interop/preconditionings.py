"""Preconditionings of other libraries, written as changes of those that are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from dxdt.diffusion import Preconditioning
from dxdt.diffusion.denoisers.preconditioning import Weights

__all__ = ["Negated", "ToldLogSigma"]


@final
@dataclass(frozen=True)
class Negated:
    """A preconditioning whose network answers with the other sign: v = -F."""

    inner: Preconditioning

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        w = self.inner.weights(a, c)
        return Weights(w.into, w.data_skip, -w.data_out, w.noise_skip, -w.noise_out)

    def told(self, sigma: Tensor) -> Tensor:
        """Return what the network is told."""
        return self.inner.told(sigma)


@final
@dataclass(frozen=True)
class ToldLogSigma:
    """A preconditioning whose network is told log(sigma) / 4."""

    inner: Preconditioning

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        return self.inner.weights(a, c)

    def told(self, sigma: Tensor) -> Tensor:
        """Return log(sigma) / 4."""
        return 0.25 * sigma.log()
