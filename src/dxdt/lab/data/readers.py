"""Where images come from: names of known sets, files and folders."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import fetch_olivetti_faces, load_digits
from torch import Tensor

from dxdt.lab.data.decode import levels_of
from dxdt.lab.data.folder import data_folder
from dxdt.lab.data.image_folder import ImageFolder
from dxdt.lab.data.images import ImageSet, Pixels, Selection
from dxdt.lab.data.packed import read_npz, unpacked
from dxdt.ops.optional import require

Part = Literal["train", "test"]
_NAMES = ("digits", "olivetti", "mnist", "cifar10")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def open_images(
    source: str, part: Part = "train", *, held_out: float = 0.1, seed: int = 0, size: int | None = None
) -> ImageSet:
    """Return a set of images by name or path.

    Args:
        source: "digits" or "olivetti" (scikit-learn's); "mnist" or "cifar10" (in the folder that
            DXDT_DATA names); "hf:NAME" (a Hugging Face data set, the split given by `part`); or the
            path of a folder of images, an .npz, or an .idx or .gz file of the idx format.
        part: the images to train on, or those held out. A folder with the sub-folders train and test
            has them; what comes undivided is divided by a random permutation.
        held_out: share of the held-out images, where the set comes undivided.
        seed: names that permutation.
        size: side of the square to which the images of a folder, or of Hugging Face, are cropped and resized.

    Raises:
        FileNotFoundError: the source does not exist, or DXDT_DATA is not set where it is needed.
        ValueError: it holds no images, or corrupt ones, and which; or a size is asked of arrays that have another.
    """
    if size is not None and size < 1:
        raise ValueError(f"images of {size} x {size} pixels hold nothing; give a size of at least 1.")
    square = None if size is None else (size, size)
    if source.startswith("hf:"):
        return _hugging_face(source.removeprefix("hf:"), part, square)
    if Path(source).is_dir() and source not in _NAMES:
        path = Path(source)
        inner = path / part
        whole = ImageFolder(inner if inner.is_dir() else path, size=square)
        return whole if inner.is_dir() else _divided(whole, part, held_out, seed)
    found = _arrays(source, part, held_out, seed)
    if square is not None and found.shape[1:] != square:
        height, width = found.shape[1:]
        raise ValueError(
            f"{source} has images of {width} x {height} pixels, which are used as they are; leave --size out, "
            "or save them as files in a folder."
        )
    return found


def _arrays(source: str, part: Part, held_out: float, seed: int) -> ImageSet:
    """Images that lie in memory, by name or path."""
    if source in ("mnist", "cifar10"):
        return _layout(source, part)
    if source == "digits":
        bunch: Any = load_digits()
        return _divided(
            Pixels("digits", torch.tensor(bunch.images), torch.tensor(bunch.target), levels=17), part, held_out, seed
        )
    if source == "olivetti":
        return _divided(_olivetti(), part, held_out, seed)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"there are no images {source}: it is neither digits, olivetti, mnist, cifar10 or hf:NAME, nor a file or "
            "folder that exists."
        )
    whole = read_npz(path) if path.suffix == ".npz" else _idx_images(path)
    return _divided(whole, part, held_out, seed)


def _divided(whole: ImageSet, part: Part, held_out: float, seed: int) -> Selection:
    n = len(whole)
    kept = round(held_out * n)
    if not 0 < kept < n:
        raise ValueError(
            f"{whole.name}: holding out {held_out:g} of {n} images leaves one part empty; choose another share."
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return Selection(whole, order[:kept] if part == "test" else order[kept:])


def _root(what: str) -> Path:
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError(f"{what} is read from the folder that DXDT_DATA names, and it is not set; set it.")
    return folder


def _layout(source: str, part: Part) -> Pixels:
    folder = _root(source) / source
    if source == "mnist":
        stem = "train" if part == "train" else "t10k"
        images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        return Pixels("mnist", torch.from_numpy(images), torch.from_numpy(labels))
    stem = "train10k" if part == "train" else "test10k"
    sheet = folder / f"{stem}.png"
    if not sheet.exists():
        raise FileNotFoundError(f"{sheet} is missing; let DXDT_DATA name a folder that holds cifar10.")
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    tiles = pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    labels = np.load(folder / f"{stem}_labels.npy")
    return Pixels("cifar10", torch.from_numpy(tiles.copy()), torch.from_numpy(labels), classes=_CIFAR10)


def _olivetti() -> Pixels:
    folder = data_folder()
    local = None if folder is None else folder / "olivetti" / "olivetti.npz"
    if local is not None and local.exists():
        return read_npz(local)
    bunch: Any = fetch_olivetti_faces()
    images = torch.from_numpy(np.asarray(bunch.images) * 255).round()
    return Pixels("olivetti", images, torch.from_numpy(np.asarray(bunch.target)))


def read_idx(path: Path) -> np.ndarray:
    """Read an array of the idx format, compressed or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or not of this format.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; restore it, or let DXDT_DATA name its folder.")
    try:
        raw = unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file; restore the original.") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} does not begin like an idx file; restore the original.")
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    kind = np.dtype(_IDX_TYPES[raw[2]])
    if len(raw) != 4 + 4 * axes + kind.itemsize * int(np.prod(shape)):
        raise ValueError(
            f"{path} should hold an array of shape {shape} and has {len(raw)} bytes: it is truncated; restore it."
        )
    return np.frombuffer(raw, kind, offset=4 + 4 * axes).reshape(shape).astype(kind.newbyteorder("="))


