"""Where in time training examples are noised: laws on [0, t1], given by their quantiles and densities.

Times are made from numbers u in [0, 1), so that evenly spread u give evenly spread times.

Source: Song et al., "Maximum likelihood training of score-based diffusion models" (2021), section
4.2 (importance sampling of t); Kingma et al., "Variational diffusion models" (2021), appendix I.1
(low-discrepancy times); Karras et al., "Elucidating the design space of diffusion-based generative
models" (2022), table 1 (log-normal noise levels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.processes.process import Process
from dxdt.ops.autodiff import jvp


def low_discrepancy(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Return `count` numbers in [0, 1), each uniform, together even: (u + i / count) mod 1.

    They come in random order, so that they are independent of the order of the data.
    """
    u = torch.rand((), generator=generator, dtype=torch.float64)
    grid = (u + torch.arange(count, dtype=torch.float64) / count) % 1
    return grid[torch.randperm(count, generator=generator)]


def loss_of_information(process: Process, t: Tensor) -> Tensor:
    """Return -lam'(t) = g^2 / (2 c^2), elementwise in `t` (float64)."""
    return -jvp(process.lam, t, torch.ones_like(t))[1]


class TimeLaw(Protocol):
    """A law of times."""

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return times for `u` uniform in [0, 1)."""
        ...

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return the density of the law at times `t` (float64)."""
        ...


class Weight(Protocol):
    """A positive function of time."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return the weight at times `t` (float64), elementwise."""
        ...


@final
@dataclass(frozen=True)
class UniformTime:
    """t uniform in [t0, t1]."""

    t0: float = 1e-5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return t0 + u (t1 - t0)."""
        return self.t0 + u * (process.t1 - self.t0)

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return 1 / (t1 - t0)."""
        return torch.full_like(t, 1 / (process.t1 - self.t0))


@final
@dataclass(frozen=True)
class UniformLogSNR:
    """lam = log(a / c) uniform between its values at t0 and t1: density proportional to g^2 / c^2.

    Because g^2 / c^2 = -2 lam'(t) for every process, this is the law that makes the likelihood
    weighting constant (importance sampling of t), in closed form.

    Args:
        t0: first time.
        t1: last time; the process's own by default.

    Raises:
        ValueError: lam is infinite at an end (rectified flow at t1 = 1, say).
    """

    t0: float = 1e-5
    t1: float | None = None

    def _ends(self, process: Process) -> tuple[float, float]:
        last = process.t1 if self.t1 is None else self.t1
        ends = process.lam(torch.tensor([self.t0, last], dtype=torch.float64)).tolist()
        if not all(map(math.isfinite, ends)):
            raise ValueError(
                f"UniformLogSNR: log(a / c) of {process} is {ends} at t = {self.t0}, {last}; "
                "choose t0 and t1 inside the open interval where it is finite."
            )
        return ends[0], ends[1]

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return the t at which lam lies a fraction `u` of the way."""
        first, last = self._ends(process)
        end = process.t1 if self.t1 is None else self.t1
        return process.time(first + u * (last - first)).clamp(self.t0, end)

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return -lam'(t) / (lam(t0) - lam(t1))."""
        first, last = self._ends(process)
        return loss_of_information(process, t) / (first - last)


@final
@dataclass(frozen=True)
class LogNormalScale:
    """log(c / a) normal: the law of noise levels of EDM, kept inside [t0, t1].

    Args:
        mean, std: of log(c / a).
        t0: first time.
    """

    mean: float = -1.2
    std: float = 1.2
    t0: float = 1e-5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return the time whose noise level is the quantile `u`."""
        z = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-9, 1 - 1e-9))
        return process.time(-(self.mean + self.std * z)).clamp(self.t0, process.t1)

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return N(log(c / a); mean, std^2) |d log(c / a) / dt|."""
        z = (-process.lam(t) - self.mean) / self.std
        normal = (-0.5 * z.square()).exp() / (self.std * math.sqrt(2 * math.pi))
        return normal * loss_of_information(process, t)


