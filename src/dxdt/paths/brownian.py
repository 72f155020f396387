"""Brownian motion that can be asked anywhere, in any order: a dyadic tree that is never built.

    W(t) - W(lo) = sum over the cells that hold t of  weight(cell, t) * normal(seed, row, cell),

with the weights of `dyadic`. All levels of a query are drawn in one call; there is no recursion
and no state. The law is exact down to the leaves, of length (hi - lo) / 2**depth.

Not covered: two queries inside one leaf share its normal, so steps should not be shorter than
that. H is a difference of integrals: its rounding error is about 1e-16 (T/dt)^{3/2} sqrt(dt).

References: Jelincic, Tao, Turner, Cass, Foster, Ni, "Single-seed generation of Brownian paths and
integrals for adaptive and high order SDE solvers", 2024, https://arxiv.org/abs/2405.06464.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops import random
from dxdt.ops.random.native import generator
from dxdt.paths.driver import Increment, Levy, Ticks, fresh, settle
from dxdt.paths.dyadic import Levels, namespace, total
from dxdt.paths.native_tree import NativeTree

__all__ = ["Brownian"]

_Array: TypeAlias = Any
_State: TypeAlias = tuple[_Array, _Array | None]
"""(W, I) of every row, from the start of the span."""
_SLACK = 1e-9
_DEEPEST = 40
_PIECE = 1 << 17


@final
@dataclass(frozen=True, eq=False)
class Brownian:
    """Brownian motion named by a seed, exact at any times asked in any order.

    W(t) - W(s) ~ N(0, t - s); with `levy=SpaceTime` also H ~ N(0, (t - s)/12), independent of W.
    The path is a function of (seed, levy, span, depth, row, component) alone: not of the steps,
    the batch or the executor.

    Args:
        seed: any Python int, modulo 2**64.
        levy: `SpaceTime` for H as well, None for W alone; the two are different paths.
        depth: levels of the tree; leaves of length span / 2**depth are the shortest useful steps.
        span: the interval of the tree, where solves over parts of it shall see one path; None
            takes the interval of the solve.
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
            raise ValueError(
                f"Brownian: depth={self.depth} is outside 1 .. {_DEEPEST}; 20 resolves a millionth of the span"
            )
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
        """Give the path the shape of one solve over [t0, t1], in either direction.

        The ends are scalars or of shape (rows,). Row r of the solve is row `row_offset + r` of
        the path.

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
            f"Brownian: the solve over [{low.min()}, {high.max()}] leaves the span {span} "
            "of the path; widen span=(t0, t1), or leave it out"
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
            Levels.of(path.depth),
            _given(path.w, length, 1.0, rows, size),
            _given(path.h, length, 12.0, rows, size),
        )
        self._device = self._host.to(device)
        self._tree: NativeTree | None = None
        self._recent: list[tuple[np.ndarray, _State]] = []

    def increment(self, t: Ticks, dt: Ticks, step: Any = 0) -> Increment:
        """The increment over [t, t + dt] of each row: W and H of shape (rows, size).

        Raises:
            ValueError: eager, a time outside the span by more than a relative 1e-9.
        """
        times, lengths = settle(t, self.device), settle(dt, self.device)
        if not isinstance(times, Tensor) and self.device.type == "cpu":
            native = self._native()
            if native is not None:
                drawn = native.increment(times, lengths)
                if drawn is not None:
                    return Increment(dt, *drawn)
                self._host.inside(np.stack(np.broadcast_arrays(times, times + lengths)))
            frame, ends = self._host, self._ends(times, lengths)
        else:
            frame = self._device
            times, lengths = self._ticks(times), self._ticks(lengths)
            both = torch.stack((times, times + lengths)).expand(2, len(frame.row))
            ends = _state(self, frame, frame.place(both))
        W, H = _difference(ends, lengths, frame)
        return Increment(dt, self._data(W), None if H is None else self._data(H))

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path; see `driver.Bound`."""
        return fresh(self._device.seed, self._device.row, step, stream, size, self.dtype)

    def value(self, t: Ticks) -> Float[Tensor, "*times rows size"]:
        """W(t) - W(t0) at times of shape () or (times,), common to the rows, or (times, rows).

        Raises:
            ValueError: a time outside the span by more than a relative 1e-9.
        """
        frame = self._host
        times = np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, np.float64)
        x, origin = frame.inside(times[..., None] if times.ndim < 2 else times), frame.inside(frame.start)
        x, origin = (np.broadcast_to(a, (*a.shape[:-1], len(frame.row))) for a in (x, np.atleast_1d(origin)))
        if self.device.type != "cpu":
            here, there = (_state(self, self._device, self._ticks(a.copy()))[0] for a in (x, origin))
            return self._data((here - there) * self._device.unit())
        native = self._native()
        if native is not None:
            here, there = native.values(x)[0], native.values(origin)[0]
        else:
            here, there = _state(self, frame, x)[0], _state(self, frame, origin)[0]
        return self._data((here - there) * frame.unit())

    def _native(self) -> NativeTree | None:
        """The tree as native code, made at the first query; None where no compiler builds it."""
        if self._tree is None and generator() is not None:
            path, f, each = self.path, self._host, 1 if self.path.levy is None else 2
            known = (f.low, f.length, path.depth, each, self.size, (f.w, f.h), self.dtype, _SLACK)
            self._tree = NativeTree(path.seed, f.row, *known)
        return self._tree

    def _ticks(self, t: Ticks) -> Tensor:
        return t if isinstance(t, Tensor) else torch.from_numpy(np.asarray(t, np.float64)).to(self.device)

    def _ends(self, t: np.ndarray, dt: np.ndarray) -> _State:
        """The states at both ends, stacked; an end of the last query is not drawn again."""
        shape = self._host.row.shape
        times = [np.broadcast_to(t, shape), np.broadcast_to(t + dt, shape)]
        known = [self._recall(time) for time in times]
        missing = [time for time, state in zip(times, known, strict=True) if state is None]
        if missing:
            w, i = _state(self, self._host, self._host.inside(np.stack(missing)))
            drawn = iter([(w[j], None if i is None else i[j]) for j in range(len(missing))])
            known = [next(drawn) if state is None else state for state in known]
        states = [state for state in known if state is not None]
        self._recent = [(time.copy(), state) for time, state in zip(times, states, strict=True)]
        (w0, i0), (w1, i1) = states
        return np.stack((w0, w1)), None if i0 is None or i1 is None else np.stack((i0, i1))

    def _recall(self, time: np.ndarray) -> _State | None:
        return next((state for known, state in self._recent if np.array_equal(known, time)), None)

    def _data(self, x: _Array) -> Tensor:
        return (x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))).to(self.dtype)


