"""Brownian increments of a known grid: one draw a cell, the fastest driver there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.ops import random
from dxdt.paths.driver import Increment, Levy, Ticks

__all__ = ["Increments"]

# Nodes of the tree of `Brownian` lie below these, so one seed serves both drivers.
_W_CELLS = 1 << 48
_H_CELLS = 1 << 49
_CHUNK_STEPS = 64
_CHUNK_NUMBERS = 1 << 18


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
        self._chunk: tuple[Tensor, Tensor | None] = (torch.empty(0), None)

    def increment(self, t: Ticks, dt: Ticks, step: Any) -> Increment:
        """The increment of cell `step` (an int or (rows,)), of length dt: W and H (rows, size)."""
        z, y = self._normals(step)
        if isinstance(dt, Tensor):
            W, H = torch.sign(dt) * torch.sqrt(torch.abs(dt)), torch.sqrt(torch.abs(dt) * (1 / 12))
            scale = (W.to(self.dtype), H.to(self.dtype))
        else:
            both = np.stack((np.sign(dt) * np.sqrt(np.abs(dt)), np.sqrt(np.abs(dt) * (1 / 12))))
            scale = torch.from_numpy(both).to(self.device, self.dtype).unbind(0)
        return Increment(
            dt, z * scale[0].unsqueeze(-1), None if y is None else y * scale[1].unsqueeze(-1)
        )

    def _normals(self, step: Any) -> tuple[Tensor, Tensor | None]:
        if isinstance(step, Tensor):
            return self._draw(step)
        steps = np.asarray(step)
        first = int(steps.flat[0])
        if steps.size > 1 and (steps != first).any():
            return self._draw(torch.from_numpy(steps.astype(np.int64)).to(self.device))
        chunk = first // self._steps
        if chunk != self._drawn:
            cells = torch.arange(
                chunk * self._steps, (chunk + 1) * self._steps, device=self.device
            )
            self._chunk, self._drawn = self._draw(cells.unsqueeze(-1)), chunk
        z, y = self._chunk
        return z[first % self._steps], None if y is None else y[first % self._steps]

    def _draw(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        z = random.normals(
            self._seed, self._row, step + _W_CELLS, self.size, dtype=torch.float64
        ).to(self.dtype)
        if self.path.levy is None:
            return z, None
        return z, random.normals(
            self._seed, self._row, step + _H_CELLS, self.size, dtype=torch.float64
        ).to(self.dtype)
