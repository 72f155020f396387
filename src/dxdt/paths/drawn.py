"""Increments of a run of cells whose normals were drawn at once, before the loop that uses them."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from dxdt.paths.driver import Increment, Ticks

__all__ = ["Drawn", "scales"]

_TWELFTH = 1 / 12


@final
class Drawn:
    """A bound `Increments` in some cells: the same bits, for loops that draw nothing.

    Rows that still move must be in one and the same cell.

    Args:
        path: the bound path.
        first: number of the first cell, ``()``.
        z: normals of W, ``(cells, rows, size)``.
        y: those of H, likewise, or None.
    """

    def __init__(self, path: Any, first: Tensor, z: Tensor, y: Tensor | None) -> None:
        self.path, self.first, self.z, self.y = path, first, z, y

    def increment(self, t: Ticks, dt: Tensor, step: Tensor) -> Increment:
        """The increment of cell `step`, of length dt: W and H (rows, size)."""
        slot = (step.amax() - self.first).reshape(1)
        a, b = scales(dt, self.z.dtype)
        W = self.z.index_select(0, slot)[0] * a
        return Increment(dt, W, None if self.y is None else self.y.index_select(0, slot)[0] * b)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path; see `driver.Bound`."""
        return self.path.normals(step, stream, size)


def scales(dt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sign(dt) sqrt|dt| and sqrt(|dt|/12), (rows, 1)."""
    length = torch.abs(dt)
    a, b = torch.sign(dt) * torch.sqrt(length), torch.sqrt(length * _TWELFTH)
    return a.to(dtype).unsqueeze(-1), b.to(dtype).unsqueeze(-1)