@dataclass(frozen=True)
class _Frame:
    """What a bound path knows, as arrays of one kind: on the host, or beside the data."""

    seed: _Array
    row: _Array
    low: _Array
    length: _Array
    start: _Array
    levels: Levels
    w: _Array | None
    h: _Array | None

    def to(self, device: torch.device) -> _Frame:
        def put(x: np.ndarray | None) -> Any:
            return None if x is None else torch.from_numpy(np.array(x)).to(device)

        return _Frame(
            put(self.seed),
            put(self.row),
            put(self.low),
            put(self.length),
            put(self.start),
            self.levels.to(device),
            put(self.w),
            put(self.h),
        )

    def only(self, rows: slice) -> _Frame:
        """Some rows, for draws."""
        w, h = (None if known is None else known[rows] for known in (self.w, self.h))
        return replace(self, row=self.row[rows], w=w, h=h)

    def place(self, t: _Array) -> _Array:
        """Times as points of [0, 1]."""
        return ((t - self.low) / self.length).clip(0.0, 1.0)

    def inside(self, t: np.ndarray) -> np.ndarray:
        """Times as points of [0, 1], refused where they are not."""
        x = (t - self.low) / self.length
        if not ((x >= -_SLACK) & (x <= 1.0 + _SLACK)).all():
            low, high = np.min(self.low), np.max(self.low + self.length)
            raise ValueError(
                f"Brownian: asked at a time outside its span [{low}, {high}] "
                f"(times from {t.min()} to {t.max()}); bind it to the whole interval, "
                "or give Brownian(..., span=(t0, t1))"
            )
        return x.clip(0.0, 1.0)

    def unit(self) -> _Array:
        """sqrt of the length of the span, to multiply rows."""
        return namespace(self.length).sqrt(self.length)[..., None]