def _idx_images(path: Path) -> Pixels:
    images = torch.from_numpy(read_idx(path))
    beside = path.with_name(re.sub(r"images?([-.]idx)3", r"labels\g<1>1", path.name))
    labels = torch.from_numpy(read_idx(beside)) if beside != path and beside.exists() else None
    return Pixels(str(path), images, labels)


def _hugging_face(name: str, part: Part, size: tuple[int, int] | None) -> ImageSet:
    datasets = require("datasets", "data")
    table = datasets.load_dataset(name, split=part)
    kinds = table.features
    image = next((k for k, f in kinds.items() if type(f).__name__ == "Image"), None)
    if image is None:
        raise ValueError(f"hf:{name} has the columns {', '.join(kinds)}, none of them images; choose another set.")
    label = next((k for k, f in kinds.items() if type(f).__name__ == "ClassLabel"), None)
    return _Table(f"hf:{name}", table, image, label, size)


class _Table:
    """Images in a table of Hugging Face, decoded when they are read."""

    def __init__(
        self, name: str, table: Any, image: str, label: str | None, size: tuple[int, int] | None = None
    ) -> None:
        self.name, self.levels, self.table, self.image, self.label, self.size = name, 256, table, image, label, size
        # The first few tell whether the set is grey.
        self.channels = 1 if all(x.mode == "L" for x in table[: min(16, len(table))][image]) else 3
        channels, height, width = self._array(table[0][image]).shape
        self.shape = (int(channels), int(height), int(width))
        self.classes: tuple[str, ...] | None = None if label is None else tuple(table.features[label].names)

    def __len__(self) -> int:
        return len(self.table)

    def _array(self, image: Any) -> np.ndarray:
        return levels_of(image, self.channels, self.size)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        rows = self.table[index.tolist()]
        arrays = [self._array(image) for image in rows[self.image]]
        for k, array in zip(index.tolist(), arrays, strict=True):
            if array.shape != self.shape:
                raise ValueError(
                    f"{self.name}: image {k} has shape {array.shape}, and the first {self.shape}; "
                    "crop and resize all with --size 64, say."
                )
        labels = None if self.label is None else torch.tensor(rows[self.label])
        return torch.from_numpy(np.stack(arrays)), labels
