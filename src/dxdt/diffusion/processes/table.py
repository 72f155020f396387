"""Schedules of discrete models, made continuous: N tabulated levels between t = 0 and t = 1.

Level i, counted from 0, belongs to t = (i + 1) / N, and t = 0 to clean data:

    exp(-B((i + 1) / N)) = alphas_cumprod[i] = prod_{j <= i} (1 - betas[j])

Between levels B itself is linear (`LogAlpha`: the continuous process whose beta is a staircase), or
log sigma is, sigma^2 = exp(B) - 1 (`LogSigma`), or B is a spline (`Smooth`).

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

from dxdt.diffusion.processes.schedule import log1pexp

__all__ = [
    "Interpolation",
    "LogAlpha",
    "LogSigma",
    "Smooth",
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
    """How B goes from one level to the next, as coefficients of every cell and functions of w in [0, 1]."""

    def cells(self, nodes: Float[Tensor, " m"]) -> Float[Tensor, "k m-1"]:
        """Return the coefficients between B at equidistant times, of which the first may be 0."""
        ...

    def value(self, cell: Float[Tensor, "k *shape"], w: Tensor) -> Tensor:
        """Return B a fraction `w` of the way through a cell."""
        ...

    def slope(self, cell: Float[Tensor, "k *shape"], w: Tensor) -> Tensor:
        """Return dB/dw there."""
        ...

    def fraction(self, cell: Float[Tensor, "k *shape"], total: Tensor) -> Tensor:
        """Return the `w` at which B equals `total`."""
        ...


@final
@dataclass(frozen=True)
class LogAlpha:
    """B = -2 log a is linear in t."""

    def cells(self, nodes: Tensor) -> Tensor:
        """Return starts and differences."""
        return torch.stack((nodes[:-1], nodes.diff()))

    def value(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return start + w difference."""
        return cell[0] + w * cell[1]

    def slope(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return the difference."""
        return cell[1]

    def fraction(self, cell: Tensor, total: Tensor) -> Tensor:
        """Return (total - start) / difference."""
        return (total - cell[0]) / cell[1]


@final
@dataclass(frozen=True)
class LogSigma:
    """log(c / a) is linear in t; before the first level, where it has no start, B is."""

    @staticmethod
    def _log_sigma(total: Tensor) -> Tensor:
        return 0.5 * (total + (-torch.expm1(-total)).log())

    def cells(self, nodes: Tensor) -> Tensor:
        """Return starts and differences of log sigma, and the rise of B where it starts at 0, else 0."""
        first = nodes[:-1] == 0
        start = self._log_sigma(torch.where(first, nodes[1:], nodes[:-1]))
        return torch.stack((start, self._log_sigma(nodes[1:]) - start, torch.where(first, nodes[1:], 0.0)))

    def value(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return log(1 + sigma^2) at the level between."""
        return torch.where(cell[2] > 0, w * cell[2], log1pexp(2 * (cell[0] + w * cell[1])))

    def slope(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return 2 (1 - exp(-B)) dlog(sigma)/dw."""
        return torch.where(cell[2] > 0, cell[2], 2 * torch.sigmoid(2 * (cell[0] + w * cell[1])) * cell[1])

    def fraction(self, cell: Tensor, total: Tensor) -> Tensor:
        """Return where log sigma lies between those of the ends."""
        first = cell[2] > 0
        straight = torch.where(first, 1.0, cell[1])
        return torch.where(first, total / cell[2].clamp(min=1e-300), (self._log_sigma(total) - cell[0]) / straight)


@final
@dataclass(frozen=True)
class Smooth:
    """B is a cubic spline, twice differentiable: for solvers of high order and networks told the time.

    Between levels that are linear, t has kinks as a function of lam, and so has what a network answers.
    The end conditions are not-a-knot, exact for cubic B.

    Raises:
        ValueError: on making a table, the spline through its levels does not increase.
    """

    def cells(self, nodes: Tensor) -> Tensor:
        """Return the four coefficients in powers of w."""
        m = len(nodes)
        system = 4 * torch.eye(m, dtype=nodes.dtype, device=nodes.device)
        system += torch.diag(torch.ones_like(nodes[1:]), 1) + torch.diag(torch.ones_like(nodes[1:]), -1)
        system[0], system[-1] = 0, 0
        ends = torch.tensor([1.0, -2.0, 1.0], dtype=nodes.dtype, device=nodes.device) if m > 3 else system.new_ones(1)
        system[0, : len(ends)], system[-1, m - len(ends) :] = ends, ends.flip(0)
        bend = torch.zeros_like(nodes)
        bend[1:-1] = 6 * nodes.diff().diff()
        second = torch.linalg.solve(system, bend)
        slope = nodes.diff() - (2 * second[:-1] + second[1:]) / 6
        cells = torch.stack((nodes[:-1], slope, second[:-1] / 2, second.diff() / 6))
        self._check(cells, nodes.diff())
        return cells

    def _check(self, cells: Tensor, rise: Tensor) -> None:
        """Refuse cells where B has a slope below a tenth of its mean: at their ends or at the extremum."""
        _, c1, c2, c3 = cells
        where = (-c2 / (3 * c3)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        least = torch.stack([self.slope(cells, w) for w in (0 * c1, where, 0 * c1 + 1)]).amin(0)
        if bool((least < 0.1 * rise).any()):
            raise ValueError(
                "Smooth: the levels of this table are too uneven for a spline that increases; "
                "use LogAlpha() or LogSigma()."
            )

    def value(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return the cubic."""
        return cell[0] + w * (cell[1] + w * (cell[2] + w * cell[3]))

    def slope(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return its derivative."""
        return cell[1] + w * (2 * cell[2] + 3 * w * cell[3])

    def fraction(self, cell: Tensor, total: Tensor) -> Tensor:
        """Return the root by Newton's method from the chord; the last iteration is differentiable."""
        wanted = total.detach()
        w = ((wanted - cell[0]) / (cell[1] + cell[2] + cell[3])).clamp(0, 1)
        for _ in range(8):
            w = w - (self.value(cell, w) - wanted) / self.slope(cell, w)
        return w - (self.value(cell, w) - total) / self.slope(cell, w)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The schedule of a discrete model: B at t = 1/N, 2/N, ..., 1.

    Args:
        totals: B of every level, increasing; the last may be infinite (pure noise), and a falls to
            zero linearly on the last cell then.
        interpolation: `LogAlpha()`, `LogSigma()` or `Smooth()`.

    Raises:
        ValueError: `totals` is not a row of increasing positive numbers.
    """

    totals: Float[Tensor, " n"]
    interpolation: Interpolation = LogAlpha()
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(init=False)
    _hash: int = field(init=False)

    def __post_init__(self) -> None:
        totals = torch.as_tensor(self.totals).detach().double()
        good = totals.ndim == 1 and len(totals) > 0
        if not good or not bool((totals[0] > 0) & (totals.diff() > 0).all() & totals[:-1].isfinite().all()):
            raise ValueError(
                f"Table: a table of shape {tuple(totals.shape)} whose levels do not lose signal one after another is "
                "no schedule; give betas in (0, 1), or alphas_cumprod falling from 1, the least noisy level first."
            )
        object.__setattr__(self, "totals", totals)
        object.__setattr__(self, "_hash", hash((self.interpolation, *totals.tolist())))
        object.__setattr__(self, "_copies", {})
        self._copies[totals.device] = self._prepared()

    def _prepared(self) -> tuple[Tensor, Tensor]:
        """Return B at t = 0, 1/N, ..., 1, and the coefficients of the cells between."""
        nodes = torch.cat((self.totals.new_zeros(1), self.totals))
        if self.totals[-1].isfinite():
            return nodes, self.interpolation.cells(nodes)
        cells = self.interpolation.cells(nodes[:-1]) if len(nodes) > 2 else None
        # What stands for the last cell is finite and never chosen.
        last = self.interpolation.cells(torch.stack((nodes[-2], nodes[-2] + 1)))
        return nodes, last if cells is None else torch.cat((cells, last), 1)

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

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return nodes and cells, copied to a device once."""
        if device not in self._copies:
            nodes, cells = self._copies[self.totals.device]
            self._copies[device] = nodes.to(device), cells.to(device)
        return self._copies[device]

    def _cell(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the coefficients of a cell, B at its start, and whether it ends in pure noise."""
        nodes, cells = self._on(index.device)
        flat = index.reshape(-1)
        # Selection, since indexing with a single number reads it on the host.
        chosen = cells.index_select(1, flat).reshape(-1, *index.shape)
        left, right = (nodes.index_select(0, place).reshape(index.shape) for place in (flat, flat + 1))
        return chosen, left, right.isinf()

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cell of a time and how far it lies in it."""
        place = t.double() * self.levels
        index = place.detach().floor().clamp(0, self.levels - 1).long()
        return index, place - index

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t)."""
        index, w = self._place(t)
        cell, left, last = self._cell(index)
        total = torch.where(last, left - 2 * torch.log1p(-_SHORT * w), self.interpolation.value(cell, w))
        return total.to(t.dtype)

    def rate(self, t: Tensor) -> Tensor:
        """Return B'(t), from the right at the levels."""
        index, w = self._place(t)
        cell, _, last = self._cell(index)
        slope = torch.where(last, 2 * _SHORT / (1 - _SHORT * w), self.interpolation.slope(cell, w))
        return (self.levels * slope).to(t.dtype)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        wanted = total.double()
        nodes, _ = self._on(total.device)
        index = (torch.searchsorted(nodes, wanted.detach()) - 1).clamp(0, self.levels - 1)
        cell, left, last = self._cell(index)
        ending = -torch.expm1(-0.5 * (wanted - left)) / _SHORT
        w = torch.where(last, ending, self.interpolation.fraction(cell, wanted))
        return ((index + w) / self.levels).to(total.dtype)


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
