"""Straight paths between data and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dxdt.diffusion.processes.process import Process

__all__ = ["RectifiedFlow"]


@final
@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight paths between data and noise: a = 1 - t, b = 0, c = t.

    Source: Liu et al., "Flow straight and fast" (2023), with time running from data to noise.
    """

    def a(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    def variance(self, t: Tensor) -> Tensor:
        """Return t^2."""
        return t.square()

    def c(self, t: Tensor) -> Tensor:
        """Return t."""
        return t.clone()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -1, 0, 1 and 2 t."""
        one = torch.ones_like(t)
        return -one, torch.zeros_like(t), one, 2 * t

    def time(self, lam: Tensor) -> Tensor:
        """Return 1 / (1 + exp lam)."""
        return torch.sigmoid(-lam)

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0
