"""Storages of tensors in files, and the tensors that lie in them: within their bounds, or not at all."""

from __future__ import annotations

import math
import mmap
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dxdt.interop.budget import Budget

__all__ = ["DTYPES", "Storage", "StorageKind", "mapped", "rebuilt", "span"]

DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
"""What lies in a storage of each name."""
_MOST_AXES = 64
_MOST = 1 << 62


@final
@dataclass(frozen=True)
class StorageKind:
    """Stands for a class of storages."""

    dtype: torch.dtype


@final
@dataclass(frozen=True)
class Storage:
    """Bytes of a file, and what they are read as.

    Attributes:
        content: the bytes, uint8 (n,).
        dtype: of their entries.
    """

    content: Tensor
    dtype: torch.dtype

    def entries(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return all entries, one axis.

        Raises:
            pickle.UnpicklingError: the bytes are no whole number of entries.
        """
        dtype = self.dtype if dtype is None else dtype
        if self.content.numel() % dtype.itemsize:
            raise pickle.UnpicklingError(f"a storage of {self.content.numel()} bytes holds no whole {dtype} numbers")
        return self.content.view(dtype)


def mapped(path: Path) -> Tensor:
    """Return the bytes of a file, which are read when they are looked at."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def span(content: Tensor, start: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return some bytes of a file, moved where entries of `dtype` could not be read in place.

    Raises:
        pickle.UnpicklingError: they lie beyond the end of the file.
    """
    if start < 0 or length < 0 or start + length > content.numel():
        raise pickle.UnpicklingError("it is truncated: a storage lies beyond its end")
    part = content[start : start + length]
    return part.clone() if (part.data_ptr() % dtype.itemsize or start % dtype.itemsize) else part


def _whole(value: Any, what: str) -> tuple[int, ...]:
    """A row of sizes or strides, as plain integers."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > _MOST_AXES:
        raise pickle.UnpicklingError(f"a tensor whose {what} is no row of numbers")
    if not all(type(n) is int and 0 <= n < _MOST for n in value):
        raise pickle.UnpicklingError(f"a tensor whose {what} is {str(tuple(value))[:60]}")
    return tuple(value)


def rebuilt(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None, budget: Budget) -> Tensor:
    """Return the tensor that lies in a storage with the given offset, sizes and strides.

    Its last entry lies at offset + sum (size - 1) stride, which must be inside the storage.

    Raises:
        pickle.UnpicklingError: it reaches beyond its storage, or something here is not what it should be.
    """
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    size, stride = _whole(size, "size"), _whole(stride, "stride")
    (offset,) = _whole((offset,), "offset")
    if len(size) != len(stride):
        raise pickle.UnpicklingError(f"a tensor of {len(size)} axes with {len(stride)} strides")
    entries = storage.entries(dtype)
    count = math.prod(size)
    if count == 0:
        return entries.new_empty(size)  # it reads nothing, wherever it lies
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= entries.numel():
        raise pickle.UnpicklingError(
            f"a tensor of shape {size} reaches beyond its storage of {entries.numel()} entries"
        )
    budget.spend(count * entries.element_size())
    return entries.as_strided(size, stride, entries.storage_offset() + offset)
