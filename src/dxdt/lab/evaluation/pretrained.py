"""Small published models that a folder of data may hold, wrapped as denoisers.

The folder is the one that DXDT_DATA names; its `weights` hold the files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion import VP, Denoiser, Index, Levels, Smooth, Table
from dxdt.lab.evaluation.weights import load_into, read_weights

MNIST_DDPM_LEVELS = Levels(256, -0.5, 0.5)
"""The grey levels 0 to 255 on the interval that `mnist_ddpm` was trained on."""


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
    Its process is the variance-preserving one through its 1,001 noise levels, level i at t = (i + 1) / 1001, by a
    spline; the network is told i / 1000.

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
    table = Table.from_betas(beta, Smooth())
    last = table.levels - 1
    return Denoiser(net, VP(table), clock=Index(table.levels / last, -1 / last))
