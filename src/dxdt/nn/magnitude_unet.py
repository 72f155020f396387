"""The magnitude-preserving U-Net of EDM2.

Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), figure 21.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.blocks import joined_channels
from dxdt.nn.magnitude import MagnitudeFourier, MagnitudeWeight, beside, blend, silu, unit
from dxdt.nn.resample import Downsample, Taps, Upsample

__all__ = ["MagnitudeArchitecture", "MagnitudeUNet", "edm2"]


@final
@dataclass(frozen=True)
class MagnitudeArchitecture:
    """All choices of a `MagnitudeUNet`.

    Attributes:
        channels: of the images.
        widths: channels of each level; every level but the first has half the size of the one before.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention: levels (0 is full size) with self-attention; the middle has it too.
        features, embedding_width: lengths of the embedded noise level and of what blocks read.
        labels: number of classes, 0 without.
        head_width: channels of an attention head.
        dropout: probability before the last convolution of a block.
        taps: filter of the changes of size.
        residual, attending, labelled, skipped: shares of residual branch, attention, class and skip connections.
        limit: activations are cut to [-limit, limit] after every block, or None.

    Raises:
        ValueError: sizes leave nothing to compute, a level does not exist, or heads do not divide a width.
    """

    channels: int = 3
    widths: tuple[int, ...] = (192, 384, 576, 768)
    blocks: int = 3
    attention: tuple[int, ...] = (2, 3)
    features: int = 192
    embedding_width: int = 768
    labels: int = 1000
    head_width: int = 64
    dropout: float = 0.0
    taps: Taps = (1, 1)
    residual: float = 0.3
    attending: float = 0.3
    labelled: float = 0.5
    skipped: float = 0.5
    limit: float | None = 256.0

    def __post_init__(self) -> None:
        sizes = (*self.widths, self.channels, self.blocks, self.features, self.embedding_width, self.head_width)
        if not self.widths or min(sizes) < 1:
            raise ValueError(
                f"MagnitudeArchitecture: widths {self.widths} with {self.blocks} blocks leave nothing to compute; "
                "give positive numbers."
            )
        levels = len(self.widths)
        for level in self.attention:
            if not 0 <= level < levels:
                raise ValueError(
                    f"MagnitudeArchitecture: attention level {level} does not exist; choose 0 to {levels - 1}."
                )
        for level in {*self.attention, levels - 1}:
            if self.widths[level] % self.head_width:
                raise ValueError(
                    f"MagnitudeArchitecture: heads of {self.head_width} channels do not divide "
                    f"{self.widths[level]}; choose a head_width that divides every width with attention."
                )

    @property
    def factor(self) -> int:
        """The number that must divide height and width."""
        return 2 ** (len(self.widths) - 1)


def edm2(
    channels: int = 3,
    *,
    width: int = 192,
    multipliers: tuple[int, ...] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: tuple[int, ...] = (2, 3),
    labels: int = 1000,
    dropout: float = 0.0,
) -> MagnitudeArchitecture:
    """The networks of EDM2 for ImageNet: `width` 128 (XS), 192 (S), 256 (M), 320 (L), 384 (XL) or 448 (XXL).

    Source: Karras et al. (2024).
    """
    widths = tuple(width * m for m in multipliers)
    return MagnitudeArchitecture(channels, widths, blocks, attention, widths[0], max(widths), labels, dropout=dropout)


@final
class MagnitudeBlock(nn.Module):
    """A residual block with optional change of size before it and attention after it.

    Args:
        n, m: channels before and after.
        a: the network.
        decodes: blocks on the way up project the skip after the residual branch, those on the way down before it,
            where they also give every pixel unit magnitude.
        attention: with self-attention.
        resample: `Downsample` or `Upsample`, or None.
    """

    def __init__(
        self,
        n: int,
        m: int,
        a: MagnitudeArchitecture,
        *,
        decodes: bool,
        attention: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.decodes, self.resample = a, decodes, resample
        self.conv0 = MagnitudeWeight(n if decodes else m, m, 3)
        self.film = MagnitudeWeight(a.embedding_width, m)
        self.gain = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(a.dropout)
        self.conv1 = MagnitudeWeight(m, m, 3)
        self.skip = MagnitudeWeight(n, m, 1) if n != m else None
        self.qkv = MagnitudeWeight(m, 3 * m, 1) if attention else None
        self.output = MagnitudeWeight(m, m, 1) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return the block's value for images `x` and embeddings `e`."""
        a = self.architecture
        if self.resample is not None:
            x = self.resample(x)
        if not self.decodes:
            x = unit(x if self.skip is None else self.skip(x), (1,))
        scale = 1 + self.film(e, self.gain)[:, :, None, None]
        y = self.conv1(self.dropout(silu(self.conv0(silu(x)) * scale)))
        if self.decodes and self.skip is not None:
            x = self.skip(x)
        x = blend(x, y, a.residual)
        if self.qkv is not None and self.output is not None:
            x = blend(x, self.output(self._attended(self.qkv(x))), a.attending)
        return x if a.limit is None else x.clamp(-a.limit, a.limit)

    def _attended(self, qkv: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(width)) v, every q, k and v of unit magnitude."""
        batch, channels, height, width = qkv.shape
        parts = qkv.reshape(batch, 3, -1, self.architecture.head_width, height * width)
        q, k, v = unit(parts, (3,)).transpose(-1, -2).unbind(1)
        weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weight @ v).transpose(-1, -2).reshape(batch, channels // 3, height, width)


@final
class MagnitudeLevel(nn.Module):
    """The blocks of one size, and the change to the next size."""

    def __init__(self, blocks: list[MagnitudeBlock], resample: MagnitudeBlock | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def down(self, x: Tensor, e: Tensor) -> list[Tensor]:
        """Return the value after every block, the change of size last."""
        values: list[Tensor] = []
        for block in self.blocks:
            x = block(x, e)
            values.append(x)
        return values if self.resample is None else [*values, self.resample(x, e)]

    def up(self, x: Tensor, e: Tensor, skips: list[Tensor], share: float) -> Tensor:
        """Return the value at the next size; takes its skips from the end of the list."""
        for block in self.blocks:
            skip = skips.pop()
            if skip.shape[-2:] != x.shape[-2:]:
                joined_channels(x, skip)  # raises
            x = block(beside(x, skip, share), e)
        return x if self.resample is None else self.resample(x, e)


@final
class MagnitudeUNet(nn.Module):
    """Map images x and one number t per image to images of the same size, keeping magnitudes all the way.

    Args:
        architecture: everything but the weights.

    Shapes: x (B, channels, H, W); t () or (B,); result like x.

    Call `project_()` after every step of an optimiser, and decay the learning rate: steps turn weights, and their
    length has no meaning.

    Raises:
        ValueError: the images have the wrong number of channels, or a size that cannot be halved often enough.
    """

    def __init__(self, architecture: MagnitudeArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.fourier = MagnitudeFourier(a.features)
        self.noise = MagnitudeWeight(a.features, a.embedding_width)
        self.label = MagnitudeWeight(a.labels, a.embedding_width) if a.labels else None
        self.input = MagnitudeWeight(a.channels + 1, a.widths[0], 3)
        last = len(a.widths) - 1
        n, skips = a.widths[0], [a.widths[0]]
        self.encoder = nn.ModuleList()
        for level, m in enumerate(a.widths):
            sizes, attends = [n, *[m] * a.blocks], level in a.attention
            blocks = [MagnitudeBlock(p, m, a, decodes=False, attention=attends) for p in sizes[:-1]]
            down = MagnitudeBlock(m, m, a, decodes=False, resample=Downsample(a.taps)) if level < last else None
            self.encoder.append(MagnitudeLevel(blocks, down))
            n = m
            skips += [m] * (a.blocks + (level < last))
        self.middle = nn.ModuleList(MagnitudeBlock(n, n, a, decodes=True, attention=there) for there in (True, False))
        self.decoder = nn.ModuleList()
        for level in reversed(range(last + 1)):
            m, blocks = a.widths[level], []
            for _ in range(a.blocks + 1):
                blocks.append(MagnitudeBlock(n + skips.pop(), m, a, decodes=True, attention=level in a.attention))
                n = m
            up = MagnitudeBlock(m, m, a, decodes=True, resample=Upsample(a.taps)) if level else None
            self.decoder.append(MagnitudeLevel(blocks, up))
        self.output = MagnitudeWeight(n, a.channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def project_(self) -> None:
        """Give every stored weight unit magnitude."""
        for part in self.modules():
            if isinstance(part, MagnitudeWeight):
                part.project_()

    def forward(
        self, x: Float[Tensor, "batch n height width"], t: Tensor, labels: Tensor | None = None
    ) -> Float[Tensor, "batch n height width"]:
        """Return the network's value for images `x` at the numbers `t`.

        Args:
            x: images.
            t: what the network is told about the noise, () or (batch,).
            labels: classes (batch,), or rows of weights (batch, classes); None for no class.
        """
        a = self.architecture
        if x.ndim != 4 or x.shape[1] != a.channels or x.shape[2] % a.factor or x.shape[3] % a.factor:
            raise ValueError(
                f"MagnitudeUNet: input of shape {tuple(x.shape)} is not a batch of images with {a.channels} channels "
                f"whose height and width {a.factor} divides; pass (B, {a.channels}, H, W)."
            )
        e = self._embed(t.to(x.dtype).expand(x.shape[0]), labels)
        h = self.input(torch.cat((x, torch.ones_like(x[:, :1])), dim=1))
        skips = [h]
        for level in self.encoder:
            assert isinstance(level, MagnitudeLevel)
            skips += level.down(skips[-1], e)
        h = skips[-1]
        for block in self.middle:
            h = block(h, e)
        for level in self.decoder:
            assert isinstance(level, MagnitudeLevel)
            h = level.up(h, e, skips, a.skipped)
        return self.output(h, self.gain)

    def _embed(self, t: Tensor, labels: Tensor | None) -> Tensor:
        e, count = self.noise(self.fourier(t)), self.architecture.labels
        if self.label is None:
            if labels is not None:
                raise ValueError("MagnitudeUNet: it was made without classes; leave the labels out.")
            return silu(e)
        if labels is None:
            rows = t.new_zeros(t.shape[0], count)
        else:
            rows = F.one_hot(labels.long(), count).to(t) if labels.ndim < 2 else labels.to(t)
        if rows.shape[-1] != count:
            raise ValueError(f"MagnitudeUNet: rows of {rows.shape[-1]} class weights do not fit its {count} classes.")
        return silu(blend(e, self.label(rows * math.sqrt(count)), self.architecture.labelled))
