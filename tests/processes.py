"""The one list of processes that the tests run over; a new process is tested by standing here.

PROCESSES are all, with schedules of every kind, times up to 1, 80, 100 or 1000, and tables whose rates
jump; `ends` gives times between which everything is finite, since bridges end in a point and others
begin in one. CLASSIC are those smooth in time with t1 = 1 and a prior, for solvers that see only time.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dxdt.diffusion import (
    EDM,
    OUVE,
    VE,
    VP,
    BrownianBridge,
    ConstantCurve,
    Cosine,
    Denoising,
    Linear,
    LinearCurve,
    LogSigma,
    OUBridge,
    Process,
    RectifiedFlow,
    Reversion,
    Smooth,
    SubVP,
    Table,
    cosine_betas,
    linear_betas,
    zero_terminal_snr,
)
from dxdt.diffusion import MeanReverting as Restoring


@dataclass(frozen=True)
class MeanReverting(Process):
    """a = exp(-k t), b = 1 - a, c = L sqrt(1 - a^2): three functions are all that it takes."""

    k: float = 5.0
    width: float = 0.4

    def a(self, t: Tensor) -> Tensor:
        return (-self.k * t).exp()

    def b(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.k * t)

    def variance(self, t: Tensor) -> Tensor:
        return -(self.width**2) * torch.expm1(-2 * self.k * t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.log1p((-2 * (lam + math.log(self.width))).exp()) / (2 * self.k)

    @property
    def prior_std(self) -> float:
        return self.width


ALPHAS = (1 - linear_betas()).cumprod(0)

CLASSIC = [VP(), VP(Linear(0.5, 8.0)), SubVP(), VE(), RectifiedFlow(), MeanReverting()]

PROCESSES = [
    *CLASSIC,
    VP(Cosine()),
    VP(Cosine(end=1.0)),
    VP(Table.from_betas(linear_betas())),
    VP(Table.from_betas(linear_betas(), LogSigma())),
    VP(Table.from_betas(linear_betas(), Smooth())),
    VP(Table.from_betas(cosine_betas(50))),
    VP(Table.from_alphas_cumprod(zero_terminal_snr(ALPHAS))),
    VP(Table.from_alphas_cumprod(zero_terminal_snr(ALPHAS), LogSigma())),
    SubVP(Cosine()),
    EDM(),
    Restoring(),
    Restoring(10 / 255, Reversion(LinearCurve(), 1000)),
    Restoring(0.3, Reversion(ConstantCurve())),
    Restoring(schedule=Reversion(from_zero=False)),
    Restoring(0.5, Linear()),
    Denoising(),
    OUVE(),
    OUBridge(),
    OUBridge(0.3, Linear()),
    BrownianBridge(0.5),
    BrownianBridge(0.5, Linear()),
    BrownianBridge(0.5, Reversion()),
]


def ends(process: Process) -> tuple[float, float]:
    """Return times near data and prior between which a, c and lam are finite and lam changes by ten or so."""
    late = 0.99 if process.prior_std == 0 else 0.999
    return max(process.t0, 0.01 * process.t1), late * process.t1


def grid(process: Process, count: int) -> Tensor:
    """Return times that cover a process."""
    return torch.linspace(*ends(process), count, dtype=torch.float64)
