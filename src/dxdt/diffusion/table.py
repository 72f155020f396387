"""Schedules of discrete models, made continuous: N tabulated levels between t = 0 and t = 1.

Level i, counted from 0, belongs to t = (i + 1) / N, and t = 0 to clean data:

    exp(-B((i + 1) / N)) = alphas_cumprod[i] = prod_{j <= i} (1 - betas[j])

Between levels B itself is linear (`LogAlpha`: the continuous process whose beta is a staircase), or
log sigma is, sigma^2 = exp(B) - 1 (`LogSigma`).

Source: Ho et al., "Denoising diffusion probabilistic models" (2020); Lu et al., "DPM-Solver" (2022),
released code, for the times and for `LogAlpha`; Lin et al., "Common diffusion noise schedules and
sample steps are flawed" (2024), for tables that end in pure noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.schedule import log1pexp

__all__ = [
    "Interpolation",
    "LogAlpha",
    "LogSigma",
    "Table",
    "cosine_betas",
    "linear_betas",
    "scaled_linear_betas",
    "zero_terminal_snr",
]

# The last cell of a table that ends in pure noise stops short of it by one rounding, so that all
# derivatives there are finite.
_SHORT = 1 - 2.0**-53


class Interpolation(Protocol):
    """What is linear in t between two levels of B."""

    def between(self, left: Tensor, right: Tensor, w: Tensor) -> Tensor:
        """Return B a fraction `w` of the way from `left` to `right`."""
        ...

    def slope(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return dB/dw where B equals `total`."""
        ...

    def fraction(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return the `w` at which B equals `total`."""
        ...


@final
@dataclass(frozen=True)
class LogAlpha:
    """B = -2 log a is linear in t."""

    def between(self, left: Tensor, right: Tensor, w: Tensor) -> Tensor:
        """Return left + w (right - left)."""
        return left + w * (right - left)

    def slope(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return right - left."""
        return right - left

    def fraction(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return (total - left) / (right - left)."""
        return (total - left) / (right - left)


@final
@dataclass(frozen=True)
class LogSigma:
    """log(c / a) is linear in t; before the first level, where it has no start, B is."""

    @staticmethod
    def _log_sigma(total: Tensor) -> Tensor:
        return 0.5 * (total + (-torch.expm1(-total)).log())

    def between(self, left: Tensor, right: Tensor, w: Tensor) -> Tensor:
        """Return log(1 + sigma^2) at the level between."""
        first = left == 0
        inside = torch.where(first, right, left)
        low, high = self._log_sigma(inside), self._log_sigma(right)
        return torch.where(first, w * right, log1pexp(2 * (low + w * (high - low))))

    def slope(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return 2 (1 - exp(-B)) dlog(sigma)/dw."""
        first = left == 0
        span = self._log_sigma(right) - self._log_sigma(torch.where(first, right, left))
        return torch.where(first, right, -2 * torch.expm1(-total) * span)

    def fraction(self, left: Tensor, right: Tensor, total: Tensor) -> Tensor:
        """Return where log sigma lies between those of the ends."""
        low, high = self._log_sigma(left), self._log_sigma(right)
        return torch.where(left == 0, total / right, (self._log_sigma(total) - low) / (high - low))


@final
@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The schedule of a discrete model: B at t = 1/N, 2/N, ..., 1.

    Args:
        totals: B of every level, increasing; the last may be infinite (pure noise), and a falls to
            zero linearly on the last cell then.
        interpolation: `LogAlpha()` or `LogSigma()`.

    Raises:
        ValueError: `totals` is not a row of increasing positive numbers.
    """

    totals: Float[Tensor, " n"]
    interpolation: Interpolation = LogAlpha()
    _copies: dict[torch.device, Tensor] = field(init=False)
    _hash: int = field(init=False)

    def __post_init__(self) -> None:
        totals = torch.as_tensor(self.totals).detach().double()
        object.__setattr__(self, "totals", totals)
        object.__setattr__(self, "_copies", {})
        object.__setattr__(self, "_hash", hash((self.interpolation, *totals.flatten().tolist())))
        good = totals.ndim == 1 and len(totals) > 0
        if not good or not bool((totals[0] > 0) & (totals.diff() > 0).all() & totals[:-1].isfinite().all()):
            raise ValueError(
                f"Table: a table of shape {tuple(totals.shape)} whose levels do not lose signal one after another is "
                "no schedule; give betas in (0, 1), or alphas_cumprod falling from 1, the least noisy level first."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table) or self.interpolation != other.interpolation:
            return False
        return torch.equal(self.totals.cpu(), other.totals.cpu())

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Table({self.levels} levels, {self.interpolation})"

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " n"], interpolation: Interpolation | None = None) -> Table:
        """Return the table of a model given by its betas, the last of which may be 1.

        Raises:
            ValueError: a beta is not in (0, 1).
        """
        betas = torch.as_tensor(betas).detach().double()
        return cls(-torch.log1p(-betas).cumsum(0), LogAlpha() if interpolation is None else interpolation)

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Float[Tensor, " n"], interpolation: Interpolation | None = None
    ) -> Table:
        """Return the table of a model given by its cumulative products, the last of which may be 0.

        Raises:
            ValueError: they do not fall within (0, 1).
        """
        products = torch.as_tensor(alphas_cumprod).detach().double()
        return cls(-products.log(), LogAlpha() if interpolation is None else interpolation)

    @property
    def levels(self) -> int:
        """Number of levels N."""
        return len(self.totals)

    @property
    def t0(self) -> float:
        """Time of the first level."""
        return 1 / self.levels

    @property
    def t1(self) -> float:
        """One, the time of the last level."""
        return 1.0

    def times(self, index: Tensor) -> Tensor:
        """Return the time (index + 1) / N of a level, in float64.

        Raises:
            ValueError: an index is not in [0, N - 1] (looked at where it costs no synchronisation).
        """
        if index.device.type == "cpu" and bool(((index < 0) | (index > self.levels - 1)).any()):
            raise ValueError(
                f"Table: indices from {index.min().item():g} to {index.max().item():g} lie outside the table; "
                f"its levels are 0 to {self.levels - 1}."
            )
        return (index.double() + 1) / self.levels

    def index(self, t: Tensor) -> Tensor:
        """Return N t - 1, the place of a time in the table, a whole number at its levels."""
        return self.levels * t - 1

    def _nodes(self, device: torch.device) -> Tensor:
        """Return B at t = 0, 1/N, ..., 1, copied to a device once."""
        if device not in self._copies:
            self._copies[device] = torch.cat((self.totals.new_zeros(1), self.totals)).to(device)
        return self._copies[device]

    def _cell(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return B at both ends of a cell, the right one made finite, and where it is not."""
        nodes, flat = self._nodes(cell.device), cell.reshape(-1)
        # Selection, since indexing with a single number reads it on the host.
        left, right = (nodes.index_select(0, place).reshape(cell.shape) for place in (flat, flat + 1))
        return left, torch.where(right.isinf(), left + 1, right), right.isinf()

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cell of a time and how far it lies in it."""
        place = t.double() * self.levels
        cell = place.detach().floor().clamp(0, self.levels - 1).long()
        return cell, place - cell

    def rate(self, t: Tensor) -> Tensor:
        """Return B'(t), from the right at the levels."""
        cell, w = self._place(t)
        left, right, last = self._cell(cell)
        total = self.interpolation.between(left, right, w)
        slope = torch.where(last, 2 * _SHORT / (1 - _SHORT * w), self.interpolation.slope(left, right, total))
        return (self.levels * slope).to(t.dtype)

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t)."""
        cell, w = self._place(t)
        left, right, last = self._cell(cell)
        total = torch.where(last, left - 2 * torch.log1p(-_SHORT * w), self.interpolation.between(left, right, w))
        return total.to(t.dtype)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        wanted = total.double()
        cell = (torch.searchsorted(self._nodes(total.device), wanted.detach()) - 1).clamp(0, self.levels - 1)
        left, right, last = self._cell(cell)
        ending = -torch.expm1(-0.5 * (wanted - left)) / _SHORT
        w = torch.where(last, ending, self.interpolation.fraction(left, right, wanted))
        return ((cell + w) / self.levels).to(total.dtype)


def linear_betas(levels: int = 1000, low: float = 1e-4, high: float = 0.02) -> Float[Tensor, " levels"]:
    """Return betas at even distances (Ho et al., 2020; "linear")."""
    return torch.linspace(low, high, levels, dtype=torch.float64)


def scaled_linear_betas(levels: int = 1000, low: float = 0.00085, high: float = 0.012) -> Float[Tensor, " levels"]:
    """Return betas whose square roots lie at even distances (Rombach et al., 2022; "scaled_linear")."""
    return torch.linspace(math.sqrt(low), math.sqrt(high), levels, dtype=torch.float64).square()


def cosine_betas(levels: int = 1000, offset: float = 0.008, cap: float = 0.999) -> Float[Tensor, " levels"]:
    """Return betas of the cosine curve, none above `cap` (Nichol and Dhariwal, 2021; "squaredcos_cap_v2")."""
    t = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    curve = (0.5 * math.pi * (t + offset) / (1 + offset)).cos().square()
    return (1 - curve[1:] / curve[:-1]).clamp(max=cap)


def zero_terminal_snr(alphas_cumprod: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return cumulative products shifted and stretched so that the last level is pure noise.

    The square roots keep their first value and end in zero (Lin et al., 2024, algorithm 1).
    """
    roots = torch.as_tensor(alphas_cumprod).detach().double().sqrt()
    return ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()
