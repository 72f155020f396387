"""A folder of images, looked through before anything is learnt from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dxdt.lab.data.decode import MODES, Look, decode, look

__all__ = ["SUFFIXES", "ImageFolder"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_TOLD = 8


@final
class ImageFolder:
    """Images in a folder; its sub-folders, where there are some, are the classes.

    Args:
        folder: searched with its sub-folders; files are taken in the order of their names.
        channels: 1, 3 or 4; by default 1 where every file is grey, and 3 otherwise.
        size: height and width to which all are cropped and resized; by default they must have one size.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image, or some that cannot be used: all of them are named.
    """

    def __init__(self, folder: Path, *, channels: int | None = None, size: tuple[int, int] | None = None) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; name one that holds images.")
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.files:
            raise ValueError(f"{folder} holds no image; put {', '.join(sorted(SUFFIXES))} files there.")
        if channels is not None and channels not in MODES:
            raise ValueError(f"{folder}: images have 1, 3 or 4 channels, not {channels}.")
        self.name, self.levels = str(folder), 256
        with ThreadPoolExecutor(4) as pool:  # decoding leaves Python's lock
            looks = list(pool.map(look, self.files))
        _refuse(folder, self.files, looks, size)
        self.size = size
        height, width = looks[0].size if size is None else size
        self.shape = (channels or max(x.channels for x in looks), height, width)
        owners = [p.parent.relative_to(folder).parts[:1] for p in self.files]
        self.classes: tuple[str, ...] | None = None
        self.labels: Tensor | None = None
        if all(owners):
            self.classes = tuple(sorted({o[0] for o in owners}))
            number = {c: k for k, c in enumerate(self.classes)}
            self.labels = torch.tensor([number[o[0]] for o in owners])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: Int[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(self._one, index.tolist()))
        images = torch.from_numpy(np.stack(found))
        return images, None if self.labels is None else self.labels[index]

    def _one(self, index: int) -> np.ndarray:
        image = decode(self.files[index], self.shape[0], self.size)
        if image.shape != self.shape:
            raise ValueError(f"{self.files[index]} has changed since training began; restore it.")
        return image


def _refuse(folder: Path, files: Sequence[Path], looks: Sequence[Look], size: tuple[int, int] | None) -> None:
    """Name all files that cannot be used: those that are broken, and, where no size is asked for, those of another."""
    faults = [x.fault for x in looks if x.fault is not None]
    remedies = ["restore or remove what is broken"] if faults else []
    sizes = Counter(x.size for x in looks if x.fault is None)
    if size is None and len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        odd = [(p, x.size) for p, x in zip(files, looks, strict=True) if x.fault is None and x.size != (height, width)]
        faults += [f"{p} is {w} x {h} pixels, not {width} x {height} as most" for p, (h, w) in odd]
        remedies.append("crop and resize all to one size with --size 64, say")
    if faults:
        told = "; ".join(faults[:_TOLD]) + (f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else "")
        raise ValueError(f"{folder}: {len(faults)} of {len(files)} files cannot be used: {told}. {_sentence(remedies)}")


def _sentence(clauses: Sequence[str]) -> str:
    text = ", and ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."
