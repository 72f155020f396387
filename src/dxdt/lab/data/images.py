"""Sets of images: levels on request, in memory or from files, and how they become a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from dxdt.lab.data.batch_rng import Draws
from dxdt.lab.data.decode import MODES


class ImageSet(Protocol):
    """Images of one shape with grey levels 0 .. levels - 1, and labels where there are some.

    Attributes:
        name: for messages.
        shape: channels, height, width.
        levels: how many grey levels there are.
        classes: names of the classes, or None.
    """

    name: str
    shape: tuple[int, int, int]
    levels: int
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        """Return how many images there are."""
        ...

    def read(self, index: Int[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        """Return levels (n, channels, height, width) as uint8, and labels (n,) where there are some."""
        ...


@final
class Pixels:
    """Images held in memory.

    Args:
        name: for messages.
        images: (n, channels, height, width) or (n, height, width), whole numbers.
        labels: (n,) whole numbers from 0, or None.
        levels: how many grey levels there are, at most 256.
        classes: names of the classes; the numbers themselves by default.

    Raises:
        ValueError: there is no image, the shape is none of images, a number is no level, or labels
            do not match.
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        levels: int = 256,
        classes: Sequence[str] | None = None,
    ) -> None:
        if images.ndim == 3:
            images = images.unsqueeze(1)
        if images.ndim != 4 or images.shape[1] not in MODES:
            raise ValueError(
                f"{name}: an array of shape {tuple(images.shape)} holds no images; "
                "give (n, height, width) or (n, channels, height, width) with 1, 3 or 4 channels."
            )
        if images.numel() == 0:
            raise ValueError(f"{name} holds no image; give a set with at least one.")
        if images.is_floating_point() and not bool((images == images.round()).all()):
            raise ValueError(
                f"{name}: values from {images.min().item():g} to {images.max().item():g} are not whole numbers; "
                f"give grey levels 0 to {levels - 1} (multiply images in [0, 1] by {levels - 1} and round)."
            )
        low, high = images.min().item(), images.max().item()
        if low < 0 or high >= levels:
            raise ValueError(
                f"{name}: levels from {low:g} to {high:g} lie outside 0 to {levels - 1}; "
                "give the raw grey levels, or the right number of them."
            )
        if labels is not None and (labels.shape != images.shape[:1] or int(labels.min()) < 0):
            raise ValueError(
                f"{name}: labels of shape {tuple(labels.shape)} do not name the class of {len(images)} images; "
                "give one whole number from 0 for each."
            )
        self.name, self.levels = name, levels
        self.images = images.to(torch.uint8)
        self.labels = None if labels is None else labels.long()
        self.shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self.classes: tuple[str, ...] | None = None
        if self.labels is not None:
            names = range(int(self.labels.max()) + 1) if classes is None else classes
            self.classes = tuple(str(c) for c in names)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: Int[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        return self.images[index], None if self.labels is None else self.labels[index]


@final
class Selection:
    """Some images of a set, in a given order.

    Args:
        whole: the set.
        index: which of its images.
    """

    def __init__(self, whole: ImageSet, index: Int[Tensor, " n"]) -> None:
        self.whole, self.index = whole, index
        self.name, self.shape, self.levels, self.classes = whole.name, whole.shape, whole.levels, whole.classes

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: Int[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        return self.whole.read(self.index[index])


class Augmentation(Protocol):
    """A random change of images that keeps what they are."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (n, channels, height, width), one for each row of `draws`."""
        ...


@final
@dataclass(frozen=True)
class Flip:
    """Mirror an image left to right, with a probability."""

    probability: float = 0.5

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images, some of them mirrored."""
        chosen = draws.uniform("flip") < self.probability
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)


@final
@dataclass(frozen=True)
class Shift:
    """Move an image by up to `pixels` up, down, left and right; what enters is level 0."""

    pixels: int = 2

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the moved images."""
        n, c, h, w = images.shape
        k = self.pixels
        padded = torch.nn.functional.pad(images, (k, k, k, k))
        start = (draws.uniform("shift", 2) * (2 * k + 1)).long()
        rows = start[:, :1] + torch.arange(h)
        columns = start[:, 1:] + torch.arange(w)
        batch, channel = torch.arange(n)[:, None, None, None], torch.arange(c)[None, :, None, None]
        return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


@final
@dataclass(frozen=True)
class Crop:
    """Cut a random window out of an image.

    Raises:
        ValueError: the images are smaller than the window.
    """

    height: int
    width: int

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the windows (n, channels, height, width)."""
        n, c, h, w = images.shape
        if h < self.height or w < self.width:
            raise ValueError(f"Crop: images of {w} x {h} pixels hold no window of {self.width} x {self.height}.")
        room = torch.tensor([h - self.height + 1, w - self.width + 1])
        start = (draws.uniform("crop", 2) * room).long()
        rows = start[:, :1] + torch.arange(self.height)
        columns = start[:, 1:] + torch.arange(self.width)
        batch, channel = torch.arange(n)[:, None, None, None], torch.arange(c)[None, :, None, None]
        return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def grid_picture(images: Float[Tensor, "n channels height width"], columns: int, *, pad: int = 2) -> Image.Image:
    """Return images in [0, 1] as one picture, `columns` in a row, on white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), 255, np.uint8)
    shown: Any = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    shown = shown[:, :1].expand(-1, 3, -1, -1) if c == 1 else shown[:, :3]
    for k, image in enumerate(shown.permute(0, 2, 3, 1).numpy()):
        y, x = pad + (k // columns) * (h + pad), pad + (k % columns) * (w + pad)
        canvas[y : y + h, x : x + w] = image
    scale = max(1, 900 // canvas.shape[1])
    return Image.fromarray(canvas.repeat(scale, 0).repeat(scale, 1))
