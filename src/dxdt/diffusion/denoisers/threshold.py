"""Thresholds: keep the estimated data where data can be.

They change the flow, so that samples no longer follow the model's own law, and they cost a solver its
order where they act; far from the data they prevent the excursions of large guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion.denoisers.denoiser import foreseen
from dxdt.diffusion.denoisers.posterior import Posterior
from dxdt.diffusion.processes.process import Process

__all__ = ["Clip", "Dynamic", "Threshold", "Thresholded"]


class Threshold(Protocol):
    """A map of the estimated data of each sample."""

    def __call__(self, data: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the data within their range."""
        ...


@final
@dataclass(frozen=True)
class Clip:
    """Cut off what lies outside [low, high].

    Raises:
        ValueError: not low < high.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Clip: nothing lies between {self.low} and {self.high}; choose low < high.")

    def __call__(self, data: Tensor) -> Tensor:
        """Return min(max(data, low), high)."""
        return data.clamp(self.low, self.high)


@final
@dataclass(frozen=True)
class Dynamic:
    """Cut off at the sample's own s = max(quantile of |data|, bound), and shrink by bound / s.

    Args:
        quantile: which quantile.
        bound: largest absolute value of data.

    Source: Saharia et al., "Photorealistic text-to-image diffusion models with deep language
    understanding" (2022), section 2.3.

    Raises:
        ValueError: `quantile` is not in (0, 1] or `bound` not positive.
    """

    quantile: float = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and self.bound > 0):
            raise ValueError(
                f"Dynamic: quantile {self.quantile} with bound {self.bound} is no threshold; "
                "choose 0 < quantile <= 1 and bound > 0."
            )

    def __call__(self, data: Tensor) -> Tensor:
        """Return the data of every sample within [-bound, bound]."""
        size = data.flatten(1).abs()
        size = size.to(torch.promote_types(size.dtype, torch.float32))
        s = size.quantile(self.quantile, dim=1).clamp(min=self.bound).to(data.dtype)
        s = s.reshape(-1, *(1,) * (data.ndim - 1))
        return torch.maximum(torch.minimum(data, s), -s) * (self.bound / s)


@final
class Thresholded(nn.Module):
    """A denoiser whose data are kept in range, with the noise that agrees with them.

        data' = threshold(data),    noise' = noise + (a / c) (data - data')

    Args:
        denoiser: any denoiser.
        threshold: `Clip(...)`, `Dynamic(...)`, or any map of data; `Clip()` by default.
    """

    def __init__(self, denoiser: Callable[..., Posterior], threshold: Threshold | None = None) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.threshold = Clip() if threshold is None else threshold

    @property
    def process(self) -> Process:
        """That of the denoiser."""
        return self.denoiser.process

    def foresee(self, t: Tensor, like: Tensor) -> list[Any] | None:
        """Return what the denoiser prepares for known times (K,)."""
        return foreseen(self.denoiser, t, like)

    def forward(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None, **condition: Any
    ) -> Posterior:
        """Return the denoiser's answer with data in range."""
        answer: Posterior = self.denoiser(x, t, mu, **condition)
        data = self.threshold(answer.data)
        at = answer.place.at
        return Posterior(answer.process, t, x, data, answer.noise + at.a / at.c * (answer.data - data), mu)
