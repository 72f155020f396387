"""The image itself, shrunk or grown beside the features of a network: progressive input and output.

Each module takes (features, image so far) and returns both.

Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (2020), section 4.1; Song et al.,
"Score-based generative modeling through SDEs" (2021), appendix H.1.
"""

from __future__ import annotations

from enum import Enum
from typing import final

import torch
from torch import Tensor, nn

from dxdt.nn.blocks import BlockSpec, Head, conv
from dxdt.nn.resample import DownConv, Downsample, NearestConv, StridedConv, Taps, UpConv, Upsample


@final
class Progressive(Enum):
    """How images are carried beside the features."""

    NONE = "none"
    SKIP = "skip"
    RESIDUAL = "residual"


@final
class Combine(Enum):
    """How a shrunk image joins the features."""

    SUM = "sum"
    CAT = "cat"


@final
class InputSkip(nn.Module):
    """Shrink the image, project it and join it to the features."""

    def __init__(self, channels: int, width: int, taps: Taps | None, combine: Combine) -> None:
        super().__init__()
        self.shrink = Downsample(taps or (1, 1))
        self.conv = conv(channels, width, 1)
        self.combine = combine

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (joined, or beside each other) and the shrunk image."""
        image = self.shrink(image)
        y = self.conv(image)
        return (h + y if self.combine is Combine.SUM else torch.cat((y, h), dim=1)), image


@final
class InputResidual(nn.Module):
    """Shrink and convolve what is carried, add the features, and carry the sum."""

    def __init__(self, n: int, width: int, taps: Taps | None, spec: BlockSpec) -> None:
        super().__init__()
        self.shrink = StridedConv(n, width) if taps is None else DownConv(n, width, taps)
        self.spec = spec

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum, as features and as what is carried."""
        image = self.spec.joined(self.shrink(image), h)
        return image, image


@final
class OutputSkip(nn.Module):
    """Read an image from the features and add it to the grown image of the level below."""

    def __init__(self, width: int, channels: int, taps: Taps | None, spec: BlockSpec) -> None:
        super().__init__()
        self.head = Head(width, channels, spec)
        self.grow = Upsample(taps or (1, 1))

    def forward(self, h: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features as they were and the image."""
        y = self.head(h)
        return h, y if image is None else self.grow(image) + y


@final
class OutputResidual(nn.Module):
    """Grow and convolve what is carried, add the features, and carry the sum; the deepest level starts it."""

    def __init__(self, n: int | None, width: int, taps: Taps | None, spec: BlockSpec) -> None:
        super().__init__()
        self.head = Head(width, width, spec, scale=1.0) if n is None else None
        self.grow = None
        if n is not None:
            self.grow = NearestConv(n, width) if taps is None else UpConv(n, width, taps)
        self.spec = spec

    def forward(self, h: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features and what is carried."""
        if self.head is not None:
            return h, self.head(h)
        assert self.grow is not None and image is not None
        image = self.spec.joined(self.grow(image), h)
        return image, image
