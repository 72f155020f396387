"""Normals of the generator and sums over trees as native code: the bits of ``ops.random``, in a few microseconds."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.native.library import Refused, library
from dxdt.ops.native.noise_text import TEXT

__all__ = ["Generator", "generator"]

_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-w", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
# No operation may be joined with another: the bits would not be those of other executors.
_EXACT = ("-ffp-contract=off",)
_WIDE = ("-mprefer-vector-width=512",)
_WORD, _PLACE = ctypes.c_int64, ctypes.c_void_p


class Generator:
    """The functions of the library, on arrays of numpy and tensors of the host."""

    def __init__(self, code: ctypes.CDLL) -> None:
        self._fill = {torch.float64: code.fill_double, torch.float32: code.fill_float}
        for function in self._fill.values():
            function.argtypes = [ctypes.c_uint64, _PLACE, _WORD, _WORD, _PLACE, *[_WORD] * 6, _PLACE]
            function.restype = None
        self._sums = code.tree_sums
        self._sums.argtypes = [
            ctypes.c_uint64,
            _PLACE,
            _WORD,
            _PLACE,
            *[_WORD] * 3,
            *[_PLACE] * 4,
            _WORD,
            *[_PLACE] * 2,
        ]
        self._sums.restype = None

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
        out = torch.empty((*shape, size), dtype=dtype)
        outer = out.numel() // (inner * size) if inner * size else 0
        fill = self._fill[dtype]
        fill(seed, row.data_ptr(), ro, ri, node.data_ptr(), no, ni, outer, inner, first, size, out.data_ptr())
        return out

    def sums(
        self,
        seed: int,
        row: np.ndarray,
        node: np.ndarray,
        weights: tuple[np.ndarray, ...],
        roots: tuple[np.ndarray | None, np.ndarray | None],
        size: int,
    ) -> list[np.ndarray]:
        """Weighted sums of the normals of cells over the first axis.

        Args:
            seed: modulo 2**64.
            row: ``(rows,)``, int64.
            node: names of the cells, ``(levels, *x, rows)``.
            weights: ``(levels, n, *x, rows)`` for n of them and n normals a cell, n = 1 or 2.
            roots: what replaces the normals of the first level, ``(rows, size)``, or None.
            size: components.

        Returns:
            For each of the weights an array ``(*x, rows, size)``.
        """
        node = np.ascontiguousarray(node)
        held = [np.ascontiguousarray(w, np.float64) for w in weights]
        known = [None if r is None else np.ascontiguousarray(r, np.float64) for r in roots]
        row = np.ascontiguousarray(row)
        out = [np.empty((*node.shape[1:], size)) for _ in weights]
        count = node.size // max(1, len(node))
        places = [x.ctypes.data for x in (held[0], held[-1])]
        ends = [None if r is None else r.ctypes.data for r in known]
        answers = [x.ctypes.data for x in (out[0], out[-1])]
        head = (seed & 0xFFFFFFFFFFFFFFFF, row.ctypes.data, len(row), node.ctypes.data)
        self._sums(*head, len(node), count, len(weights), *places, *ends, size, *answers)
        return out


def _held(x: Any) -> Tensor | None:
    if type(x) is not Tensor:
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.tensor(x, dtype=torch.int64)
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
