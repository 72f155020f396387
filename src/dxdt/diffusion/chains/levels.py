"""Laws of the noise level sigma = c / a: the prior of a product space, p(x, sigma) = p_sigma(x) p(sigma).

Each p_sigma is normalised, so the marginal law of sigma in the product space is this prior, whatever the data are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["DiscreteLevels", "LevelPrior", "LogNormalLevels", "LogUniform", "PowerLaw"]


class LevelPrior(ABC):
    """A law of levels on [low, high], by its distribution function and its quantiles."""

    low: float
    high: float

    @abstractmethod
    def cdf(self, level: Tensor) -> Tensor:
        """Return P(sigma <= level), float64."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Return the quantiles of `u` in (0, 1)."""

    @abstractmethod
    def log_prob(self, level: Tensor) -> Tensor:
        """Return the log density with respect to log sigma (the log probability, where levels are discrete)."""

    @property
    def levels(self) -> Tensor | None:
        """The levels, where there are finitely many (levels,)."""
        return None

    def nodes(self, count: int) -> Tensor:
        """Return `count` levels, even in log sigma, from the lowest to the highest; all of them where discrete."""
        if self.levels is not None:
            return self.levels
        return torch.linspace(math.log(self.low), math.log(self.high), count, dtype=torch.float64).exp()


def _check(prior: LevelPrior) -> None:
    if not 0 < prior.low < prior.high < math.inf:
        raise ValueError(
            f"{type(prior).__name__}: levels from {prior.low} to {prior.high} are not positive and increasing; "
            "choose 0 < low < high."
        )


@final
@dataclass(frozen=True)
class LogUniform(LevelPrior):
    """log sigma uniform: the prior of a classifier that is trained on levels even in log sigma.

    Args:
        low, high: the lowest and the highest level.

    Raises:
        ValueError: not 0 < low < high.

    Source: Kim and Ye, "Denoising MCMC for accelerating diffusion-based generative models" (2023).
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def _range(self) -> float:
        return math.log(self.high / self.low)

    def cdf(self, level: Tensor) -> Tensor:
        return ((level.double() / self.low).log() / self._range).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        return self.low * (self._range * u.double()).exp()

    def log_prob(self, level: Tensor) -> Tensor:
        return torch.full_like(level.double(), -math.log(self._range))


@final
@dataclass(frozen=True)
class PowerLaw(LevelPrior):
    """A density proportional to sigma^-power; power 1 is `LogUniform`.

    Args:
        power: k.
        low, high: the lowest and the highest level.

    Raises:
        ValueError: not 0 < low < high, or the power is one or not finite.
    """

    power: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _check(self)
        if self.power == 1 or not math.isfinite(self.power):
            raise ValueError(f"PowerLaw: power={self.power} has another form; take LogUniform(low, high) for 1.")

    @property
    def _ends(self) -> tuple[float, float, float]:
        q = 1 - self.power
        return q, self.low**q, self.high**q

    def cdf(self, level: Tensor) -> Tensor:
        q, low, high = self._ends
        return ((level.double() ** q - low) / (high - low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        q, low, high = self._ends
        return (low + u.double() * (high - low)) ** (1 / q)

    def log_prob(self, level: Tensor) -> Tensor:
        q, low, high = self._ends
        return q * level.double().log() + math.log(q / (high - low))


@final
@dataclass(frozen=True)
class LogNormalLevels(LevelPrior):
    """log sigma normal, cut off at both ends: the levels at which EDM trains.

    Args:
        mean, std: of log sigma, before it is cut off.
        low, high: the lowest and the highest level.

    Raises:
        ValueError: not 0 < low < high, or the deviation is not positive.
    """

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        _check(self)
        if not self.std > 0:
            raise ValueError(f"LogNormalLevels: std={self.std} is not positive; choose 1.2, say.")

    def _z(self, level: Tensor) -> Tensor:
        return (level.double().log() - self.mean) / self.std

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = torch.special.ndtr(self._z(torch.tensor([self.low, self.high], dtype=torch.float64))).tolist()
        return low, high

    def cdf(self, level: Tensor) -> Tensor:
        low, high = self._ends
        return ((torch.special.ndtr(self._z(level)) - low) / (high - low)).clamp(0, 1)

    def icdf(self, u: Tensor) -> Tensor:
        low, high = self._ends
        z = torch.special.ndtri(low + u.double() * (high - low))
        return (self.mean + self.std * z).exp().clamp(self.low, self.high)

    def log_prob(self, level: Tensor) -> Tensor:
        low, high = self._ends
        return -0.5 * self._z(level).square() - math.log(self.std * math.sqrt(2 * math.pi) * (high - low))


@final
@dataclass(frozen=True)
class DiscreteLevels(LevelPrior):
    """Finitely many levels.

    Args:
        values: at least two, rising.
        weights: as many positive numbers, in any unit; equal ones by default.

    Raises:
        ValueError: levels are not positive and rising, or the weights do not fit them.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.values[:-1], self.values[1:], strict=True))
        if len(self.values) < 2 or not rising or not 0 < self.values[0] or not math.isfinite(self.values[-1]):
            raise ValueError("DiscreteLevels: the levels are not positive and rising; give at least two, sorted.")
        weights = self.weights
        if weights is not None and (len(weights) != len(self.values) or not all(0 < w < math.inf for w in weights)):
            raise ValueError(
                f"DiscreteLevels: {len(weights)} weights for {len(self.values)} levels; give a positive one for each."
            )

    @staticmethod
    def geometric(low: float, high: float, count: int) -> DiscreteLevels:
        """Return `count` levels even in log sigma, as those of noise-level classifiers."""
        _check(LogUniform(low, high))
        return DiscreteLevels(tuple(LogUniform(low, high).nodes(count).tolist()))

    @property
    def low(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The lowest level."""
        return self.values[0]

    @property
    def high(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The highest level."""
        return self.values[-1]

    @property
    def levels(self) -> Tensor:
        """The levels (levels,), float64."""
        return torch.tensor(self.values, dtype=torch.float64)

    @property
    def _mass(self) -> Tensor:
        weights = torch.tensor(self.weights or (1.0,) * len(self.values), dtype=torch.float64)
        return weights / weights.sum()

    def _index(self, level: Tensor) -> Tensor:
        """The number of the level at, or next below."""
        edges = self.levels.to(level.device) * (1 - 1e-9)
        return torch.searchsorted(edges, level.double().contiguous(), right=True) - 1

    def cdf(self, level: Tensor) -> Tensor:
        total = torch.cat((torch.zeros(1, dtype=torch.float64), self._mass.cumsum(0))).to(level.device)
        return total[self._index(level) + 1]

    def icdf(self, u: Tensor) -> Tensor:
        total = self._mass.cumsum(0).to(u.device)
        index = torch.searchsorted(total, u.double().contiguous()).clamp(max=len(total) - 1)
        return self.levels.to(u.device)[index]

    def log_prob(self, level: Tensor) -> Tensor:
        return self._mass.log().to(level.device)[self._index(level).clamp(min=0)]
