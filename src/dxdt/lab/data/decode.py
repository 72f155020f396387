"""One picture as an array of levels: what cameras and editors write becomes eight bits, upright, without alpha."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

__all__ = ["MODES", "Look", "decode", "levels_of", "look"]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_ORIENTATION = 0x0112
# What PIL raises for files that are broken, or larger than it wants to open.
_BROKEN = (OSError, SyntaxError, ValueError, OverflowError, Image.DecompressionBombError)


class Look(NamedTuple):
    """What a file holds, or why it cannot be used.

    Attributes:
        channels: 1 for grey, 3 for colour; alpha does not count.
        size: height and width, upright.
        fault: a clause, where the file is no whole picture.
    """

    channels: int
    size: tuple[int, int]
    fault: str | None = None


def look(path: Path) -> Look:
    """Return what a file holds; all of it is read once, so that a torn file is found."""
    try:
        with Image.open(path) as image:
            grey, (width, height) = image.mode in _GREY, image.size
            turned = image.getexif().get(_ORIENTATION, 1) > 4
            image.draft(None, (1, 1))  # a photograph is read at an eighth of its size
            image.load()
    except _BROKEN as error:
        return Look(0, (0, 0), f"{path} is no whole image ({error})")
    return Look(1 if grey else 3, (width, height) if turned else (height, width))


def decode(path: Path, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return levels (channels, height, width) of a file; arguments as in `levels_of`.

    Raises:
        ValueError: the file is no whole picture.
    """
    try:
        with Image.open(path) as image:
            return levels_of(image, channels, size)
    except _BROKEN as error:
        raise ValueError(f"{path} is no whole image ({error}); restore or remove it.") from error


def levels_of(image: Image.Image, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return levels 0 to 255 of a picture, (channels, height, width), uint8.

    The picture is turned as its camera says; 16 bits become 8, level / 257; what is transparent shows white, where the
    levels have no alpha.

    Args:
        image: any picture of PIL.
        channels: 1, 3 or 4.
        size: height and width: the largest middle part of that shape is cut out and resized.
    """
    image = _eight_bits(ImageOps.exif_transpose(image))
    if channels != 4 and (image.has_transparency_data or image.mode in ("RGBA", "LA", "PA")):
        shown = image.convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        image = Image.alpha_composite(white, shown)
    image = image.convert(MODES[channels])
    if size is not None:
        height, width = size
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy()


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its levels are real numbers; save it with whole ones")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"its levels go from {levels.min()} to {levels.max()}; save it with 8 or 16 bits")
    # A file that says 16 bits has 16; in mode I they are not told from 8.
    if image.mode != "I" or levels.max() > 255:
        levels = (levels + 128) // 257
    return Image.fromarray(levels.astype(np.uint8))
