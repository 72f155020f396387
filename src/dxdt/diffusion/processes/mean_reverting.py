"""Processes that forget the data and remember a mean, such as a degraded image, or the reverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.processes.reversion import Reversion
from dxdt.diffusion.processes.schedule import Schedule, log1pexp
from dxdt.diffusion.processes.scheduled import Scheduled

__all__ = ["OUVE", "Denoising", "MeanReverting"]


def _check_std(name: str, std: float) -> None:
    if not std > 0:
        raise ValueError(f"{name}: a stationary deviation of {std} is no noise; choose std > 0.")


@final
@dataclass(frozen=True)
class MeanReverting(Scheduled):
    """The stationary mean-reverting equation: a = exp(-Theta), b = 1 - a, c = L sqrt(1 - a^2).

        dx = theta (mu - x) dt + L sqrt(2 theta) dW

    In (x - mu) / L it is variance preserving with B = 2 Theta.

    Args:
        std: L, on the scale of the data (published restoration models: 10/255 to 70/255 of the
            range of pixels, data in [0, 1]).
        schedule: Theta.

    Source: Luo et al., "Image restoration with mean-reverting SDEs" (2023), section 3.

    Raises:
        ValueError: `std` is not positive.
    """

    std: float = 50 / 255
    schedule: Schedule = Reversion()

    def __post_init__(self) -> None:
        _check_std("MeanReverting", self.std)

    @property
    def centred(self) -> bool:
        """True."""
        return True

    @property
    def radius(self) -> float:
        """L."""
        return self.std

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-Theta)."""
        return (-self.schedule.integral(t)).exp()

    def b(self, t: Tensor) -> Tensor:
        """Return 1 - exp(-Theta)."""
        return -torch.expm1(-self.schedule.integral(t))

    def variance(self, t: Tensor) -> Tensor:
        """Return L^2 (1 - exp(-2 Theta))."""
        return -(self.std**2) * torch.expm1(-2 * self.schedule.integral(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -theta a, theta a, L^2 theta a^2 / c and 2 L^2 theta a^2."""
        a, theta = self.a(t), self.schedule.rate(t)
        da, dv = -theta * a, 2 * self.std**2 * theta * a.square()
        return da, -da, 0.5 * dv / self.c(t), dv

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with 2 Theta = log(1 + exp(-2 lam) / L^2)."""
        return self.schedule.inverse(0.5 * log1pexp(-2 * (lam + math.log(self.std))))

    @property
    def prior_std(self) -> float:
        """L."""
        return self.std


@final
@dataclass(frozen=True)
class Denoising(Scheduled):
    """Mean reversion to the data themselves: a = 1, b = 0, c = L sqrt(1 - exp(-2 Theta)).

    An image with noise of deviation s < L lies at time(-log s), where removing the noise begins.

    Args:
        std: L.
        schedule: Theta.

    Source: Luo et al. (2023), the variant for Gaussian denoising, and released code.

    Raises:
        ValueError: `std` is not positive.
    """

    std: float = 70 / 255
    schedule: Schedule = Reversion(steps=1000, floor=0.04)

    def __post_init__(self) -> None:
        _check_std("Denoising", self.std)

    def a(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return L^2 (1 - exp(-2 Theta))."""
        return -(self.std**2) * torch.expm1(-2 * self.schedule.integral(t))

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return 0, 0, (c^2)' / (2 c) and 2 L^2 theta exp(-2 Theta)."""
        zero, total = torch.zeros_like(t), self.schedule.integral(t)
        dv = 2 * self.std**2 * self.schedule.rate(t) * (-2 * total).exp()
        return zero, zero, 0.5 * dv / self.c(t), dv

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with exp(-2 Theta) = 1 - exp(-2 lam) / L^2; NaN for more noise than L."""
        return self.schedule.inverse(-0.5 * torch.log1p(-(-2 * (lam + math.log(self.std))).exp()))

    @property
    def prior_std(self) -> float:
        """c(t1)."""
        return self.c(torch.tensor(self.t1, dtype=torch.float64)).item()


@final
@dataclass(frozen=True)
class OUVE(Process):
    """Reversion at a constant rate under growing noise, used for speech.

        a = exp(-gamma t),  b = 1 - a,  c^2 = low^2 (k^{2 t} - exp(-2 gamma t)) log k / (gamma + log k)

    with k = high / low. The noise at t1 is not stationary, and exp(-gamma) of x_0 - mu is left.

    Args:
        stiffness: gamma.
        low, high: noise of the exploding part at t = 0 and t = 1.

    Source: Richter et al., "Speech enhancement and dereverberation with diffusion-based generative
    models" (2023).

    Raises:
        ValueError: not 0 < low < high, or `stiffness` is not positive.
    """

    stiffness: float = 1.5
    low: float = 0.05
    high: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high and self.stiffness > 0):
            raise ValueError(
                f"OUVE: stiffness {self.stiffness} with noise from {self.low} to {self.high} is no such process; "
                "choose stiffness > 0 and 0 < low < high."
            )

    @property
    def t0(self) -> float:
        """0.03."""
        return 0.03

    @property
    def centred(self) -> bool:
        """True."""
        return True

    @property
    def _growth(self) -> tuple[float, float]:
        """Return gamma + log k, and low^2 log k / (gamma + log k)."""
        log_k = math.log(self.high / self.low)
        total = self.stiffness + log_k
        return total, self.low**2 * log_k / total

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-gamma t)."""
        return (-self.stiffness * t).exp()

    def b(self, t: Tensor) -> Tensor:
        """Return 1 - exp(-gamma t)."""
        return -torch.expm1(-self.stiffness * t)

    def variance(self, t: Tensor) -> Tensor:
        """Return c^2."""
        total, size = self._growth
        return size * (-2 * self.stiffness * t).exp() * torch.expm1(2 * total * t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -gamma a, gamma a, (c^2)' / (2 c) and g^2 - 2 gamma c^2, g^2 = 2 log k low^2 k^{2 t}."""
        log_k, da = math.log(self.high / self.low), -self.stiffness * self.a(t)
        dv = 2 * log_k * self.low**2 * (2 * log_k * t).exp() - 2 * self.stiffness * self.variance(t)
        return da, -da, 0.5 * dv / self.c(t), dv

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with exp(2 (gamma + log k) t) = 1 + exp(-2 lam) (gamma + log k) / (low^2 log k)."""
        total, size = self._growth
        return log1pexp(-2 * lam - math.log(size)) / (2 * total)

    @property
    def prior_std(self) -> float:
        """c(t1)."""
        return self.c(torch.tensor(self.t1, dtype=torch.float64)).item()
