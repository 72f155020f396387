"""What the levels and the samples of chains say of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.chains.levels import LevelPrior

__all__ = ["Drift", "LevelTest", "duplicates", "level_drift", "level_test", "round_trips"]


class LevelTest(NamedTuple):
    """How far levels are from their prior.

    Attributes:
        distance: of Kolmogorov and Smirnov.
        p: probability of a larger one by chance, for independent levels.
    """

    distance: float
    p: float


def level_test(level: Float[Tensor, " chains"], prior: LevelPrior) -> LevelTest:
    """Test levels of independent chains against the prior, their exact marginal law in the product space.

    Levels of one chain are not independent: give one of each. For discrete levels p is too large, which errs on the
    side of a kernel.

    Raises:
        ValueError: there are no levels.
    """
    n = level.numel()
    if n == 0:
        raise ValueError("level_test: there are no levels; give one of each chain.")
    u = prior.cdf(level.flatten()).sort().values.cpu()
    if prior.levels is None:
        place = torch.arange(n, dtype=torch.float64)
        distance = float(torch.maximum((u - place / n).max(), ((place + 1) / n - u).max()))
    else:
        # Both distribution functions are steps at the same levels: compare them there.
        at = prior.cdf(prior.levels)
        seen = torch.searchsorted(u, at + 1e-9, right=True).double() / n
        distance = float((seen - at).abs().max())
    return LevelTest(distance, _kolmogorov(math.sqrt(n) * distance))


def _kolmogorov(x: float) -> float:
    """P(K > x) = 2 sum (-1)^(k - 1) exp(-2 k^2 x^2)."""
    if x < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


@final
@dataclass(frozen=True)
class Drift:
    """The mean slope of log sigma along chains.

    Attributes:
        slope: per draw.
        standard_error: over the chains.
    """

    slope: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.slope:+.2e} ± {self.standard_error:.1e} per draw"


def level_drift(level: Float[Tensor, "chains draws"]) -> Drift:
    """Return the slope of a line through log sigma of each chain: zero for chains that are where they should be.

    Raises:
        ValueError: there are fewer than two chains or three draws.
    """
    if level.ndim != 2 or level.shape[0] < 2 or level.shape[1] < 3:
        raise ValueError(
            f"level_drift: levels of shape {tuple(level.shape)} show no drift; give (chains >= 2, draws >= 3)."
        )
    n = level.shape[1]
    clock = torch.arange(n, dtype=torch.float64, device=level.device) - (n - 1) / 2
    slopes = (level.double().log() * clock).sum(1) / clock.square().sum()
    return Drift(float(slopes.mean()), float(slopes.std() / math.sqrt(len(slopes))))


def round_trips(level: Float[Tensor, "chains draws"], low: float, high: float) -> Tensor:
    """Return how often each chain went from `low` or below to `high` or above and back, (chains,).

    Raises:
        ValueError: not low < high.
    """
    if not low < high:
        raise ValueError(f"round_trips: low={low} is not below high={high}; exchange them.")
    trips = torch.zeros(len(level), dtype=torch.int64, device=level.device)
    # 0: not yet at the bottom, 1: has left from the bottom, 2: has been at the top since.
    phase = torch.zeros_like(trips)
    for column in level.unbind(1):
        bottom, top = column <= low, column >= high
        trips = trips + ((phase == 2) & bottom)
        phase = torch.where(bottom, 1, torch.where(top & (phase == 1), 2, phase))
    return trips


def duplicates(x: Float[Tensor, "chains draws *shape"], tol: float = 1e-6) -> float:
    """Return the share of samples that repeat the one before of their chain, to a root mean square of `tol`.

    Raises:
        ValueError: chains have fewer than two samples.
    """
    if x.ndim < 3 or x.shape[1] < 2:
        raise ValueError(
            f"duplicates: samples of shape {tuple(x.shape)} repeat nothing; give (chains, draws, *shape) with two "
            "draws."
        )
    apart = x.diff(dim=1).double().flatten(2).square().mean(2).sqrt()
    return float((apart <= tol).double().mean())
