"""Functions that live on dyadic cells, and integrate to Brownian motion.

White noise on [0, 1] is expanded in orthonormal functions, each of which vanishes outside one
dyadic cell, so that

    W(x) = sum over the cells that hold x of  weight(cell, x) * normal(cell).

For W alone these are the Haar functions (their integrals are the hats of Schauder), one normal a
cell. For W with its space-time Levy area they are piecewise linear with two vanishing moments, two
normals a cell: a cell whose increment and area are known contributes the quadratic with that
increment and area, which is the conditional mean. A leaf is closed by the exact conditional law of
the one query in it, so every query has the exact law given all cells above.

References: Ciesielski, "Hoelder conditions for realizations of Gaussian processes", Trans. AMS,
1961, https://doi.org/10.2307/1993291; Foster, Lyons, Oberhauser, "An optimal polynomial
approximation of Brownian motion", SIAM J. Numer. Anal. 2020, https://arxiv.org/abs/1904.06998.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Cells", "Levels", "namespace", "total"]

_Array: TypeAlias = Any

_ROOT_3 = math.sqrt(3.0)
_ROOT_3_HALVES = math.sqrt(3.0) / 2.0
_ROOT_3_24TH = math.sqrt(3.0) / 24.0
_ROOT_3_6TH = math.sqrt(3.0) / 6.0


def namespace(x: _Array) -> Any:
    """The module, torch or numpy, whose functions take x."""
    return torch if isinstance(x, Tensor) else np


def _integer(x: _Array) -> _Array:
    return x.to(torch.int64) if isinstance(x, Tensor) else x.astype(np.int64)


def total(terms: _Array) -> _Array:
    """The sum over the first axis, by halves: its bits depend on neither batch nor executor."""
    while len(terms) > 1:
        half = len(terms) // 2
        pairs = terms[:half] + terms[half : 2 * half]
        terms = namespace(terms).concatenate((pairs, terms[2 * half :])) if len(terms) % 2 else pairs
    return terms[0]


@dataclass(frozen=True)
class Cells:
    """The cells that hold the points x of [0, 1], from the root down.

    Nodes (depth + 2, *x) are their names; places (depth + 1, *x) are where x lies in all but the
    root, from 0 to 1.
    """

    x: _Array
    node: _Array
    place: _Array


@dataclass(frozen=True)
class Levels:
    """Constants of a tree, from its first split down: shifts from leaf to cell, cell lengths."""

    shift: _Array
    length: _Array

    @classmethod
    def of(cls, depth: int) -> Levels:
        return cls(np.arange(depth, -1, -1), 2.0 ** -np.arange(0.0, depth + 1.0))

    def to(self, device: torch.device) -> Levels:
        return Levels(torch.from_numpy(self.shift).to(device), torch.from_numpy(self.length).to(device))

    def find(self, x: _Array) -> Cells:
        leaves = 1 << (len(self.shift) - 1)
        shift = self.shift.reshape(-1, *(1,) * x.ndim)
        leaf = _integer(namespace(x).floor(x * leaves)).clip(0, leaves - 1)
        node = (leaf + leaves) >> shift
        length = self.length.reshape(shift.shape)
        place = x / length - (leaf >> shift)
        return Cells(x, namespace(x).concatenate((0 * node[:1], node)), place)

    def schauder(self, cells: Cells) -> _Array:
        """Weights of W for one normal a cell."""
        xp, f = namespace(cells.x), cells.place
        amplitude = xp.sqrt(self.length).reshape(-1, *(1,) * cells.x.ndim)
        hat = xp.minimum(f[:-1], 1.0 - f[:-1])
        leaf = xp.sqrt(f[-1:] * (1.0 - f[-1:]))
        return xp.concatenate((cells.x[None], xp.concatenate((hat, leaf)) * amplitude))

    def quadratic(self, cells: Cells) -> tuple[_Array, _Array]:
        """Weights of W and of I(t) = int_0^t W ds, for two normals a cell: (depth + 2, 2, *x)."""
        xp, x, f = namespace(cells.x), cells.x, cells.place
        shape = (-1, *(1,) * (x.ndim + 1))
        length = self.length.reshape(shape)
        inner, leaf = f[:-1], f[-1:]
        left = inner < 0.5
        g = 2.0 * xp.minimum(inner, 1.0 - inner)
        bow = _ROOT_3_HALVES * g * (1.0 - g)
        slant = g * g * (1.0 - g) * 0.125
        w = xp.stack((g * (3.0 * g - 2.0) * 0.25, xp.where(left, bow, -bow)), 1)
        i = xp.stack((xp.where(left, -slant, slant), g * g * (3.0 - 2.0 * g) * _ROOT_3_24TH), 1)
        w_leaf, i_leaf = _close(leaf)
        # The root's second normal is H = normal / sqrt(12); I = x^2/2 W + (3 x^2 - 2 x^3) H.
        w_root = xp.stack((x, _ROOT_3 * x * (1.0 - x)))[None]
        i_root = xp.stack((0.5 * x * x, x * x * (3.0 - 2.0 * x) * _ROOT_3_6TH))[None]
        amplitude = xp.sqrt(length)
        return (
            xp.concatenate((w_root, xp.concatenate((w, w_leaf)) * amplitude)),
            xp.concatenate((i_root, xp.concatenate((i, i_leaf)) * (amplitude * length))),
        )


def _close(f: _Array) -> tuple[_Array, _Array]:
    """Weights of the exact draw of (W, I) at place f of a cell of length 1 whose (W, H) is known.

    With l = f, r = 1 - f, v = sqrt(l r / (l^3 + r^3)) / 2 and normals X1, X2:
    W = 2 v (l^3 + r^3) X1, H = -v l^2 X1 + (v r / sqrt(3)) X2, and I = l (H + W/2).
    """
    xp = namespace(f)
    r = 1.0 - f
    cubes = 1.0 - 3.0 * f * r
    v = 0.5 * xp.sqrt(f * r / cubes)
    w = 2.0 * v * cubes
    i = f * (0.5 * w - v * f * f)
    return xp.stack((w, 0.0 * w), 1), xp.stack((i, f * f * r * v / _ROOT_3), 1)
