"""Brownian increments of a known grid: one draw a cell, the fastest driver there is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from dxdt.ops import random
from dxdt.paths.drawn import Drawn, scales
from dxdt.paths.driver import Increment, Levy, Ticks, fresh, settle

__all__ = ["Increments"]

# Nodes of the tree of `Brownian` lie below these, so one seed serves both drivers.
_W_CELLS = 1 << 48
_H_CELLS = 1 << 49
_CHUNK_STEPS = 64
_CHUNK_NUMBERS = 1 << 18
_TWELFTH = 1 / 12
_FULL = (torch.float32, torch.float64)
_Normals: TypeAlias = tuple[Tensor, Tensor | None]


@final
@dataclass(frozen=True)
class Increments:
    """Brownian increments keyed by (seed, row, step): W = sqrt(dt) normal, H = sqrt(dt/12) normal.

    The path belongs to the grid: another step size is another path, so an adaptive solve cannot
    use it, and a fine grid does not refine a coarse one (with `Brownian` it does). W is the same
    with and without H.

    Args:
        seed: any Python int, modulo 2**64.
        levy: `SpaceTime` for H as well, None for W alone.
    """

    seed: int
    levy: Levy = None

    adaptive: ClassVar[bool] = False

    def bind(
        self,
        t0: float | np.ndarray,
        t1: float | np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        row_offset: int = 0,
    ) -> BoundIncrements:
        """Give the increments the shape of one solve; the interval does not matter to them.

        Row r of the solve is row `row_offset + r` of the path.
        """
        return BoundIncrements(self, rows, size, dtype, torch.device(device), row_offset)


@final
class BoundIncrements:
    """`Increments` with the shape of one solve: rows, size, dtype, device."""

    def __init__(
        self,
        path: Increments,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        row_offset: int,
    ) -> None:
        self.path, self.size, self.dtype, self.device = path, size, dtype, device
        self._seed = random.seed_tensor(path.seed, device)
        self._row = torch.arange(row_offset, row_offset + rows, device=device)
        self._steps = max(1, min(_CHUNK_STEPS, _CHUNK_NUMBERS // max(1, rows * size)))
        # The chunk that is drawn, its normals by step, and its increments of one length.
        self._first = 0
        self._chunk: _Normals | None = None
        self._length = 0.0
        self._moves: list[_Normals] = []

    def increment(self, t: Ticks, dt: Ticks, step: Any) -> Increment:
        """The increment of cell `step` (an int or (rows,)), of length dt: W and H (rows, size)."""
        step, length = self._settled(step), self._settled(dt)
        cell, each = _common(step), _common(length)
        if cell is not None and each is not None and self.dtype in _FULL:
            W, H = self._move(cell, each)
            return Increment(dt, W, H)
        z, y = self._draw(step if isinstance(step, Tensor) else self._cells(step, cell))
        a, b = scales(length, self.dtype) if isinstance(length, Tensor) else self._host_scale(length)
        return Increment(dt, z * a, None if y is None else y * b)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path; see `driver.Bound`."""
        return fresh(self._seed, self._row, step, stream, size, self.dtype)

    def ahead(self, first: int, steps: int) -> Drawn:
        """The path in the cells first .. first + steps - 1, with all normals drawn now."""
        z, y = self._draw(torch.arange(first, first + steps, device=self.device).unsqueeze(-1))
        return Drawn(self, torch.tensor(first, device=self.device), z, y)

    def _settled(self, x: Any) -> Any:
        return settle(x, self.device) if isinstance(x, Tensor) else x

    def _move(self, cell: int, dt: float) -> _Normals:
        """W and H of a cell: of a chunk that is scaled at once, as long as the length stays the same."""
        place = cell - self._first
        if not 0 <= place < len(self._moves):
            place = cell % self._steps
            self._first = cell - place
            z, y = self._draw(torch.arange(self._first, self._first + self._steps, device=self.device).unsqueeze(-1))
            a, b = _scale(dt)
            self._chunk, self._moves = (z, y), _by_step(z * a, None if y is None else y * b)
            self._length = dt
        if dt == self._length or self._chunk is None:
            return self._moves[place]
        (z, y), (a, b) = self._chunk, _scale(dt)
        return z[place] * a, None if y is None else y[place] * b

    def _cells(self, step: Any, cell: Any) -> Tensor:
        """Cells of the rows beside the data: one each, or one for all."""
        cells = np.asarray(step if cell is None else cell, np.int64)
        return torch.from_numpy(cells.reshape(-1)).to(self.device)

    def _host_scale(self, dt: Any) -> tuple[Tensor, Tensor]:
        """`scales` for a clock on the host."""
        dt = np.atleast_1d(dt)
        length = np.abs(dt)
        both = np.stack((np.sign(dt) * np.sqrt(length), np.sqrt(length * _TWELFTH)))
        a, b = torch.from_numpy(both[..., None]).to(self.device, self.dtype).unbind(0)
        return a, b

    def _draw(self, step: Tensor) -> _Normals:
        """Normals of the rows in the cells, (*step, rows, size), cast before they are scaled."""

        def draw(cells: int) -> Tensor:
            dtype = self.dtype if self.dtype in _FULL else torch.float64
            return random.normals(self._seed, self._row, step + cells, self.size, dtype=dtype).to(self.dtype)

        return draw(_W_CELLS), None if self.path.levy is None else draw(_H_CELLS)


def _common(x: Any) -> Any:
    """The number that a clock on the host holds for all rows, or None where rows differ."""
    if isinstance(x, np.ndarray):
        return x.item() if x.size == 1 else x[0].item() if (x == x[0]).all() else None
    return None if isinstance(x, Tensor) else x


def _scale(dt: float) -> tuple[float, float]:
    """sign(dt) sqrt|dt| and sqrt(|dt|/12)."""
    return math.copysign(math.sqrt(abs(dt)), dt), math.sqrt(abs(dt) * _TWELFTH)


def _by_step(z: Tensor, y: Tensor | None) -> list[_Normals]:
    others = [None] * len(z) if y is None else y.unbind(0)
    return list(zip(z.unbind(0), others, strict=True))
