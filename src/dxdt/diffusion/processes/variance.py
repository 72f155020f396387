"""Processes whose signal fades while the variance stays bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dxdt.diffusion.processes.schedule import Linear, Schedule, log1pexp
from dxdt.diffusion.processes.scheduled import Scheduled

__all__ = ["VP", "SubVP"]


@final
@dataclass(frozen=True)
class VP(Scheduled):
    """Variance preserving: a = exp(-B/2), b = 0, c^2 = 1 - exp(-B).

    Args:
        schedule: B; `Linear()`, `Cosine()`, or the `Table` of a discrete model.

    Source: Song et al. (2021), equations 11 and 33.
    """

    schedule: Schedule = Linear()

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-B/2)."""
        return (-0.5 * self.schedule.integral(t)).exp()

    def variance(self, t: Tensor) -> Tensor:
        """Return 1 - exp(-B)."""
        return -torch.expm1(-self.schedule.integral(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -beta a / 2, 0, beta a^2 / (2 c) and beta a^2."""
        a, beta = self.a(t), self.schedule.rate(t)
        dv = beta * a.square()
        return -0.5 * beta * a, torch.zeros_like(t), 0.5 * dv / self.c(t), dv

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with exp(-B) = sigmoid(2 lam)."""
        return self.schedule.inverse(log1pexp(-2 * lam))

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0


@final
@dataclass(frozen=True)
class SubVP(Scheduled):
    """Below the variance-preserving one: a = exp(-B/2), b = 0, c = 1 - exp(-B).

    Source: Song et al. (2021), equations 12 and 33.
    """

    schedule: Schedule = Linear()

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-B/2)."""
        return (-0.5 * self.schedule.integral(t)).exp()

    def variance(self, t: Tensor) -> Tensor:
        """Return (1 - exp(-B))^2."""
        return self.c(t).square()

    def c(self, t: Tensor) -> Tensor:
        """Return 1 - exp(-B)."""
        return -torch.expm1(-self.schedule.integral(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -beta a / 2, 0, beta a^2 and 2 c c'."""
        a, beta = self.a(t), self.schedule.rate(t)
        dc = beta * a.square()
        return -0.5 * beta * a, torch.zeros_like(t), dc, 2 * self.c(t) * dc

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with a / (1 - a^2) = exp(lam), that is -log a = arcsinh(exp(-lam) / 2)."""
        return self.schedule.inverse(2 * (0.5 * (-lam).exp()).arcsinh())

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0
