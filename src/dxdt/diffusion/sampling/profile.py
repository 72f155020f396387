"""Where along the way a reverse equation has noise: tau^2 as a function of lam = log(a / c).

    tau(lam)^2 = tau^2 w(lam),    0 <= w <= 1

Every such w leaves the marginals of the diffusion as they are.

Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022),
equation 6 and section 4, for noise between two levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

__all__ = ["Profile", "Varying", "Window"]

_NODES, _WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(8))


class Profile(ABC):
    """Weight w of tau^2 along lam, float64 of any shape."""

    @abstractmethod
    def __call__(self, lam: Tensor) -> Tensor:
        """Return w(lam), also at minus infinity, where nothing of the data is left."""

    def mean(self, start: Tensor, end: Tensor) -> Tensor:
        """Return the mean of w over [start, end], here by Gauss-Legendre quadrature of 8 points; w(start) where
        the interval is empty or infinite."""
        length = end - start
        proper = torch.isfinite(length) & (length != 0)
        u = 0.5 * (_NODES.to(start.device) + 1)
        lam = torch.where(proper, start, 0.0).unsqueeze(-1) + torch.where(proper, length, 0.0).unsqueeze(-1) * u
        inside = (self(lam) * (0.5 * _WEIGHTS.to(start.device))).sum(-1)
        return torch.where(proper, inside, self(start))


@final
@dataclass(frozen=True)
class Window(Profile):
    """Noise while low <= c / a <= high only.

    Args:
        low, high: of sigma = c / a.

    Raises:
        ValueError: not 0 <= low < high.
    """

    low: float = 0.0
    high: float = float("inf")

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"Window(low={self.low}, high={self.high}) is empty; choose 0 <= low < high.")

    def _ends(self) -> tuple[float, float]:
        first = -np.inf if self.high == np.inf else -float(np.log(self.high))
        return first, np.inf if self.low == 0 else -float(np.log(self.low))

    def __call__(self, lam: Tensor) -> Tensor:
        first, last = self._ends()
        return ((lam >= first) & (lam <= last)).double()

    def mean(self, start: Tensor, end: Tensor) -> Tensor:
        """Return the share of [start, end] inside the window."""
        first, last = self._ends()
        length = end - start
        proper = torch.isfinite(length) & (length > 0)
        common = (end.clamp(max=last) - start.clamp(min=first)).clamp(min=0)
        return torch.where(proper, common / torch.where(proper, length, 1.0), self(start))


@final
@dataclass(frozen=True)
class Varying(Profile):
    """Any function w of lam with values in [0, 1], elementwise on float64 tensors.

    Args:
        weight: the function.
    """

    weight: Callable[[Tensor], Tensor]

    def __call__(self, lam: Tensor) -> Tensor:
        return self.weight(lam)
