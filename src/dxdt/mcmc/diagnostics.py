"""Diagnostics of chains, for many chains and many quantities at once, on their device.

All take draws (chains, draws, *quantities) and answer (*quantities) in float64; a quantity with a draw that is not
finite is NaN, and one that never changes has as many effective draws as draws.

    R-hat      ranks of the draws are turned into normal scores; chains are split in two halves; the root of the ratio
               of pooled to mean within-chain variance, the larger of that of the draws and of |draws - median|
    ESS        M N / tau with tau from Geyer's initial monotone sequence of the chains' mean autocorrelation; bulk: of
               the normal scores of split chains; tail: the smaller of those of the indicators of the 5 % and the
               95 % quantile; mean: of the split chains themselves

Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC" (2021); Geyer, "Practical Markov chain Monte Carlo" (1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.mcmc.chain import Chains

__all__ = ["Summary", "autocorrelation", "ess", "ess_bulk", "ess_tail", "mcse", "rhat", "summary"]

_NUMBERS_AT_ONCE = 1 << 24


def _by_quantity(
    name: str, draws: Tensor, measure: Callable[[Tensor], Tensor], least: int = 4
) -> Float[Tensor, "*quantities"]:
    """Apply a measure of (quantities, chains, draws) to the draws in pieces that fit into memory."""
    if draws.ndim < 2 or draws.shape[0] < 1 or draws.shape[1] < least:
        raise ValueError(
            f"{name}: draws of shape {tuple(draws.shape)} are too few; give (chains, draws, *quantities) with a chain "
            f"and at least {least} draws."
        )
    shape = draws.shape[2:]
    flat = draws.reshape(*draws.shape[:2], -1).permute(2, 0, 1)
    size = max(1, _NUMBERS_AT_ONCE // max(1, flat[0].numel()))
    found: list[Tensor] = []
    for piece in flat.split(size):
        x = piece.double()
        bad = ~torch.isfinite(x).flatten(1).all(1)
        value = measure(torch.where(bad[:, None, None], 0.0, x))
        found.append(torch.where(bad, torch.nan, value))
    return torch.cat(found).reshape(shape) if found else draws.new_zeros(shape, dtype=torch.float64)


def _split(x: Tensor) -> Tensor:
    """Two halves of each chain as chains of their own; an odd draw in the middle is left out."""
    half = x.shape[2] // 2
    return torch.cat((x[..., :half], x[..., -half:]), 1)


def _normal_scores(x: Tensor) -> Tensor:
    """Normal quantiles of (rank - 3/8) / (n + 1/4), ties sharing their mean rank."""
    flat = x.flatten(1)
    order = flat.sort(1).values
    below = torch.searchsorted(order, flat, right=False)
    upto = torch.searchsorted(order, flat, right=True)
    rank = 0.5 * (below + upto + 1).double()
    return torch.special.ndtri((rank - 0.375) / (flat.shape[1] + 0.25)).reshape(x.shape)


def _autocovariance(x: Tensor) -> Tensor:
    """Autocovariance of each chain at all lags, divided by the number of draws."""
    n = x.shape[-1]
    size = 1 << (2 * n - 1).bit_length()
    deviation = x - x.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(deviation, n=size)
    return torch.fft.irfft(spectrum.real.square() + spectrum.imag.square(), n=size)[..., :n] / n


def _effective(x: Tensor) -> Tensor:
    """Effective draws of (quantities, chains, draws)."""
    chains, n = x.shape[1:]
    still = x.amax((1, 2)) - x.amin((1, 2)) < 1e-15
    covariance = _autocovariance(x).mean(1)
    within = covariance[:, :1] * (n / (n - 1))
    total = covariance[:, :1]
    if chains > 1:
        total = total + x.mean(2).var(1, keepdim=True)
    rho = 1 - (within - covariance) / torch.where(total > 0, total, 1.0)
    rho[:, 0] = 1.0
    count = chains * n
    value = count / _correlation_time(rho).clamp(min=1 / math.log10(count))
    return torch.where(still, float(count), value)


def _correlation_time(rho: Tensor) -> Tensor:
    """-1 + 2 sum rho by Geyer's initial monotone sequence of pairs of lags.

    Pairs are summed while they are positive, each no larger than those before it; of the pair that ends the sequence
    the even lag counts once where it is positive, which helps with antithetic chains.
    """
    n = rho.shape[1]
    most = max(0, -(-(n - 2) // 2) - 1)  # the last lags are too noisy to continue a sequence
    even = rho[:, 0 : 2 * most + 1 : 2]
    sums = even + rho[:, 1 : 2 * most + 2 : 2]
    alive = (sums[:, :most] > 0).double().cumprod(1)
    length = alive.sum(1, keepdim=True).long()
    paired = (sums[:, :most].cummin(1).values * alive).sum(1)
    last, closing = even.gather(1, length)[:, 0], sums.gather(1, length)[:, 0]
    return -1 + 2 * paired + torch.where((last > 0) | ((closing >= 0) & (length[:, 0] > 0)), last, 0.0)


def autocorrelation(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "lags *quantities"]:
    """Return the autocorrelation at lags 0, 1, ..., draws - 1: that of the chains' mean autocovariance.

    Raises:
        ValueError: there are fewer than two draws.
    """
    if draws.ndim < 2 or draws.shape[1] < 2:
        raise ValueError(
            f"autocorrelation: draws of shape {tuple(draws.shape)} have no lags; give (chains, draws) with two draws."
        )
    covariance = _autocovariance(draws.double().movedim(1, -1)).mean(0).movedim(-1, 0)
    return covariance / covariance[:1]


def ess(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "*quantities"]:
    """Return the number of independent draws whose mean is as certain as that of the draws.

    Raises:
        ValueError: there are fewer than four draws.
    """
    return _by_quantity("ess", draws, lambda x: _effective(_split(x)))


def ess_bulk(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "*quantities"]:
    """Return the effective draws of the normal scores of the ranks, which exist for every law.

    Raises:
        ValueError: there are fewer than four draws.
    """
    return _by_quantity("ess_bulk", draws, lambda x: _effective(_normal_scores(_split(x))))


def ess_tail(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "*quantities"]:
    """Return the smaller of the effective draws of the 5 % and of the 95 % quantile.

    Raises:
        ValueError: there are fewer than four draws.
    """

    def measure(x: Tensor) -> Tensor:
        order = x.flatten(1).sort(1).values
        ends = [_effective(_split((x <= _quantile(order, q)[:, None, None]).double())) for q in (0.05, 0.95)]
        return torch.minimum(*ends)

    return _by_quantity("ess_tail", draws, measure)


def _quantile(order: Tensor, q: float) -> Tensor:
    """The quantile of sorted rows, linear between order statistics (type 7)."""
    place = q * (order.shape[1] - 1)
    low = int(place)
    high = min(low + 1, order.shape[1] - 1)
    return order[:, low] + (place - low) * (order[:, high] - order[:, low])


def rhat(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "*quantities"]:
    """Return the rank-normalised split R-hat; below 1.01 chains agree.

    Raises:
        ValueError: there are fewer than four draws.
    """

    def measure(x: Tensor) -> Tensor:
        halves = _split(x)
        order = halves.flatten(1).sort(1).values
        folded = (halves - _quantile(order, 0.5)[:, None, None]).abs()
        return torch.maximum(*(_ratio(_normal_scores(z)) for z in (halves, folded)))

    return _by_quantity("rhat", draws, measure)


def _ratio(x: Tensor) -> Tensor:
    """sqrt((B / W + n - 1) / n)."""
    n = x.shape[2]
    between, within = n * x.mean(2).var(1), x.var(2).mean(1)
    return ((between / within + n - 1) / n).sqrt()


def mcse(draws: Float[Tensor, "chains draws *quantities"]) -> Float[Tensor, "*quantities"]:
    """Return the Monte Carlo standard error of the mean: sd / sqrt(ess).

    Raises:
        ValueError: there are fewer than four draws.
    """
    return _by_quantity("mcse", draws, lambda x: x.flatten(1).std(1) / _effective(_split(x)).sqrt())


@final
@dataclass(frozen=True, eq=False)
class Summary:
    """What chains say of some quantities, each field (*quantities).

    Attributes:
        mean, std: of all draws.
        mcse: Monte Carlo standard error of the mean.
        ess_bulk, ess_tail: effective draws.
        rhat: rank-normalised split R-hat.
        ess_per_1000_evaluations: bulk effective draws for 1,000 calls of the target by every chain.
        ess_per_second: bulk effective draws of all chains together for a second.
    """

    mean: Tensor
    std: Tensor
    mcse: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    rhat: Tensor
    ess_per_1000_evaluations: Tensor
    ess_per_second: Tensor


def summary(chains: Chains) -> Summary:
    """Return the diagnostics of what was kept of chains, and what an effective draw costs.

    One call of the target by all chains at once counts as one evaluation of each, so that the number of chains
    drops out of the cost.
    """
    x = chains.x
    flat = x.double().flatten(0, 1)
    bulk = ess_bulk(x)
    evaluations = x.shape[0] * x.shape[1] * chains.evaluations_per_draw
    return Summary(
        flat.mean(0),
        flat.std(0),
        mcse(x),
        bulk,
        ess_tail(x),
        rhat(x),
        1000 * bulk / evaluations,
        bulk / chains.seconds,
    )
