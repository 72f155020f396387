"""Schedules: how much a process has forgotten by time t, as B(t) with B(0) = 0, and its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Constant", "Cosine", "Linear", "Scaled", "Schedule", "log1pexp"]


def log1pexp(x: Tensor) -> Tensor:
    """Return log(1 + exp x), exact to rounding for every x."""
    return F.softplus(x, threshold=50.0)


class Schedule(Protocol):
    """An increasing function of time with its inverse, elementwise and in the dtype of its argument."""

    @property
    def t0(self) -> float:
        """Time at which nearly nothing is forgotten."""
        ...

    @property
    def t1(self) -> float:
        """Time at which everything that matters is forgotten."""
        ...

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t), the integral of the rate beta from 0 to t."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """Return beta(t) = B'(t)."""
        ...

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        ...


@dataclass(frozen=True)
class Linear:
    """Linear noise schedule beta(t) = low + t (high - low), with integral B(t).

    Raises:
        ValueError: not 0 < low < high.
    """

    low: float = 0.1
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(
                f"Linear: beta from {self.low} to {self.high} is not positive and increasing; choose 0 < low < high."
            )

    @property
    def t0(self) -> float:
        """1e-3."""
        return 1e-3

    @property
    def t1(self) -> float:
        """One."""
        return 1.0

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t) = low t + (high - low) t^2 / 2."""
        return t * (self.low + 0.5 * (self.high - self.low) * t)

    def rate(self, t: Tensor) -> Tensor:
        """Return low + t (high - low)."""
        return self.low + (self.high - self.low) * t

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        slope = self.high - self.low
        return 2 * total / (self.low + (self.low**2 + 2 * slope * total).sqrt())


@final
@dataclass(frozen=True)
class Constant:
    """A rate that does not change: B(t) = speed t on [0, end].

    Raises:
        ValueError: `speed` or `end` is not positive.
    """

    speed: float = 1.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.speed > 0 and self.end > 0):
            raise ValueError(
                f"Constant: a rate of {self.speed} up to {self.end} forgets nothing; choose both above zero."
            )

    @property
    def t0(self) -> float:
        """A thousandth of the way."""
        return 1e-3 * self.end

    @property
    def t1(self) -> float:
        """`end`."""
        return self.end

    def integral(self, t: Tensor) -> Tensor:
        """Return speed t."""
        return self.speed * t

    def rate(self, t: Tensor) -> Tensor:
        """Return the speed."""
        return torch.full_like(t, self.speed)

    def inverse(self, total: Tensor) -> Tensor:
        """Return total / speed."""
        return total / self.speed


@final
@dataclass(frozen=True)
class Cosine:
    """Cosine schedule: exp(-B/2) = cos(phi(t)) / cos(phi(0)), phi(t) = (pi/2) (t + s) / (1 + s).

    All is forgotten at t = 1; sampling starts at `end`, before the rate becomes infinite.

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (2021),
    equation 17, in continuous time; Lu et al., "DPM-Solver" (2022), released code, for the end.

    Raises:
        ValueError: `offset` is not positive, or `end` not in (0, 1].
    """

    offset: float = 0.008
    end: float = 0.9946

    def __post_init__(self) -> None:
        if not (self.offset > 0 and 0 < self.end <= 1):
            raise ValueError(
                f"Cosine: offset={self.offset} with end={self.end} is no schedule; choose offset > 0 and 0 < end <= 1."
            )

    @property
    def t0(self) -> float:
        """1e-3."""
        return 1e-3

    @property
    def t1(self) -> float:
        """`end`."""
        return self.end

    @property
    def _first(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    @property
    def _speed(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    def _lost(self, d: Tensor) -> Tensor:
        """Return 1 - exp(-B/2) at phi = phi(0) + d, without cancellation for small d."""
        return 2 * (0.5 * d).sin().square() + math.tan(self._first) * d.sin()

    def _of_angle(self, d: Tensor) -> Tensor:
        """Return B at phi = phi(0) + d."""
        return -2 * torch.log1p(-self._lost(d))

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t) = -2 log(cos phi(t) / cos phi(0))."""
        return self._of_angle(self._speed * t)

    def rate(self, t: Tensor) -> Tensor:
        """Return 2 phi' tan(phi(t)), with the cosine that `integral` has."""
        d = self._speed * t
        return 2 * self._speed * (self._first + d).sin() / (math.cos(self._first) * (1 - self._lost(d)))

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        d = (math.cos(self._first) * (-0.5 * total).exp()).acos() - self._first
        # Subtracting angles costs digits where total is small; a step of Newton's brings them back.
        d = d - (self._of_angle(d) - total) / (2 * (self._first + d).tan())
        return d / self._speed


@final
@dataclass(frozen=True)
class Scaled:
    """Another schedule, `factor` times as fast."""

    schedule: Schedule
    factor: float

    @property
    def t0(self) -> float:
        """That of the other."""
        return self.schedule.t0

    @property
    def t1(self) -> float:
        """That of the other."""
        return self.schedule.t1

    def integral(self, t: Tensor) -> Tensor:
        """Return factor B(t)."""
        return self.factor * self.schedule.integral(t)

    def rate(self, t: Tensor) -> Tensor:
        """Return factor beta(t)."""
        return self.factor * self.schedule.rate(t)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which factor B(t) equals `total`."""
        return self.schedule.inverse(total / self.factor)
