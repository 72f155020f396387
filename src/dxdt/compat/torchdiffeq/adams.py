"""Adams methods on the grid they are given, with Kutta's 3/8 rule for the first steps.

    y' = y + dt sum_i b_i f_{n-i}

with b_i the integral over the step, divided by dt, of the Lagrange basis polynomial of t_{n-i}.

The explicit method (Adams-Bashforth) interpolates f_n, f_{n-1}, ...; the implicit one
(Adams-Moulton) also f(t + dt, y'), found by functional iteration from the explicit value. Weights
are formed from the times as they are, so that grids with unequal steps keep their order.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.compat.torchdiffeq.tableaux import ThreeEighths
from dxdt.solve import Solver
from dxdt.solve.solver import State, Step, hermite

__all__ = ["Adams", "adams_weights"]

_FIRST = 3  # values of f before the method starts, as in torchdiffeq


@lru_cache(maxsize=256)
def adams_weights(nodes: tuple[float, ...]) -> np.ndarray:
    """Integrals over [0, 1] of the Lagrange basis polynomials of distinct nodes."""
    x = np.array(nodes)
    points, weights = np.polynomial.legendre.leggauss(len(x) // 2 + 1)
    s = 0.5 * (points + 1)
    out = np.empty(len(x))
    for i in range(len(x)):
        others = np.delete(x, i)
        basis = np.prod((s[:, None] - others) / (x[i] - others), axis=1)
        out[i] = 0.5 * weights @ basis
    return out


@final
@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth, or with ``implicit`` Adams-Bashforth-Moulton.

    Args:
        implicit: correct the explicit value by functional iteration.
        max_order: one more than the values of f that are remembered.
        max_iters: iterations of the corrector.
        rtol, atol: the corrector ends where no element changes by more.
    """

    implicit: bool = False
    max_order: int = 5
    max_iters: int = 4
    rtol: float = 1e-3
    atol: float = 1e-4

    order: ClassVar[float] = 4
    dense_order: ClassVar[float] = 3
    stages: ClassVar[int] = 1
    known_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        assert self.max_order <= 12, "max_order must be at most 12"
        if self.max_order < 4:
            warnings.warn("max_order is below 4, so the solver reduces to `rk4`.", stacklevel=5)

    @property
    def _kept(self) -> int:
        return max(self.max_order - 1, 1)

    def init(self, eq: Any, t: Any, y: Tensor, dense: bool) -> State:
        """f now, then room for the values before it, then their times."""
        f = eq.drift(_moment(t, y, eq), y)
        room = (torch.zeros_like(y),) * (self._kept - 1)
        times = torch.from_numpy(_host(t)).reshape(-1, 1).expand(-1, self._kept)
        return (f, *room, times.expand(y.shape[0], -1))

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def step(self, eq: Any, t: Any, dt: Any, y: Tensor, state: State, index: Any) -> Step:
        *fs, times = state
        known = min(int(np.max(index)) + 1, self._kept)
        if known < _FIRST:
            rough = ThreeEighths().step(eq, t, dt, y, (fs[0],), index)
            return self._record(rough.y, rough.state[0], fs, times, t, dt)
        nodes = _nodes(t, dt, times[:, :known])
        z = y + _rise(y, dt, adams_weights(nodes), fs[:known])
        if self.implicit:
            z = self._correct(eq, t, dt, y, z, nodes, fs)
        return self._record(z, eq.drift(_moment(t + dt, y, eq), z), fs, times, t, dt)

    def dense(self, step: Step, dt: Any, y: Tensor) -> Tensor:
        h = _factor(dt, 1.0, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))

    def _correct(
        self,
        eq: Any,
        t: Any,
        dt: Any,
        y: Tensor,
        z: Tensor,
        nodes: tuple[float, ...],
        fs: list[Tensor],
    ) -> Tensor:
        weights = adams_weights((1.0, *nodes))
        known = _rise(y, dt, weights[1:], fs[: len(nodes)])
        end, factor = _moment(t + dt, y, eq), _factor(dt, weights[0], y)
        rise = z - y
        for _ in range(self.max_iters):
            before, rise = rise, known + factor * eq.drift(end, y + rise)
            if self._settled(before, rise):
                return y + rise
        message = "Functional iteration did not converge. Solution may be incorrect."
        warnings.warn(message, stacklevel=2)
        return y + rise

    def _settled(self, old: Tensor, new: Tensor) -> bool:
        # One host sync an iteration: how many there are depends on the values.
        with torch.no_grad():
            scale = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
            return bool(((old - new).abs() < scale).all())

    def _record(self, z: Tensor, f: Tensor, fs: list[Tensor], times: Tensor, t: Any, dt: Any) -> Step:
        now = torch.from_numpy(_host(t) + _host(dt)).reshape(-1, 1).expand(times.shape[0], 1)
        times = torch.cat([now, times[:, :-1]], dim=1)
        return Step(z, None, (f, *fs[:-1], times), (fs[0], f))


def _host(t: Any) -> np.ndarray:
    values: Any = t.tolist() if isinstance(t, Tensor) else t
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _nodes(t: Any, dt: Any, times: Tensor) -> tuple[float, ...]:
    """The times of the known values, counted in steps from the start of this one.

    Raises:
        ValueError: rows that step on different grids.
    """
    # Through lists, because a tensor under torch.func has no memory to look at.
    moves = _host(dt) != 0
    nodes = (np.array(times.tolist())[moves] - _host(t)[moves, None]) / _host(dt)[moves, None]
    if np.ptp(nodes, axis=0).max() > 1e-6:
        raise ValueError("an Adams method needs one grid for all samples: give them the same times")
    return tuple(round(float(x), 9) for x in nodes[0])


def _moment(t: Any, y: Tensor, eq: Any) -> Tensor:
    moment = torch.as_tensor(t, device=y.device).to(y.dtype)
    return moment if eq.layout.per_sample else moment.reshape(())


def _factor(dt: Any, weight: float, y: Tensor) -> Tensor:
    return (torch.as_tensor(dt, device=y.device) * weight).to(y.dtype).reshape(-1, 1)


def _rise(y: Tensor, dt: Any, weights: np.ndarray, fs: list[Tensor]) -> Tensor:
    """dt sum_i b_i f_i; y is added to it at the end, so that a step rounds y once."""
    rise = torch.zeros_like(y)
    for w, f in zip(weights, fs, strict=True):
        rise = torch.addcmul(rise, _factor(dt, float(w), y), f)
    return rise
