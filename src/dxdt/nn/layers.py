"""Layers that other networks are made of: time embeddings, gated linear layers, initialisers.

Times enter as a tensor of any shape; an embedding adds one trailing axis.
"""

from __future__ import annotations

import math
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

L = TypeVar("L", nn.Linear, nn.Conv2d)


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill `weight` with U(-r, r), r = sqrt(3 scale / mean(fan_in, fan_out)), in place.

    Args:
        weight: at least two axes (out, in, *kernel).
        scale: 1 keeps the variance of activations; 0 gives an all-zero layer.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks" (2010), equation 16, with the factor `scale`.
    """
    receptive = weight[0, 0].numel() if weight.ndim > 2 else 1
    fan = receptive * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3 * scale / fan)
    with torch.no_grad():
        return weight.uniform_(-bound, bound)


def scaled(layer: L, scale: float = 1.0) -> L:
    """Return `layer` after filling its weight by `variance_scaling_` and its bias by zeros."""
    variance_scaling_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@final
class Sinusoidal(nn.Module):
    """Embed a number t as [sin(w_k t), cos(w_k t)] with w_k spaced geometrically.

    Args:
        features: length of the embedding, even and at least 4.
        low: smallest angular frequency.
        high: largest angular frequency.

    Raises:
        ValueError: `features` is odd or below 4, or the frequencies are not 0 < low < high.

    Source: Vaswani et al., "Attention is all you need" (2017), section 3.5.
    """

    frequencies: Tensor

    def __init__(self, features: int, *, low: float = 0.1, high: float = 10.0) -> None:
        super().__init__()
        if features < 4 or features % 2:
            raise ValueError(
                f"Sinusoidal: features={features} cannot be split into sines and cosines; "
                "give an even number of at least 4."
            )
        if not 0 < low < high:
            raise ValueError(
                f"Sinusoidal: frequencies low={low}, high={high} do not satisfy 0 < low < high; "
                "swap them or choose positive ones."
            )
        w = torch.logspace(math.log10(low), math.log10(high), features // 2)
        self.register_buffer("frequencies", w, persistent=False)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the embedding of every entry of `t` in t's dtype."""
        angle = t.unsqueeze(-1) * self.frequencies.to(t.dtype)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


@final
class Fourier(nn.Module):
    """Embed a number t as [sin(2 pi w_k t), cos(2 pi w_k t)] with fixed normal w_k.

    Args:
        features: length of the embedding, even.
        scale: standard deviation of the frequencies.
        seed: names the frequencies; they are stored with the module.

    Raises:
        ValueError: `features` is odd or not positive.

    Source: Tancik et al., "Fourier features let networks learn high frequency functions" (2020),
    equation 5; Song et al., "Score-based generative modeling through SDEs" (2021), appendix C.
    """

    frequencies: Tensor

    def __init__(self, features: int, *, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(
                f"Fourier: features={features} cannot be split into sines and cosines; give a positive even number."
            )
        generator = torch.Generator().manual_seed(seed)
        w = scale * torch.randn(features // 2, generator=generator)
        self.register_buffer("frequencies", w)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the embedding of every entry of `t` in t's dtype."""
        angle = t.unsqueeze(-1) * (2 * math.pi * self.frequencies).to(t.dtype)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


@final
class ConcatSquash(nn.Module):
    """A linear layer whose output time gates and shifts.

    out = (W y + b) * sigmoid(v t + d) + u t

    Shapes: t is () or the leading axes of y; y is (*batch, in_features).

    Source: Grathwohl et al., "FFJORD: free-form continuous dynamics" (2019), appendix B.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(1, out_features)
        self.shift = nn.Linear(1, out_features, bias=False)

    def forward(self, t: Tensor, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return the gated, shifted linear map of `y` at time `t`."""
        clock = t.unsqueeze(-1)
        return self.linear(y) * self.gate(clock).sigmoid() + self.shift(clock)
