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
        self._drawn = -1
        self._chunk: list[_Normals] = []

    def increment(self, t: Ticks, dt: Ticks, step: Any) -> Increment:
        """The increment of cell `step` (an int or (rows,)), of length dt: W and H (rows, size)."""
        z, y = self._normals(settle(step, self.device))
        length = settle(dt, self.device)
        host = not isinstance(length, Tensor)
        a, b = self._host_scale(length) if host else scales(length, self.dtype)
        return Increment(dt, z * a, None if y is None else y * b)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path; see `driver.Bound`."""
        return fresh(self._seed, self._row, step, stream, size, self.dtype)

    def ahead(self, first: int, steps: int) -> Drawn:
        """The path in the cells first .. first + steps - 1, with all normals drawn now."""
        z, y = self._draw(torch.arange(first, first + steps, device=self.device).unsqueeze(-1))
        return Drawn(self, torch.tensor(first, device=self.device), z, y)

    def _host_scale(self, dt: np.ndarray) -> tuple[Tensor | float, Tensor | float]:
        """`scales` for a clock on the host; one number where rows agree, which costs no tensor."""
        # A number multiplies half precision unrounded, a tensor of that type does not.
        if self.dtype in _FULL and (dt.size == 1 or (dt == dt[0]).all()):
            d = float(dt.flat[0])
            return math.copysign(math.sqrt(abs(d)), d), math.sqrt(abs(d) * _TWELFTH)
        length = np.abs(dt)
        both = np.stack((np.sign(dt) * np.sqrt(length), np.sqrt(length * _TWELFTH)))
        a, b = torch.from_numpy(both[..., None]).to(self.device, self.dtype).unbind(0)
        return a, b

    def _normals(self, step: Any) -> _Normals:
        if isinstance(step, Tensor):
            return self._draw(step)
        if not isinstance(step, int):
            steps = np.asarray(step, np.int64)
            if steps.size > 1 and (steps != steps[0]).any():
                return self._draw(torch.from_numpy(steps).to(self.device))
            step = int(steps.flat[0])
        chunk, place = divmod(step, self._steps)
        if chunk != self._drawn:
            cells = torch.arange(step - place, step - place + self._steps, device=self.device)
            z, y = self._draw(cells.unsqueeze(-1))
            others = [None] * self._steps if y is None else y.unbind(0)
            self._chunk, self._drawn = list(zip(z.unbind(0), others, strict=True)), chunk
        return self._chunk[place]

    def _draw(self, step: Tensor) -> _Normals:
        """Normals of the rows in the cells, (*step, rows, size), cast before they are scaled."""

        def draw(cells: int) -> Tensor:
            dtype = self.dtype if self.dtype in _FULL else torch.float64
            return random.normals(self._seed, self._row, step + cells, self.size, dtype=dtype).to(self.dtype)

        return draw(_W_CELLS), None if self.path.levy is None else draw(_H_CELLS)
