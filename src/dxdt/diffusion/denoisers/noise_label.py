"""Clocks: what number a network is told about the time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

from torch import Tensor

from dxdt.diffusion.processes.process import Process

__all__ = ["Clock", "Index", "LogScale", "diffusion_time", "log_snr", "noise_to_signal"]


class Clock(Protocol):
    """What number a network is told about the time."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return the network's time input for times `t` (float64), elementwise."""
        ...


def log_snr(process: Process, t: Tensor) -> Tensor:
    """Tell the network lam = log(a / c), which resolves early times on their own scale."""
    return process.lam(t)


def diffusion_time(process: Process, t: Tensor) -> Tensor:
    """Tell the network t itself, which is finite where nothing is left of the data or of the noise."""
    return t


def noise_to_signal(process: Process, t: Tensor) -> Tensor:
    """Tell the network the noise relative to the signal, c / a."""
    return (-process.lam(t)).exp()


@final
@dataclass(frozen=True)
class Index:
    """Tell the network scale t + offset, or the nearest integer.

    `Index()` is that of the score-SDE line (999 t); `Index.levels(1000)` that of a discrete model.

    Args:
        scale, offset: of the straight line.
        whole: round to int64, for networks that look the time up in a table.
    """

    scale: float = 999.0
    offset: float = 0.0
    whole: bool = False

    @classmethod
    def levels(cls, count: int, whole: bool = False) -> Index:
        """Return the clock of a discrete model: count t - 1, its level at t = (level + 1) / count."""
        return cls(float(count), -1.0, whole)

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return scale t + offset."""
        place = self.scale * t + self.offset
        return place.round().long() if self.whole else place


@final
@dataclass(frozen=True)
class LogScale:
    """Tell the network scale log(unit c / a): log(sigma) / 4 for EDM, log(sigma / 2) for VE.

    Source: Karras et al. (2022), table 1, c_noise.

    Raises:
        ValueError: `unit` is not positive.
    """

    scale: float = 0.25
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not self.unit > 0:
            raise ValueError(f"LogScale: a unit of {self.unit} has no logarithm; choose unit > 0.")

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return scale (log unit - lam)."""
        return self.scale * (math.log(self.unit) - process.lam(t))
