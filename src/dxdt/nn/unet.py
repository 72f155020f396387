"""A U-Net for images of any size, conditioned on a number per image and, where asked, on a class.

Residual blocks are (x + h) / sqrt(2), with group normalisation, SiLU and a time-dependent scale
and shift; attention sits at chosen levels and in the middle; levels change size by a factor two,
rounded up, so odd sizes work.

Source: Ho et al., "Denoising diffusion probabilistic models" (2020), appendix B; Song et al.,
"Score-based generative modeling through SDEs" (2021), appendix H (rescaled skips).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.layers import Sinusoidal, scaled

_TINY = 1e-10  # variance of layers that start a residual branch, or the output, at rest


def _norm(channels: int) -> nn.GroupNorm:
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv(n: int, m: int, *, size: int = 3, stride: int = 1, scale: float = 1.0) -> nn.Conv2d:
    return scaled(nn.Conv2d(n, m, size, stride=stride, padding=size // 2), scale)


@final
class ResidualBlock(nn.Module):
    """(skip(x) + conv(act(norm(conv(act(norm x))) * (1 + s(e)) + b(e)))) / sqrt(2)."""

    def __init__(self, n: int, m: int, *, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm0 = _norm(n)
        self.conv0 = _conv(n, m)
        self.film = scaled(nn.Linear(embedding, 2 * m))
        self.norm1 = _norm(m)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = _conv(m, m, scale=_TINY)
        self.skip = nn.Identity() if n == m else _conv(n, m, size=1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the block's value for images `x` (B, n, H, W) and embeddings `e` (B, E)."""
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = self.norm1(h) * (1 + scale) + shift
        h = self.conv1(self.dropout(F.silu(h)))
        return (self.skip(x) + h) / math.sqrt(2)


