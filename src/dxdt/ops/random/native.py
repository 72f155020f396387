"""Normals of the generator and sums over trees as native code: the bits of ``ops.random``, in a few microseconds."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.cpp import Refused, library
from dxdt.ops.random.cpp_text import TEXT

__all__ = ["Generator", "generator"]

_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-w", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
# No operation may be joined with another: the bits would not be those of other executors.
_EXACT = ("-ffp-contract=off",)
_WIDE = ("-mprefer-vector-width=512",)
_WORD, _PLACE = ctypes.c_int64, ctypes.c_void_p


class Generator:
    """The functions of the library.

    Attributes:
        tree_values, increments: of trees; see ``ops.native.trees``.
    """

    def __init__(self, code: ctypes.CDLL) -> None:
        self._fill = {torch.float64: code.fill_double, torch.float32: code.fill_float}
        for function in self._fill.values():
            function.argtypes = [ctypes.c_uint64, _PLACE, _WORD, _WORD, _PLACE, *[_WORD] * 6, _PLACE]
            function.restype = None
        self.tree_values = code.tree_values
        self.tree_values.argtypes, self.tree_values.restype = [_PLACE, _PLACE, _WORD, _PLACE, _PLACE], None
        self.increments = {torch.float64: code.increment_double, torch.float32: code.increment_float}
        for function in self.increments.values():
            function.argtypes, function.restype = [_PLACE] * 3, ctypes.c_int

    def normals(self, seed: int, row: Any, node: Any, size: int, first: int, dtype: torch.dtype) -> Tensor | None:
        """Normals of ``size`` components from block ``first`` on, ``(*S, size)`` for row and node (tensors, arrays or
        ints) that broadcast to S; None where they are not int64."""
        row, node = _held(row), _held(node)
        if row is None or node is None:
            return None
        shape = row.shape if row.shape == node.shape else torch.broadcast_shapes(row.shape, node.shape)
        inner = shape[-1] if shape else 1
        row, ro, ri = _laid(row, shape, inner)
        node, no, ni = _laid(node, shape, inner)
        out = torch.empty((*shape, size), dtype=dtype, device="cpu")
        outer = out.numel() // (inner * size) if inner * size else 0
        fill = self._fill[dtype]
        fill(seed, row.data_ptr(), ro, ri, node.data_ptr(), no, ni, outer, inner, first, size, out.data_ptr())
        return out


def _held(x: Any) -> Tensor | None:
    if type(x) is not Tensor:
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.tensor(x, dtype=torch.int64, device="cpu")
    return x if x.dtype is torch.int64 else None


def _laid(x: Tensor, shape: tuple[int, ...], inner: int) -> tuple[Tensor, int, int]:
    """The numbers of x with their strides over the axes before the last one, and over the last one."""
    if x.numel() == 1:
        return x, 0, 0
    if x.dim() == 1 and (len(shape) > 1 or x.shape == shape):
        return x, 0, x.stride(0)
    if x.size(-1) == 1 and tuple(x.shape[:-1]) == tuple(shape[:-1]) and x.is_contiguous():
        return x, 1, 0
    x = x.expand(shape).contiguous()
    return x, inner, 1


@lru_cache(maxsize=1)
def generator() -> Generator | None:
    """The library, built at the first call on a machine; None where no C++ compiler builds it."""
    wide = _WIDE if "AVX512" in torch.backends.cpu.get_cpu_capability() else ()
    try:
        return Generator(library(TEXT, _FLAGS + _EXACT + wide))
    except (Refused, OSError, AttributeError):
        return None