@final
@dataclass(frozen=True)
class DiscreteTimes:
    """One of `count` equidistant times from `low` to `high`, each as likely: discrete models.

    Args:
        count: how many.
        low, high: the first and the last.

    Raises:
        ValueError: there is less than one time, or they run backwards.
    """

    count: int = 1000
    low: float = 1e-3
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.low <= self.high:
            raise ValueError(
                f"DiscreteTimes: {self.count} times from {self.low} to {self.high} are no grid; "
                "give at least one and 0 <= low <= high."
            )

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return low + floor(count u) (high - low) / (count - 1)."""
        index = (u * self.count).floor().clamp(max=self.count - 1)
        return self.low + index * ((self.high - self.low) / max(1, self.count - 1))

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return the probability 1 / count of each time."""
        return torch.full_like(t, 1 / self.count)


@final
@dataclass(frozen=True)
class Mixed:
    """A share of the times from one law, the rest from another."""

    first: TimeLaw
    second: TimeLaw
    share: float = 0.5

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return first(u / share) where u < share, second((u - share) / (1 - share)) elsewhere."""
        early = self.first.times(process, (u / self.share).clamp(max=1.0))
        late = self.second.times(process, ((u - self.share) / (1 - self.share)).clamp(min=0.0))
        return torch.where(u < self.share, early, late)

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return share p_first + (1 - share) p_second."""
        rest = (1 - self.share) * self.second.density(process, t)
        return self.share * self.first.density(process, t) + rest


@final
@dataclass(frozen=True)
class Tabulated:
    """The law with a density proportional to any weight on [t0, t1], by a table of its quantiles.

    The table has `cells` pieces between times whose lam is equidistant; the density is constant on
    each. That density is the one reported, so losses reweighted by it are unbiased however coarse
    the table is.

    Args:
        weight: positive function of time.
        t0: first time.
        t1: last time; the process's own by default.
        cells: pieces of the table.

    Raises:
        ValueError: the weight is not positive and finite somewhere on the table.
    """

    weight: Weight
    t0: float = 1e-5
    t1: float | None = None
    cells: int = 4096

    def times(self, process: Process, u: Tensor) -> Tensor:
        """Return the quantiles of `u`."""
        nodes, total = (x.to(u.device) for x in _table(self, process))
        cell = (torch.searchsorted(total, u.contiguous(), right=True) - 1).clamp(0, self.cells - 1)
        part = (u - total[cell]) / (total[cell + 1] - total[cell])
        return nodes[cell] + part * (nodes[cell + 1] - nodes[cell])

    def density(self, process: Process, t: Tensor) -> Tensor:
        """Return the constant of the cell that holds `t`."""
        nodes, total = (x.to(t.device) for x in _table(self, process))
        cell = (torch.searchsorted(nodes, t.contiguous(), right=True) - 1).clamp(0, self.cells - 1)
        return (total[cell + 1] - total[cell]) / (nodes[cell + 1] - nodes[cell])


@lru_cache(maxsize=32)
def _table(law: Tabulated, process: Process) -> tuple[Tensor, Tensor]:
    """Return the times (cells + 1,) of a table and the distribution function there, on the CPU."""
    nodes = UniformLogSNR(law.t0, law.t1).times(process, torch.linspace(0, 1, law.cells + 1, dtype=torch.float64))
    weight = law.weight(process, (nodes[1:] + nodes[:-1]) / 2)
    if not bool((torch.isfinite(weight) & (weight > 0)).all()):
        raise ValueError(f"Tabulated: {law.weight} is not positive and finite on [{law.t0}, {process.t1}].")
    mass = (weight * nodes.diff()).cumsum(0)
    return nodes, torch.cat((mass.new_zeros(1), mass)) / mass[-1]
