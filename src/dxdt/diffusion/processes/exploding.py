"""Processes that keep the signal and add noise: a = 1, b = 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dxdt.diffusion.processes.process import Process

__all__ = ["EDM", "VE"]


@final
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: a = 1, b = 0, c = low (high / low)^t.

    Source: Song et al. (2021), equations 9 and 31, without the negligible low^2 at t = 0.

    Raises:
        ValueError: not 0 < low < high.
    """

    low: float = 0.01
    high: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(
                f"VE: noise from {self.low} to {self.high} is not positive and increasing; choose 0 < low < high."
            )

    @property
    def t0(self) -> float:
        """1e-5."""
        return 1e-5

    def a(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return low^2 (high / low)^(2 t)."""
        return self.low**2 * (2 * math.log(self.high / self.low) * t).exp()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return 0, 0, c log(high / low) and 2 c^2 log(high / low)."""
        zero, v, pace = torch.zeros_like(t), self.variance(t), math.log(self.high / self.low)
        return zero, zero, pace * v.sqrt(), 2 * pace * v

    def time(self, lam: Tensor) -> Tensor:
        """Return -(lam + log low) / log(high / low)."""
        return -(lam + math.log(self.low)) / math.log(self.high / self.low)

    @property
    def prior_std(self) -> float:
        """`high`."""
        return self.high


@final
@dataclass(frozen=True)
class EDM(Process):
    """Time is the level of noise: a = 1, b = 0, c = t up to t1 = `high`.

    Args:
        low: the level at which sampling stops.
        high: the level of the prior.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models"
    (2022), section 3 and table 1.

    Raises:
        ValueError: not 0 < low < high.
    """

    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(
                f"EDM: noise from {self.low} to {self.high} is not positive and increasing; choose 0 < low < high."
            )

    @property
    def t0(self) -> float:
        """`low`."""
        return self.low

    @property
    def t1(self) -> float:
        """`high`."""
        return self.high

    def a(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return t^2."""
        return t.square()

    def c(self, t: Tensor) -> Tensor:
        """Return t."""
        return t.clone()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return 0, 0, 1 and 2 t."""
        zero = torch.zeros_like(t)
        return zero, zero, torch.ones_like(t), 2 * t

    def lam(self, t: Tensor) -> Tensor:
        """Return -log t."""
        return -t.log()

    def time(self, lam: Tensor) -> Tensor:
        """Return exp(-lam)."""
        return (-lam).exp()

    @property
    def prior_std(self) -> float:
        """`high`."""
        return self.high
