"""Brownian motion that can be asked anywhere, in any order: a dyadic tree that is never built.

White noise on [lo, hi] is expanded in functions that live on dyadic cells, so that

    W(t) - W(lo) = sum over the cells that hold t of  weight(cell, t) * normal(seed, row, cell):

the Schauder functions of Levy and Ciesielski for W alone; for W with its space-time Levy area the
quadratic functions whose cells have given increment and area (two normals a cell). Cells on which
an increment is known contribute exactly its conditional mean, so every query has the exact law given
all cells down to the leaves, of length (hi - lo) / 2**depth, and a leaf is closed by the exact conditional
law of the query in it. All levels of a query are drawn in one call; there is no recursion and no state.

Not covered: two queries inside one leaf share its normal, so steps should be no shorter than a leaf. H is a
difference of integrals: its rounding error is about 1e-16 (T/dt)^{3/2} times sqrt(dt).

References: Ciesielski, "Hoelder conditions for realizations of Gaussian processes", 1961,
https://doi.org/10.2307/1993291; Foster, Lyons, Oberhauser, "An optimal polynomial approximation of Brownian motion",
SIAM J. Numer. Anal. 2020, https://arxiv.org/abs/1904.06998; Jelincic, Tao, Turner, Cass, Foster, Ni, "Single-seed
generation of Brownian paths and integrals for adaptive and high order SDE solvers", 2024, https://arxiv.org/abs/2405.06464.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops import random
from dxdt.paths.driver import Increment, Levy, SpaceTime, Ticks

__all__ = ["Brownian"]

_Array: TypeAlias = Any
_SLACK = 1e-9
_DEEPEST = 40


def _on(x: _Array) -> Any:
    return torch if isinstance(x, Tensor) else np


def _integer(x: _Array) -> _Array:
    return x.to(torch.int64) if isinstance(x, Tensor) else x.astype(np.int64)


def _sum(weights: _Array, values: _Array) -> _Array:
    """sum_i weights[i] * values[i] in a fixed order, so that bits depend on neither batch nor executor."""
    total = weights[0] * values[0]
    for i in range(1, len(weights)):
        total = total + weights[i] * values[i]
    return total


@dataclass(frozen=True)
class _Cells:
    """The cells that hold the points x of [0, 1]: nodes (depth + 2, *x) from the root, places (depth + 1, *x) in them."""

    x: _Array
    node: _Array
    place: _Array


@dataclass(frozen=True)
class _Levels:
    """Constants of a tree, one a level from the first split down: shifts from leaf to cell, and lengths of cells."""

    shift: _Array
    length: _Array

    @classmethod
    def of(cls, depth: int) -> _Levels:
        return cls(np.arange(depth, -1, -1), 2.0 ** -np.arange(0.0, depth + 1.0))

    def to(self, device: torch.device) -> _Levels:
        return _Levels(torch.from_numpy(self.shift).to(device), torch.from_numpy(self.length).to(device))

    def find(self, x: _Array) -> _Cells:
        leaves = 1 << (len(self.shift) - 1)
        shift = self.shift.reshape(-1, *(1,) * x.ndim)
        leaf = _integer(_on(x).floor(x * leaves)).clip(0, leaves - 1)
        node = (leaf + leaves) >> shift
        length = self.length.reshape(shift.shape)
        place = x / length - (leaf >> shift)
        return _Cells(x, _on(x).concat((0 * node[:1], node)), place)

    def schauder(self, cells: _Cells) -> _Array:
        """Weights of W for one normal a cell."""
        xp, f = _on(cells.x), cells.place
        amplitude = xp.sqrt(self.length).reshape(-1, *(1,) * cells.x.ndim)
        hat = xp.minimum(f[:-1], 1.0 - f[:-1])
        leaf = xp.sqrt(f[-1:] * (1.0 - f[-1:]))
        return xp.concat((cells.x[None], xp.concat((hat, leaf)) * amplitude))

    def quadratic(self, cells: _Cells) -> tuple[_Array, _Array]:
        """Weights of W and of I(t) = int_0^t W ds for two normals a cell: each (depth + 2, 2, *x)."""
        xp, x, f = _on(cells.x), cells.x, cells.place
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
            xp.concat((w_root, xp.concat((w, w_leaf)) * amplitude)),
            xp.concat((i_root, xp.concat((i, i_leaf)) * (amplitude * length))),
        )


_ROOT_3 = math.sqrt(3.0)
_ROOT_3_HALVES = math.sqrt(3.0) / 2.0
_ROOT_3_24TH = math.sqrt(3.0) / 24.0
_ROOT_3_6TH = math.sqrt(3.0) / 6.0


def _close(f: _Array) -> tuple[_Array, _Array]:
    """Weights of the exact draw of (W, I) at place f of a cell of length 1 whose (W, H) is known.

    With l = f, r = 1 - f: v = sqrt(l r / (l^3 + r^3)) / 2, and W = 2 v (l^3 + r^3) X1,
    H_l = -v l^2 X1 + v l r / sqrt(3)... so that I = l (H_l + W / 2).
    """
    xp = _on(f)
    r = 1.0 - f
    cubes = 1.0 - 3.0 * f * r
    v = 0.5 * xp.sqrt(f * r / cubes)
    w = 2.0 * v * cubes
    i = f * (0.5 * w - v * f * f)
    return xp.stack((w, 0.0 * w), 1), xp.stack((i, f * f * r * v / _ROOT_3), 1)


@final
@dataclass(frozen=True, eq=False)
class Brownian:
    """Brownian motion named by a seed, exact at any times asked in any order.

    W(t) - W(s) ~ N(0, t - s); with `levy=SpaceTime` also H ~ N(0, (t - s)/12), independent of W. The path is a function
    of (seed, levy, span, depth, row, component) alone: not of the steps, the batch or the executor.

    Args:
        seed: any Python int, modulo 2**64.
        levy: `SpaceTime` for H as well, None for W alone; the two are different paths.
        depth: levels of the tree; leaves of length span / 2**depth are the shortest useful steps.
        span: the interval of the tree, where solves over parts of it shall see one path; the span of the solve if None.
        w: condition on W(t1) - W(t0) over the whole span, broadcast to (rows, size): a bridge.
        h: condition on the space-time Levy area over the whole span, likewise.

    Raises:
        ValueError: depth outside 1 .. 40, an empty span, or h without `levy=SpaceTime`.
    """

    seed: int
    levy: Levy = None
    depth: int = field(default=20, kw_only=True)
    span: tuple[float, float] | None = field(default=None, kw_only=True)
    w: Float[Tensor, "..."] | float | None = field(default=None, kw_only=True)
    h: Float[Tensor, "..."] | float | None = field(default=None, kw_only=True)

    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= _DEEPEST:
            raise ValueError(f"Brownian: depth={self.depth} is outside 1 .. {_DEEPEST}; 20 resolves a millionth of the span")
        if self.h is not None and self.levy is None:
            raise ValueError("Brownian: h is given but the path has no Levy area; pass levy=SpaceTime")
        if self.span is not None and not self.span[0] < self.span[1]:
            raise ValueError(f"Brownian: the span {self.span} is empty; give (t0, t1) with t0 < t1")

    def bind(
        self,
        t0: float | np.ndarray,
        t1: float | np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        row_offset: int = 0,
    ) -> BoundBrownian:
        """Give the path the shape of one solve over [t0, t1] (scalars or (rows,), either direction).

        Row r of the solve is row `row_offset + r` of the path.

        Raises:
            ValueError: the solve leaves the span given to the path.
        """
        start, end = np.asarray(t0, np.float64), np.asarray(t1, np.float64)
        low, high = np.minimum(start, end), np.maximum(start, end)
        if self.span is not None:
            low, high = _inside(low, high, self.span)
        return BoundBrownian(self, low, high, start, rows, size, dtype, torch.device(device), row_offset)


def _inside(low: np.ndarray, high: np.ndarray, span: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    slack = _SLACK * (span[1] - span[0])
    if (low < span[0] - slack).any() or (high > span[1] + slack).any():
        raise ValueError(
            f"Brownian: the solve over [{low.min()}, {high.max()}] leaves the span {span} of the path; "
            "widen span=(t0, t1), or leave it out"
        )
    return np.asarray(span[0], np.float64), np.asarray(span[1], np.float64)


@final
class BoundBrownian:
    """A `Brownian` with the shape of one solve: rows, size, dtype, device."""

    def __init__(
        self,
        path: Brownian,
        low: np.ndarray,
        high: np.ndarray,
        start: np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        row_offset: int,
    ) -> None:
        self.path, self.size, self.dtype, self.device = path, size, dtype, device
        length = np.where(high > low, high - low, 1.0)
        self._host = _Frame(
            random.seed_tensor(path.seed).numpy(),
            np.arange(row_offset, row_offset + rows),
            low,
            length,
            start,
            _Levels.of(path.depth),
            _given(path.w, length, 1.0, rows, size),
            _given(path.h, length, 12.0, rows, size),
        )
        self._device = self._host.to(device)
        self._recent: list[tuple[np.ndarray, _Array]] = []

    def increment(self, t: Ticks, dt: Ticks, step: Any = 0) -> Increment:
        """The increment over [t, t + dt] of each row: W and H of shape (rows, size).

        Raises:
            ValueError: eager, a time outside the span by more than a relative 1e-9.
        """
        if not isinstance(t, Tensor) and self.device.type == "cpu":
            frame, ends = self._host, self._ends(t, dt)
        else:
            frame = self._device
            t, dt = self._ticks(t), self._ticks(dt)
            ends = _state(self, frame, frame.place(torch.stack((t, t + dt)).expand(2, len(frame.row))))
        W, H = _difference(ends, dt, frame)
        return Increment(dt, self._data(W), None if H is None else self._data(H))

    def value(self, t: Ticks) -> Float[Tensor, "*times rows size"]:
        """W(t) - W(t0) at times of shape () or (times,), common to the rows, or (times, rows).

        Raises:
            ValueError: a time outside the span by more than a relative 1e-9.
        """
        frame = self._host if self.device.type == "cpu" else self._device
        times = np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, np.float64)
        x = self._host.inside(times[..., None] if times.ndim < 2 else times)
        origin = self._host.inside(self._host.start)
        x, origin = (np.broadcast_to(a, (*a.shape[:-1], len(frame.row))) for a in (x, np.atleast_1d(origin)))
        if frame is self._device:
            x, origin = torch.from_numpy(x.copy()).to(self.device), torch.from_numpy(origin.copy()).to(self.device)
        here, there = _state(self, frame, x)[0], _state(self, frame, origin)[0]
        return self._data((here - there) * frame.unit())

    def _ticks(self, t: Ticks) -> Tensor:
        return t if isinstance(t, Tensor) else torch.from_numpy(np.asarray(t, np.float64)).to(self.device)

    def _ends(self, t: np.ndarray, dt: np.ndarray) -> tuple[_Array, _Array | None]:
        """The state at both ends; an end of the last query is not drawn again."""
        times = [np.broadcast_to(t, self._host.row.shape), np.broadcast_to(t + dt, self._host.row.shape)]
        known = [next((v for k, v in self._recent if np.array_equal(k, time)), None) for time in times]
        missing = [i for i, state in enumerate(known) if state is None]
        if missing:
            x = self._host.inside(np.stack([times[i] for i in missing]))
            w, i = _state(self, self._host, x)
            for j, k in enumerate(missing):
                known[k] = (w[j], None if i is None else i[j])
        self._recent = [(time.copy(), state) for time, state in zip(times, known, strict=True)]
        (w0, i0), (w1, i1) = known
        return np.stack((w0, w1)), None if i0 is None else np.stack((i0, i1))

    def _data(self, x: _Array) -> Tensor:
        return (x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))).to(self.dtype)


@dataclass(frozen=True)
class _Frame:
    """What a bound path knows, as arrays of one kind: on the host, or as tensors beside the data."""

    seed: _Array
    row: _Array
    low: _Array
    length: _Array
    start: _Array
    levels: _Levels
    w: _Array | None
    h: _Array | None

    def to(self, device: torch.device) -> _Frame:
        def put(x: np.ndarray | None) -> Any:
            return None if x is None else torch.from_numpy(np.array(x)).to(device)

        return _Frame(
            put(self.seed), put(self.row), put(self.low), put(self.length), put(self.start), self.levels.to(device),
            put(self.w), put(self.h),
        )

    def place(self, t: _Array) -> _Array:
        """Times as points of [0, 1]."""
        return ((t - self.low) / self.length).clip(0.0, 1.0)

    def inside(self, t: np.ndarray) -> np.ndarray:
        """Times as points of [0, 1], refused where they are not."""
        x = (t - self.low) / self.length
        if not ((x >= -_SLACK) & (x <= 1.0 + _SLACK)).all():
            low, high = np.min(self.low), np.max(self.low + self.length)
            raise ValueError(
                f"Brownian: asked at a time outside its span [{low}, {high}] (times from {t.min()} to {t.max()}); "
                "bind it to the whole interval, or give Brownian(..., span=(t0, t1))"
            )
        return x.clip(0.0, 1.0)

    def unit(self) -> _Array:
        """sqrt of the length of the span, to multiply rows."""
        return _on(self.length).sqrt(self.length)[..., None]


def _given(value: Any, length: np.ndarray, precision: float, rows: int, size: int) -> np.ndarray | None:
    """A known root increment in units of its standard deviation."""
    if value is None:
        return None
    known = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, np.float64)
    return np.broadcast_to(known * np.sqrt(precision / length)[..., None], (rows, size)).copy()


def _state(bound: BoundBrownian, frame: _Frame, x: _Array) -> tuple[_Array, _Array | None]:
    """(W, I) from the start of the span to the points x, of shape (*x, size), for a span of length 1."""
    cells = frame.levels.find(x)
    if bound.path.levy is None:
        z = random.normals(frame.seed, frame.row, cells.node, bound.size, dtype=torch.float64)
        return _sum(frame.levels.schauder(cells)[..., None], _condition(z, frame.w)), None
    z = random.normals(frame.seed, frame.row, cells.node, 2 * bound.size, dtype=torch.float64)
    first, second = _condition(z[..., 0::2], frame.w), _condition(z[..., 1::2], frame.h)
    w, i = (weights[..., None] for weights in frame.levels.quadratic(cells))
    return (
        _sum(w[:, 0], first) + _sum(w[:, 1], second),
        _sum(i[:, 0], first) + _sum(i[:, 1], second),
    )


def _condition(z: _Array, known: _Array | None) -> _Array:
    if known is None:
        return z
    root = known + 0.0 * z[:1]
    return _on(z).concat((root, z[1:]))


def _difference(ends: tuple[_Array, _Array | None], dt: Ticks, frame: _Frame) -> tuple[_Array, _Array | None]:
    """W and H over the interval between two states."""
    (w0, w1), i = ends[0], ends[1]
    xp = _on(w0)
    unit = frame.unit()
    moving = (dt != 0.0)[..., None]
    W = xp.where(moving, (w1 - w0) * unit, 0.0)
    if i is None:
        return W, None
    h = xp.where(moving, (dt / frame.length)[..., None], 1.0)
    H = xp.where(moving, ((i[1] - i[0]) / h - 0.5 * (w0 + w1)) * unit, 0.0)
    return W, H