@final
class AttentionBlock(nn.Module):
    """(x + softmax(q k^T / sqrt(C / heads)) v W) / sqrt(2) over all pixels of an image."""

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = _conv(channels, 3 * channels, size=1)
        self.output = _conv(channels, channels, size=1, scale=_TINY)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended images, same shape as `x` (B, C, H, W)."""
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        # Written out: the fused kernel has no batched-vjp rule, which exact likelihoods use.
        weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        h = (weight @ v).transpose(-1, -2).reshape(batch, channels, height, width)
        return (x + self.output(h)) / math.sqrt(2)


@final
class _Stage(nn.Module):
    """One residual block, and attention after it where asked."""

    def __init__(self, n: int, m: int, *, embedding: int, dropout: float, heads: int | None) -> None:
        super().__init__()
        self.block = ResidualBlock(n, m, embedding=embedding, dropout=dropout)
        self.attention = nn.Identity() if heads is None else AttentionBlock(m, heads=heads)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.attention(self.block(x, e))


@final
class UNet(nn.Module):
    """Map images x and one number t per image to images of the same size.

    Args:
        in_channels, out_channels: of the images (out defaults to in).
        channels: width of the first level.
        multipliers: width of each level in units of `channels`; each level halves the size.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: levels (0 is full size) with self-attention; the middle always has it.
        heads: attention heads.
        dropout: probability inside residual blocks.
        embedding: a module that turns t (B,) into (B, features); sinusoidal by default.
        features: length of that embedding.
        classes: how many classes images may be asked for; one more, the last, stands for "any".
        patch: side of the squares of pixels that the first level sees as one, with p^2 times the
            channels: a quarter of the work for p = 2.

    Shapes: x (B, in_channels, H, W); t () or (B,); labels (B,) integers; result (B, out_channels, H, W).

    Raises:
        ValueError: an attention level does not exist, heads do not divide a width, the input has the
            wrong number of channels or a size that squares of `patch` do not fill, or labels are given
            to a network without classes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        heads: int = 1,
        dropout: float = 0.0,
        embedding: nn.Module | None = None,
        features: int = 64,
        classes: int | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        _check(widths, blocks, attention, heads)
        self.in_channels = in_channels
        self.options: dict[str, Any] | None = None
        if embedding is None:
            self.options = {
                "in_channels": in_channels,
                "out_channels": out_channels,
                "channels": channels,
                "multipliers": tuple(multipliers),
                "blocks": blocks,
                "attention": tuple(attention),
                "heads": heads,
                "dropout": dropout,
                "features": features,
                "classes": classes,
                "patch": patch,
            }
        e = 4 * channels
        self.embedding = Sinusoidal(features) if embedding is None else embedding
        self.clock = nn.Sequential(scaled(nn.Linear(features, e)), nn.SiLU(), scaled(nn.Linear(e, e)), nn.SiLU())
        self.classes = classes
        self.labels = None if classes is None else nn.Embedding(classes + 1, e)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)
        self.patch = patch
        self.input = _conv(in_channels * patch**2, widths[0])

        def stage(n: int, m: int, level: int) -> _Stage:
            there = heads if level in attention else None
            return _Stage(n, m, embedding=e, dropout=dropout, heads=there)

        skips = [widths[0]]
        now = widths[0]
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for level, width in enumerate(widths):
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(stage(now, width, level))
                now = width
                skips.append(now)
            self.down.append(row)
            if level < len(widths) - 1:
                self.shrink.append(_conv(now, now, stride=2))
                skips.append(now)
        self.middle0 = _Stage(now, now, embedding=e, dropout=dropout, heads=heads)
        self.middle1 = _Stage(now, now, embedding=e, dropout=dropout, heads=None)
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            row = nn.ModuleList()
            for _ in range(blocks + 1):
                row.append(stage(now + skips.pop(), width, level))
                now = width
            self.up.append(row)
            if level > 0:
                self.grow.append(_conv(now, now))
        self.norm = _norm(now)
        answers = in_channels if out_channels is None else out_channels
        self.output = _conv(now, answers * patch**2, scale=_TINY)

    def _embed(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return what the blocks are told, (B, E)."""
        *first, last = self.clock
        e = self.embedding(t.to(x.dtype))
        for part in first:
            e = part(e)
        e = e.expand(x.shape[0], -1)
        if self.labels is None or self.classes is None:
            if labels is not None:
                raise ValueError("UNet: labels are given to a network without classes; build it with classes=10, say.")
            return last(e)
        # Without labels, or for a negative one, the images may be of any class.
        asked = torch.full((), -1, device=x.device) if labels is None else labels
        row = torch.where(asked < 0, self.classes, asked).long()
        return last(e + self.labels(row))

    def forward(
        self, x: Float[Tensor, "batch n height width"], t: Tensor, labels: Tensor | None = None
    ) -> Float[Tensor, "batch m height width"]:
        """Return the network's value for images `x` at the numbers `t`.

        Args:
            x: images.
            t: numbers.
            labels: classes from 0, or -1 for "any"; any class without them.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"UNet: input of shape {tuple(x.shape)} is not a batch of images with "
                f"{self.in_channels} channels; pass (B, {self.in_channels}, H, W)."
            )
        if x.shape[-2] % self.patch or x.shape[-1] % self.patch:
            raise ValueError(
                f"UNet: squares of {self.patch} pixels do not fill images of {x.shape[-1]} x {x.shape[-2]}; "
                "build the network with another patch."
            )
        e = self._embed(x, t, labels)
        h = self.input(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for level, row in enumerate(self.down):
            for part in row:  # pyright: ignore[reportGeneralTypeIssues]
                h = part(h, e)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        h = self.middle1(self.middle0(h, e), e)
        for level, row in enumerate(self.up):
            for part in row:  # pyright: ignore[reportGeneralTypeIssues]
                h = part(torch.cat((h, skips.pop()), dim=1), e)
            if level < len(self.grow):
                h = F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest")
                h = self.grow[level](h)
        return F.pixel_shuffle(self.output(F.silu(self.norm(h))), self.patch)


def _check(widths: list[int], blocks: int, attention: Sequence[int], heads: int) -> None:
    if not widths or min(widths) < 1 or blocks < 1:
        raise ValueError(
            f"UNet: widths {widths} with {blocks} blocks leave nothing to compute; "
            "give positive channels, multipliers and blocks."
        )
    missing = [level for level in attention if not 0 <= level < len(widths)]
    if missing:
        raise ValueError(f"UNet: attention level {missing[0]} does not exist; choose from 0 to {len(widths) - 1}.")
    indivisible = [w for w in widths if w % heads]
    if indivisible:
        raise ValueError(
            f"UNet: {heads} attention heads do not divide {indivisible[0]} channels; "
            "choose heads that divide every width."
        )
