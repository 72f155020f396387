"""Small published models that a folder of data may hold, wrapped as denoisers.

The folder is the one that DXDT_DATA names; its `weights` hold the files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion import VP, Denoiser, Index, Levels
from dxdt.lab.weights import load_into, read_weights

MNIST_DDPM_LEVELS = Levels(256, -0.5, 0.5)
"""The grey levels 0 to 255 on the interval that `mnist_ddpm` was trained on."""


@final
@dataclass(frozen=True, eq=False)
class Cumulated:
    """The integral B = -log alpha_bar of a schedule known at equidistant times, smoothly continued.

    A natural cubic spline through the values at t = 0, 1/N, ..., 1: twice differentiable, so that
    solvers of high order keep their order.

    Args:
        values: (N + 1,), increasing and positive.

    Raises:
        ValueError: there are fewer than three values, or they do not increase.
    """

    values: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        v = self.values.double()
        if v.ndim != 1 or len(v) < 3 or not bool((v.diff() > 0).all()):
            raise ValueError(
                f"Cumulated: values of shape {tuple(v.shape)} are no increasing sequence of at least three; "
                "pass -log alpha_bar from the first step to the last."
            )
        n = len(v)
        step = 1 / (n - 1)
        system = torch.diag(torch.full((n,), 4.0, dtype=torch.float64))
        system += torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
        system += torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
        system[0], system[-1] = 0, 0
        system[0, 0] = system[-1, -1] = 1
        bend = torch.zeros(n, dtype=torch.float64)
        bend[1:-1] = 6 * (v[2:] - 2 * v[1:-1] + v[:-2]) / step**2
        second = torch.linalg.solve(system, bend)
        slope = (v.diff() / step) - step * (2 * second[:-1] + second[1:]) / 6
        cubic = (v[:-1], slope, second[:-1] / 2, second.diff() / (6 * step))
        object.__setattr__(self, "values", v)
        object.__setattr__(self, "_cells", torch.stack(cubic))

    def _cell(self, index: Tensor) -> Tensor:
        cells: Tensor = self._cells  # pyright: ignore[reportAttributeAccessIssue]
        return cells.to(index.device)[:, index]

    @property
    def t0(self) -> float:
        """1 / N."""
        return 1 / (len(self.values) - 1)

    @property
    def t1(self) -> float:
        """One."""
        return 1.0

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of the cell of a time, and how far it lies in it."""
        n = len(self.values) - 1
        index = (t.detach() * n).floor().long().clamp(0, n - 1)
        return self._cell(index).to(t.dtype), t - (index / n).to(t.dtype)

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t)."""
        (c0, c1, c2, c3), s = self._place(t)
        return c0 + s * (c1 + s * (c2 + s * c3))

    def rate(self, t: Tensor) -> Tensor:
        """Return B'(t)."""
        (_, c1, c2, c3), s = self._place(t)
        return c1 + s * (2 * c2 + 3 * s * c3)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`, by Newton's method within a cell."""
        n = len(self.values) - 1
        values = self.values.to(total.device)
        index = (torch.searchsorted(values, total.detach().double().contiguous(), right=True) - 1).clamp(0, n - 1)
        c0, c1, c2, c3 = self._cell(index).to(total.dtype)
        s = (total - c0) / c1
        for _ in range(6):  # cells are nearly straight: the error squares each time
            value = c0 + s * (c1 + s * (c2 + s * c3)) - total
            s = s - value / (c1 + s * (2 * c2 + 3 * s * c3))
        return (index / n).to(total.dtype) + s


@final
class _Layer(nn.Module):
    """GELU(LayerNorm(conv x)) over whole images of a fixed size."""

    def __init__(self, n: int, m: int, size: Sequence[int]) -> None:
        super().__init__()
        # Names are those of the published file.
        self.net = nn.Sequential(nn.Conv2d(n, m, 7, padding=3), nn.LayerNorm([m, *size]), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@final
class PlainConvNet(nn.Module):
    """Convolutions of 7 x 7 pixels at full size, with a time encoding added after the first.

    Args:
        channels: of the images.
        widths: channels of each layer.
        size: height and width.
        waves: length of half of the time features.

    Shapes: x (B, channels, *size); t () or (B,) in [0, 1]; result as x.
    """

    frequencies: Tensor

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 32, 16),
        size: Sequence[int] = (28, 28),
        waves: int = 16,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Layer(n, m, size) for n, m in itertools.pairwise([channels, *widths]))
        self.blocks.append(nn.Conv2d(widths[-1], channels, 3, padding=1))
        inner = [nn.Linear(2 * waves, 128), nn.GELU()]
        for _ in range(2):
            inner += [nn.Linear(128, 128), nn.GELU()]
        self.time_embed = nn.Sequential(*inner, nn.Linear(128, widths[0]))
        waves_ = torch.tensor([0.0] + [2 * math.pi * 1.5**k for k in range(waves - 1)])
        self.register_buffer("frequencies", waves_)

    def forward(self, x: Float[Tensor, "batch n height width"], t: Tensor) -> Float[Tensor, "batch n height width"]:
        """Return the network's value for images `x` at times `t`."""
        angle = t.to(x.dtype).expand(x.shape[0])[:, None] * self.frequencies.to(x.dtype)
        told = self.time_embed(torch.cat((angle.sin(), angle.cos() - 1), dim=1))
        first, *rest = self.blocks
        h = first(x) + told[:, :, None, None]
        for part in rest:
            h = part(h)
        return h


def mnist_ddpm(folder: Path) -> Denoiser:
    """Return a small published DDPM of MNIST digits (293,000 weights) as a denoiser.

    It answers the noise, on images whose grey levels lie over [-1/2, 1/2] (`MNIST_DDPM_LEVELS`).
    Its process is the variance-preserving one through its 1,000 noise levels, t = i / 1000.

    Args:
        folder: holds weights/ddpm_mnist_starter.pth.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.

    Source: Y. Zhang, github.com/Yichizz/hot_vs_cold_diffusion (2024), the "starter" model.
    """
    path = folder / "weights" / "ddpm_mnist_starter.pth"
    tensors = read_weights(path, "a DDPM of MNIST")
    beta = tensors.pop("beta_t", None)
    tensors.pop("alpha_t", None)
    if beta is None:
        raise ValueError(f"{path} holds no schedule beta_t; restore the original file.")
    named = {name.removeprefix("gt."): value for name, value in tensors.items()}
    net = load_into(PlainConvNet(), named, path)
    total = -torch.log1p(-beta.double()).cumsum(0)
    process = VP(Cumulated(total))
    return Denoiser(net, process, clock=Index(1.0))