def _given(value: Any, length: np.ndarray, precision: float, rows: int, size: int) -> np.ndarray | None:
    """A known root increment in units of its standard deviation."""
    if value is None:
        return None
    known = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, np.float64)
    return np.broadcast_to(known * np.sqrt(precision / length)[..., None], (rows, size)).copy()


def _state(bound: BoundBrownian, frame: _Frame, x: _Array) -> _State:
    """(W, I) from the start of a span of length 1 to the points x: each (*x, size)."""
    cells = frame.levels.find(x)
    if bound.path.levy is None:
        weights = (frame.levels.schauder(cells)[:, None, ..., None],)
    else:
        w, i = frame.levels.quadratic(cells)
        weights = (w[..., None], i[..., None])
    if isinstance(x, Tensor):
        sums = _sums(frame, cells.node, weights, 0, bound.size)
    else:
        sums = _sums_in_pieces(frame, cells.node, weights, bound.size)
    return sums[0], None if bound.path.levy is None else sums[1]


def _sums(frame: _Frame, node: _Array, weights: tuple[_Array, ...], first: int, size: int) -> list[_Array]:
    """Weighted sums of the normals of the cells, for components first .. first + size - 1.

    Weights are (levels, normals a cell, *x, 1).
    """
    each = weights[0].shape[1]
    z = random.normals(frame.seed, frame.row, node, each * size, first=each * first, dtype=torch.float64)
    known = (frame.w, frame.h)[:each]
    draws = [
        _condition(z[..., j::each], None if root is None else root[:, first : first + size])
        for j, root in enumerate(known)
    ]
    return [total(sum(w[:, j] * draw for j, draw in enumerate(draws))) for w in weights]


def _sums_in_pieces(frame: _Frame, node: np.ndarray, weights: tuple[np.ndarray, ...], size: int) -> list[np.ndarray]:
    """The same on the host: as many rows and components at a time as fit the cache."""
    rows = node.shape[-1]
    most = max(4, _PIECE // (node.size // rows))
    height = max(1, most // size)
    width = min(size, most // 4 * 4)
    if height >= rows and width == size:
        return _sums(frame, node, weights, 0, size)
    out = [np.empty((*node.shape[1:], size)) for _ in weights]
    for i in range(0, rows, height):
        some = slice(i, i + height)
        part = frame.only(some)
        part_weights = tuple(w[..., some, :] for w in weights)
        for j in range(0, size, width):
            stop = min(j + width, size)
            sums = _sums(part, node[..., some], part_weights, j, stop - j)
            for whole, piece in zip(out, sums, strict=True):
                whole[..., some, j:stop] = piece
    return out


def _condition(z: _Array, root: _Array | None) -> _Array:
    if root is None:
        return z
    xp = namespace(z)
    return xp.concatenate((xp.broadcast_to(root, z[:1].shape), z[1:]))


def _difference(ends: _State, dt: Ticks, frame: _Frame) -> tuple[_Array, _Array | None]:
    """W and H over the interval between two states."""
    (w0, w1), i = ends[0], ends[1]
    xp = namespace(w0)
    unit = frame.unit()
    moving = (dt != 0.0)[..., None]
    W = xp.where(moving, (w1 - w0) * unit, 0.0)
    if i is None:
        return W, None
    h = xp.where(moving, (dt / frame.length)[..., None], 1.0)
    H = xp.where(moving, ((i[1] - i[0]) / h - 0.5 * (w0 + w1)) * unit, 0.0)
    return W, H
