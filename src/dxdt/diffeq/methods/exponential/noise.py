"""The noise of an exponential step: a Brownian motion on the clock of its variance.

What noise adds to y over a step in lam is exactly

    c' e^{-tau^2 lam'} (B(q') - B(q)),  q = e^{2 tau^2 lam}         (data)
    a' (B(q') - B(q)),                  q = -tau^2 e^{-2 lam}       (noise)

so that steps share one path under refinement. q spans more orders of magnitude than a dyadic tree has
levels. lam from -20 to 20 therefore lies on the driver's interval in pieces of length 2, and inside a
piece q is linear in the driver's time s: B is the sum over the pieces of sqrt(dq/ds) W. The map does
not depend on the grid, the ends of the solve or the process. A driver of a known grid is asked for one
normal a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.weights import DataPrediction, Prediction
from dxdt.ops.times import Ticks, from_host
from dxdt.ops.tree import Layout

__all__ = ["StepNoise"]

_REACH, _PIECE = 20.0, 2.0
_ONE = np.ones(1)


class StepNoise:
    """A driver bound to one solve, which answers for standard normals on intervals of lam."""

    def __init__(self, driver: Any, layout: Layout, size: int, kind: Prediction, tau: float) -> None:
        self.interval: tuple[float, float] = getattr(driver, "span", None) or (0.0, 1.0)
        self.bound = driver.bind(*self.interval, layout.rows, size, layout.dtype, layout.device)
        self.refines = bool(driver.adaptive)
        self.data, self.tau, self.rows = isinstance(kind, DataPrediction), tau, layout.rows

    def increment(self, t: Ticks, dt: Ticks, step: Any = 0) -> Any:
        """Not asked for: the path lives on the clock of lam."""
        raise NotImplementedError("the noise of an exponential integrator has no increments in time")

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path; see `paths.driver.Bound`."""
        return self.bound.normals(step, stream, size)

    def unit(self, start: np.ndarray, end: np.ndarray, step: Ticks) -> Tensor:
        """The noise over [start, end] in lam ``(R,)`` in units of its standard deviation, ``(R, n)``."""
        if not self.refines:
            return self.bound.increment(_ONE * 0, _ONE, step).W
        start, end = (np.clip(np.broadcast_to(x, (self.rows,)), -_REACH, _REACH) for x in (start, end))
        first, last = (np.minimum((x + _REACH) // _PIECE, 2 * _REACH / _PIECE - 1) for x in (start, end))
        total = self._variance(start, end, end)
        z: Tensor | None = None
        for j in range(int((last - first).max()) + 1):
            low = (first + j) * _PIECE - _REACH
            z = self._added(z, low, np.clip(start, low, low + _PIECE), np.clip(end, low, low + _PIECE), end, total)
        assert z is not None
        return z

    def _added(
        self, z: Tensor | None, low: np.ndarray, a: np.ndarray, b: np.ndarray, end: np.ndarray, total: np.ndarray
    ) -> Tensor:
        """z and the part of a step that lies between a and b, in the piece that begins at ``low``."""
        whole = self._variance(low, low + _PIECE, end)
        width = (self.interval[1] - self.interval[0]) * _PIECE / (2 * _REACH)
        origin = self.interval[0] + (low + _REACH) / _PIECE * width
        s, e = (origin + width * self._variance(low, x, end) / whole for x in (a, b))
        e = np.where(b > a, np.minimum(e, self.interval[1]), s)
        W = self.bound.increment(s, e - s, 0).W
        scale = np.sqrt(whole / (width * np.where(total > 0, total, 1.0)))
        factor = float(scale[0]) if len(scale) == 1 else from_host(scale[:, None], W)
        return W * factor if z is None else torch.add(z, W * factor)

    def _variance(self, a: np.ndarray, b: np.ndarray, end: np.ndarray) -> np.ndarray:
        """q(b) - q(a) in units of q at ``end``; the outermost pieces reach to infinity."""
        if self.data:
            power = 2 * self.tau**2
            begin = np.where(a <= -_REACH, 0.0, np.exp(power * (a - end)))
            return np.exp(power * (b - end)) - begin
        beyond = np.where(b >= _REACH, 0.0, np.exp(2 * (end - b)))
        return np.exp(2 * (end - a)) - beyond
