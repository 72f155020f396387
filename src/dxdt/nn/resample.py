"""Change the size of images by two with a short filter, in plain PyTorch.

With taps k (normalised to sum one) along both axes and z the images with zeros between pixels,

    down(x)[i] = sum_j k_j x[2 i + j - p],      up(x)[i] = 4 sum_j k_j z[i + j - p'],

zero outside the image. Taps (1, 1) give the mean of 2 x 2 pixels and nearest-neighbour growth; taps
(1, 3, 3, 1) those without aliasing that NCSN++ uses.

Source: Zhang, "Making convolutional networks shift-invariant again" (2019); Song et al.,
"Score-based generative modeling through SDEs" (2021), appendix H.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.layers import scaled

Taps = tuple[float, ...]


def _kernel(taps: Taps) -> Tensor:
    if len(taps) < 2 or len(taps) % 2 or not sum(taps):
        raise ValueError(
            f"resampling: taps {taps} cannot change the size by two; give an even number of them, with a sum."
        )
    line = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


@final
class Downsample(nn.Module):
    """Halve height and width after the filter; odd sizes are rounded down.

    Args:
        taps: an even number of filter taps, alike along both axes.

    Raises:
        ValueError: the number of taps is odd, or their sum zero.
    """

    kernel: Tensor

    def __init__(self, taps: Taps = (1, 1)) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.register_buffer("kernel", _kernel(self.taps), persistent=False)

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch n height/2 width/2"]:
        """Return the images at half their size."""
        if self.taps == (1, 1):
            return F.avg_pool2d(x, 2)
        n = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(n, -1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=(len(self.taps) - 2) // 2, groups=n)


@final
class Upsample(nn.Module):
    """Double height and width, then filter with gain four.

    Args:
        taps: an even number of filter taps, alike along both axes.
        margin: pixels to keep beyond each edge, at most half the taps less one.

    Raises:
        ValueError: the number of taps is odd, or their sum zero.
    """

    kernel: Tensor

    def __init__(self, taps: Taps = (1, 1), *, margin: int = 0) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.margin = margin
        self.register_buffer("kernel", 4 * _kernel(self.taps), persistent=False)

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch n 2*height 2*width"]:
        """Return the images at twice their size, plus the margin."""
        if self.taps == (1, 1) and not self.margin:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        n = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(n, -1, -1, -1)
        pad = (len(self.taps) - 2) // 2 - self.margin
        return F.pad(F.conv_transpose2d(x, kernel, stride=2, groups=n), (-pad,) * 4)


@final
class DownConv(nn.Module):
    """The filter, then a 3 x 3 convolution of stride two; zeros are put outside the image once, before both.

    Args:
        n, m: channels before and after.
        taps: an even number of filter taps.
    """

    kernel: Tensor

    def __init__(self, n: int, m: int, taps: Taps) -> None:
        super().__init__()
        self.conv = scaled(nn.Conv2d(n, m, 3, stride=2))
        self.pad = len(taps) // 2
        self.register_buffer("kernel", _kernel(tuple(taps)), persistent=False)

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch m height/2 width/2"]:
        """Return the filtered and convolved images at half their size."""
        n = x.shape[1]
        return self.conv(F.conv2d(x, self.kernel.to(x.dtype).expand(n, -1, -1, -1), padding=self.pad, groups=n))


@final
class UpConv(nn.Module):
    """Growth by two, then a 3 x 3 convolution, without cutting the image in between.

    Args:
        n, m: channels before and after.
        taps: an even number of filter taps.
    """

    def __init__(self, n: int, m: int, taps: Taps) -> None:
        super().__init__()
        self.conv = scaled(nn.Conv2d(n, m, 3))
        self.grow = Upsample(taps, margin=1)

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch m 2*height 2*width"]:
        """Return the convolved images at twice their size."""
        return self.conv(self.grow(x))


@final
class StridedConv(nn.Module):
    """A 3 x 3 convolution of stride two.

    Args:
        n, m: channels before and after.
        centred: one zero on every side, instead of one on the right and below only.
    """

    def __init__(self, n: int, m: int, *, centred: bool = False) -> None:
        super().__init__()
        self.conv = scaled(nn.Conv2d(n, m, 3, stride=2))
        self.pad = (1, 1, 1, 1) if centred else (0, 1, 0, 1)

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch m height/2 width/2"]:
        """Return the convolved images at half their size."""
        return self.conv(F.pad(x, self.pad))


@final
class NearestConv(nn.Module):
    """Nearest-neighbour growth by two, then a 3 x 3 convolution."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.conv = scaled(nn.Conv2d(n, m, 3, padding=1))

    def forward(self, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch m 2*height 2*width"]:
        """Return the convolved images at twice their size."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
