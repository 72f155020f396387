"""Layers that keep the magnitude (root mean square) of what passes through them.

Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), section 2 and
appendix B; equation numbers below are theirs.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MagnitudeFourier", "MagnitudeWeight", "beside", "blend", "silu", "unit"]

_TINY = 1e-4
# Root mean square of silu(z) for standard normal z.
_SILU = 0.596


def unit(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return x / (r + 1e-4), r the root mean square of x over `axes`."""
    r = x.float().square().mean(axes, keepdim=True).sqrt() + _TINY
    return x / r.to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x) / 0.596, of unit magnitude for normal x (equation 81)."""
    return F.silu(x) / _SILU


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (equation 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def beside(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return `a` and `b` beside each other along axis 1, with shares 1 - t and t of the magnitude (equation 103)."""
    n, m = a.shape[1], b.shape[1]
    scale = math.sqrt(n + m) / math.hypot(1 - t, t)
    return torch.cat((a * (scale * (1 - t) / math.sqrt(n)), b * (scale * t / math.sqrt(m))), dim=1)


@final
class MagnitudeWeight(nn.Module):
    """A linear map of channels whose rows have unit length, whatever the stored weight's scale (equation 47).

    Args:
        n, m: channels before and after.
        size: width of a square kernel over images, odd; 0 for vectors.

    Attributes:
        weight: (m, n) or (m, n, size, size).
    """

    def __init__(self, n: int, m: int, size: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n, size, size) if size else torch.randn(m, n))

    @torch.no_grad()
    def project_(self) -> None:
        """Give the stored weight unit magnitude; to be called after every step of an optimiser (equation 66)."""
        self.weight.copy_(unit(self.weight, tuple(range(1, self.weight.ndim))))

    def forward(
        self, x: Float[Tensor, "batch n *image"], gain: Tensor | float = 1.0
    ) -> Float[Tensor, "batch m *image"]:
        """Return the mapped `x`, times `gain`."""
        w = self.weight.float()
        w = (unit(w, tuple(range(1, w.ndim))) * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


@final
class MagnitudeFourier(nn.Module):
    """Embed a number t as sqrt(2) cos(w_k t + p_k), w_k normal and p_k uniform (equation 75).

    Args:
        features: length of the embedding.
        seed: names frequencies and phases, which are stored with the module.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the embedding of every entry of `t` in t's dtype."""
        angle = t.unsqueeze(-1) * self.frequencies.to(t.dtype) + self.phases.to(t.dtype)
        return math.sqrt(2) * angle.cos()
