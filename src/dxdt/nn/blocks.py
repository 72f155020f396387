"""The parts of score networks: residual blocks that may change the size, attention, heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.layers import scaled

TINY = 1e-10
"""Variance factor of layers that end a residual branch: it starts at rest."""


@final
@dataclass(frozen=True)
class BlockSpec:
    """What the residual and attention blocks of one network share.

    Attributes:
        groups, channels_per_group: group normalisation of C channels has min(groups, C // channels_per_group) groups.
        eps: of the normalisation.
        dropout: probability before the last convolution.
        scale_shift: the embedding scales and shifts after the second normalisation, instead of adding before it.
        rescale: sums are divided by it; sqrt(2) keeps their variance.
        project: a block that changes the size has a 1 x 1 convolution in its shortcut.
        heads: attention heads, or None for heads of `head_width` channels.
        head_width: channels of a head where `heads` is None.
    """

    groups: int = 32
    channels_per_group: int = 4
    eps: float = 1e-6
    dropout: float = 0.1
    scale_shift: bool = False
    rescale: float = math.sqrt(2)
    project: bool = True
    heads: int | None = 1
    head_width: int = 64

    def norm(self, channels: int) -> nn.GroupNorm:
        """Return the normalisation of `channels` channels.

        Raises:
            ValueError: the groups do not divide the channels.
        """
        groups = max(1, min(self.groups, channels // self.channels_per_group))
        if channels % groups:
            raise ValueError(
                f"score network: {groups} groups of the normalisation do not divide {channels} channels; "
                "choose widths that are multiples of 32, or fewer groups."
            )
        return nn.GroupNorm(groups, channels, eps=self.eps)

    def heads_of(self, channels: int) -> int:
        """Return the number of attention heads at `channels` channels.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        heads = max(1, channels // self.head_width) if self.heads is None else self.heads
        if channels % heads:
            raise ValueError(
                f"score network: {heads} attention heads do not divide {channels} channels; "
                "choose heads that divide every width with attention."
            )
        return heads

    def joined(self, x: Tensor, h: Tensor) -> Tensor:
        """Return (x + h) / rescale."""
        return x + h if self.rescale == 1 else (x + h) / self.rescale


def conv(n: int, m: int, size: int = 3, *, scale: float = 1.0) -> nn.Conv2d:
    """Return a convolution that keeps the size, with scaled initial weights and zero bias."""
    return scaled(nn.Conv2d(n, m, size, padding=size // 2), scale)


@final
class ResBlock(nn.Module):
    """skip(r(x)) + conv1(silu(norm1(conv0(r(silu(norm0(x)))) + b(e)))), r an optional change of size.

    Args:
        n, m: channels before and after.
        embedding: length of e.
        spec: what the network's blocks share.
        resample: a module without channels (`Downsample`, `Upsample`), or None.

    Source: Brock et al., "Large scale GAN training" (2019), appendix B; Song et al., "Score-based generative
    modeling through SDEs" (2021), appendix H.
    """

    def __init__(self, n: int, m: int, *, embedding: int, spec: BlockSpec, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.norm0 = spec.norm(n)
        self.conv0 = conv(n, m)
        self.film = scaled(nn.Linear(embedding, 2 * m if spec.scale_shift else m))
        self.norm1 = spec.norm(m)
        self.dropout = nn.Dropout(spec.dropout)
        self.conv1 = conv(m, m, scale=TINY)
        projects = n != m or (resample is not None and spec.project)
        self.skip = conv(n, m, 1) if projects else None
        self.resample = resample

    def forward(self, x: Float[Tensor, "batch n h w"], e: Float[Tensor, "batch e"]) -> Float[Tensor, "batch m h2 w2"]:
        """Return the block's value for images `x` and embeddings `e`."""
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        film = self.film(e)[:, :, None, None]
        if self.spec.scale_shift:
            scale, shift = film.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + film)
        h = self.conv1(self.dropout(F.silu(h)))
        return self.spec.joined(x if self.skip is None else self.skip(x), h)


@final
class SelfAttention(nn.Module):
    """x + W softmax(q k^T / sqrt(C / heads)) v over all pixels of an image.

    Args:
        channels: of the images.
        spec: what the network's blocks share.
    """

    def __init__(self, channels: int, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        self.heads = spec.heads_of(channels)
        self.norm = spec.norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.output = conv(channels, channels, 1, scale=TINY)

    def forward(self, x: Float[Tensor, "batch n h w"]) -> Float[Tensor, "batch n h w"]:
        """Return the attended images."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        # Written out: the fused kernel has no batched-vjp rule, which exact likelihoods use.
        weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        h = (weight @ v).transpose(-1, -2).reshape(batch, channels, height, width)
        return self.spec.joined(x, self.output(h))


@final
class Stage(nn.Module):
    """One residual block, and attention after it where asked."""

    def __init__(self, n: int, m: int, *, embedding: int, spec: BlockSpec, attention: bool) -> None:
        super().__init__()
        self.block = ResBlock(n, m, embedding=embedding, spec=spec)
        self.attention = SelfAttention(m, spec) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the stage's value for images `x` and embeddings `e`."""
        h = self.block(x, e)
        return h if self.attention is None else self.attention(h)


@final
class Head(nn.Module):
    """conv(silu(norm(x))): from features to an answer."""

    def __init__(self, n: int, m: int, spec: BlockSpec, *, scale: float = TINY) -> None:
        super().__init__()
        self.norm = spec.norm(n)
        self.conv = conv(n, m, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the answer for features `x`."""
        return self.conv(F.silu(self.norm(x)))


@final
class Resized(nn.Module):
    """A change of size without embedding where a block with one is expected."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return `layer(x)`."""
        del e
        return self.layer(x)


def joined_channels(x: Tensor, skip: Tensor) -> Tensor:
    """Return `x` and `skip` beside each other along the channels.

    Raises:
        ValueError: their sizes differ, because the image cannot be halved as often as the network does.
    """
    if x.shape[-2:] != skip.shape[-2:]:
        raise ValueError(
            f"score network: features of {tuple(x.shape[-2:])} pixels meet others of {tuple(skip.shape[-2:])}; "
            "pass images whose height and width the network can halve at every level."
        )
    return torch.cat((x, skip), dim=1)
