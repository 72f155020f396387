"""Exact moments of a stochastic solver where its update is affine: impulses in place of noise.

x_N = B + A x_0 + sum_j w_j z_j for the normals z_j of all steps. One sample per unknown, each with one
number set to one and the rest to zero, reads A, B and all w_j through `solve` itself.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import dxdt
from dxdt.diffusion import Process, Profile, ReverseSDE, gaussian_oracle
from dxdt.paths.driver import Increment

M = torch.tensor([0.5, -1.0, 0.0]).double()
S = torch.tensor([0.3, 0.8, 1.2]).double()
MU = torch.tensor([0.2, -0.4, 0.7]).double()


@dataclass(frozen=True)
class Impulses:
    """A driver of a joint solve under which sample 2 + k (1 + streams) + j has noise only in step k: j = 0 of the
    path, then of each stream; samples 0 and 1 have none."""

    samples: int
    streams: int = 0

    adaptive: ClassVar[bool] = False
    levy: ClassVar[Any] = None

    def bind(self, t0, t1, rows, size, dtype, device="cpu", row_offset=0):
        return Bound(self, size, dtype)


@dataclass(frozen=True)
class Bound:
    path: Impulses
    size: int
    dtype: torch.dtype

    def _ones(self, step: Any, place: int) -> Tensor:
        z = torch.zeros(self.path.samples, self.size // self.path.samples, dtype=self.dtype)
        z[2 + int(step) * (1 + self.path.streams) + place] = 1.0
        return z.reshape(1, -1)

    def increment(self, t, dt, step=0) -> Increment:
        length = float(np.asarray(dt).reshape(-1)[0])
        return Increment(dt, self._ones(step, 0) * float(np.sign(length) * np.abs(length) ** 0.5), None)

    def normals(self, step, stream: int, size: int) -> Tensor:
        return self._ones(step, 1 + stream)


def exact(process: Process, t: float, mean: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_t for data N(M, S^2)."""
    s = torch.as_tensor(t, dtype=torch.float64)
    a, b, v = process.a(s), process.b(s), process.variance(s)
    return a * M + (b * MU if mean else 0.0), a**2 * S**2 + v


def law(
    solver: Any,
    process: Process,
    grid: Tensor,
    tau: float,
    streams: int = 0,
    mean: bool = False,
    profile: Profile | None = None,
):
    """Mean and variance that a solver reaches at the end of a grid from the exact law at its start."""
    rows = 2 + (len(grid) - 1) * (1 + streams)
    x = torch.zeros(rows, 3, dtype=torch.float64)
    x[1] = 1.0
    mu = MU.expand(rows, 3) if mean else None
    equation = ReverseSDE(gaussian_oracle(process, M, S), tau, mu, profile)
    options = {"solver": solver, "controller": dxdt.Grid(grid.numpy()), "driver": Impulses(rows, streams)}
    end = dxdt.solve(equation, x, (grid[0].item(), grid[-1].item()), **options).y1
    base, gain, weights = end[0], end[1] - end[0], end[2:] - end[0]
    m, v = exact(process, grid[0].item(), mean)
    return base + gain * m, gain**2 * v + weights.square().sum(0)
