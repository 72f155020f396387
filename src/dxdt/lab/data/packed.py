"""Compressed arrays, of which no more is unpacked than a file of that size may hold."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.lab.data.images import Pixels

__all__ = ["read_npz", "unpacked"]

_ALWAYS, _FACTOR = 1 << 28, 64
"""Bytes that any file may unpack to, and how many times its own size a larger one may."""


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path) -> Pixels:
    """Read images, and labels where there are some, from an .npz file.

    The images are the entry images, x, samples or arr_0, or else the only one with three or four
    axes, channels first or last; the labels are labels, y or arr_1. Other entries are not unpacked.

    Raises:
        ValueError: the file is corrupt, holds no images, or more than a file of its size may.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            image, label = _chosen(path, entries)
            for name in filter(None, (image, label)):
                _check_size(path, name, max(entries[name].size, archive.getinfo(f"{name}.npy").file_size))
        images, labels = _loaded(path, image), None if label is None else _loaded(path, label)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, _Unreadable) as error:
        raise ValueError(f"{path} cannot be read as .npz: it is corrupt, or holds Python objects.") from error
    if images.ndim == 4 and images.shape[1] not in (1, 3, 4) and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    return Pixels(str(path), _tensor(images), None if labels is None else _tensor(labels).flatten())


def _loaded(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except ValueError as error:
        raise _Unreadable from error


def unpacked(path: Path) -> bytes:
    """Return the bytes of a gzip file.

    Raises:
        ValueError: it holds more than a file of its size may.
    """
    most = max(_ALWAYS, _FACTOR * path.stat().st_size)
    with gzip.open(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        _check_size(path, "its content", len(raw))
    return raw


class _Unreadable(Exception):
    """An entry that is no array of numbers."""


def _entries(archive: zipfile.ZipFile) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as file:
                found[name.removesuffix(".npy")] = _header(file)
    return found


def _header(file: IO[bytes]) -> _Entry:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise _Unreadable from error
    if dtype.hasobject:
        raise _Unreadable
    return _Entry(shape, dtype)


def _chosen(path: Path, entries: dict[str, _Entry]) -> tuple[str, str | None]:
    """The names of the images and of the labels."""
    wide = [name for name, entry in entries.items() if len(entry.shape) in (3, 4)]
    named = [name for name in ("images", "x", "samples", "arr_0") if name in wide]
    if not named and len(wide) != 1:
        raise ValueError(
            f"{path} holds {', '.join(entries) or 'nothing'}, and no entry that is images; name one images."
        )
    return (named or wide)[0], next((k for k in ("labels", "y", "arr_1") if k in entries), None)


def _check_size(path: Path, what: str, size: int) -> None:
    packed = path.stat().st_size
    if size > max(_ALWAYS, _FACTOR * packed):
        raise ValueError(
            f"{path}: {what} unpacks from {packed / 1e6:.1f} to at least {size / 1e6:.0f} MB, over {_FACTOR} times "
            "as much; if it is to be trusted, save it uncompressed."
        )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
