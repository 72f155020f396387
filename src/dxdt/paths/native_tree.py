"""Brownian trees as native code: what ``paths.brownian`` computes on the host, bit for bit, in one call."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.random.native import generator

__all__ = ["NativeTree"]

_PLACE, _WORD = ctypes.c_void_p, ctypes.c_int64


class _Tree(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("row", _PLACE),
        *((name, _WORD) for name in ("rows", "depth", "each", "size")),
        *((name, _PLACE) for name in ("root_w", "root_h")),
    ]


class _Query(ctypes.Structure):
    _fields_ = [
        ("tree", _Tree),
        *((name, _PLACE) for name in ("low", "length", "t", "dt", "times", "x", "w", "i")),
        ("have", _WORD * 2),
        ("slack", ctypes.c_double),
    ]


class NativeTree:
    """A tree with the shape of one solve; the states at the ends of the last query are kept for the next one.

    Args:
        seed: modulo 2**64.
        row: names of the rows, ``(rows,)``.
        low, length: span of each row, broadcast to ``(rows,)``.
        depth: levels below the root.
        each: normals a cell, 1 or 2.
        size: components.
        roots: known normals of the root, ``(rows, size)``, or None.
        dtype: of increments.
        slack: of times outside the span, relative to it.
    """

    def __init__(
        self,
        seed: int,
        row: np.ndarray,
        low: np.ndarray,
        length: np.ndarray,
        depth: int,
        each: int,
        size: int,
        roots: tuple[np.ndarray | None, np.ndarray | None],
        dtype: torch.dtype,
        slack: float,
    ) -> None:
        code = generator()
        if code is None:
            raise RuntimeError("NativeTree: no C++ compiler builds it; ask generator() first")
        rows = len(row)
        self._each, self._shape, self._dtype = each, (rows, size), dtype
        # ctypes holds addresses only, so the arrays are held here.
        self._row = np.ascontiguousarray(row, np.int64)
        self._span = np.array(np.broadcast_arrays(low, length, self._row)[:2], np.float64)
        self._ticks, self._times, self._x = (np.zeros((2, rows)) for _ in range(3))
        self._w, self._i = np.empty((2, rows, size)), np.empty((2, rows, size) if each == 2 else 0)
        self._roots = [None if r is None else np.ascontiguousarray(r, np.float64) for r in roots]
        held = (self._span[0], self._span[1], self._ticks[0], self._ticks[1], self._times, self._x, self._w, self._i)
        tree = _Tree(seed & 0xFFFFFFFFFFFFFFFF, _at(self._row), rows, depth, each, size, *map(_at, self._roots))
        self._query = _Query(tree, *map(_at, held), (_WORD * 2)(0, 0), slack)
        self._given = ctypes.byref(self._query)
        self._values, self._increment = code.tree_values, code.increments.get(dtype, code.increments[torch.float64])
        self._full = dtype if dtype in code.increments else torch.float64

    def increment(self, t: Any, dt: Any) -> tuple[Tensor, Tensor | None] | None:
        """W and H ``(rows, size)`` over [t, t + dt], for times ``()``, ``(1,)`` or ``(rows,)``; None where one is
        outside the span."""
        self._ticks[0], self._ticks[1] = t, dt
        W = torch.empty(self._shape, dtype=self._full, device="cpu")
        H = torch.empty(self._shape, dtype=self._full, device="cpu") if self._each == 2 else None
        if self._increment(self._given, W.data_ptr(), None if H is None else H.data_ptr()):
            return None
        return W.to(self._dtype), None if H is None else H.to(self._dtype)

    def values(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """W, and with two normals a cell I, of a span of length 1 at points ``(*x, rows)`` of [0, 1]:
        ``(*x, rows, size)`` in float64."""
        x = np.ascontiguousarray(x, np.float64)
        w = np.empty((*x.shape, self._shape[1]))
        i = np.empty_like(w) if self._each == 2 else None
        self._values(self._given, _at(x), x.size, _at(w), _at(i))
        return w, i


def _at(x: np.ndarray | None) -> int | None:
    return None if x is None else x.ctypes.data
