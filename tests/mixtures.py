"""Mixtures for chains: a ring in the plane, and far modes in many dimensions, as the checks of the specification."""

import math

import torch

from dxdt.diffusion import EDM, Process
from dxdt.diffusion.denoisers.round_mixture import RoundMixture

F64 = torch.float64


def ring(process: Process | None = None, radius: float = 4.0, modes: int = 8) -> RoundMixture:
    """Modes on a circle, of width 0.2 and weights 1, 2, 3, ..."""
    angle = 2 * math.pi * torch.arange(modes, dtype=F64) / modes
    means = radius * torch.stack((angle.cos(), angle.sin()), 1)
    weights = torch.arange(1, modes + 1, dtype=F64)
    return RoundMixture(process or EDM(0.01, 20.0), weights, means, torch.full((modes,), 0.2, dtype=F64))


def cube(size: int, std: float, process: Process | None = None, *, seed: int = 4, even: bool = False) -> RoundMixture:
    """Eight modes, uniform in the unit cube."""
    means = torch.rand(8, size, dtype=F64, generator=torch.Generator().manual_seed(seed))
    weights = torch.ones(8, dtype=F64) if even else torch.arange(1, 9, dtype=F64)
    return RoundMixture(process or EDM(0.01, 50.0), weights, means, torch.full((8,), std, dtype=F64))


def widths(oracle: RoundMixture, x: torch.Tensor) -> float:
    """Median over the modes of the width of samples inside a mode, relative to the true one."""
    mode = oracle.nearest(x)
    square = (x.double() - oracle.means[mode]).square().mean(1)
    each = [
        (square[mode == k].mean().sqrt() / oracle.stds[k]).item() for k in range(len(oracle.means)) if (mode == k).any()
    ]
    return sorted(each)[len(each) // 2]


def variation(oracle: RoundMixture, x: torch.Tensor) -> float:
    """Total variation between the shares of the modes among samples and their weights."""
    return 0.5 * float((oracle.occupancy(x) - oracle.weights).abs().sum())
