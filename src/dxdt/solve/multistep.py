"""Adams methods: the integral of a polynomial through slopes of several steps.

    y' = y + int_t^{t+dt} p(s) ds,   p the polynomial through the known slopes

The weights follow from the actual distances of the nodes, so grids may be uneven and each row may
have its own; the order holds on every grid, but large ratios of neighbouring steps cost stability.
While the history is short (at the start, after a jump or an event) steps are taken by Tsit5, so
that nothing of the order is lost.

The state is the last slopes, ``(R, n)`` each, and the gaps between their times, ``(R, m - 1)`` in
float64, zero where there is no history yet.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import END, START, Ticks, factors, from_host, moments, scaled_sum
from dxdt.solve.equation import Rows
from dxdt.solve.explicit import Tsit5
from dxdt.solve.solver import Solver, State, Step, hermite

__all__ = ["AdamsBashforth", "AdamsBashforthMoulton"]

_HIGHEST = 6
_STARTER = Tsit5()


class _Around(NamedTuple):
    """Where a step lies among the slopes that are known.

    Attributes:
        dt: length, ``(R,)``, an array on the host or a tensor.
        nodes: times of the slopes from t, in units of dt, newest first, ``(R, m)``.
    """

    dt: Any
    nodes: Any


class _Adams(Solver):
    """What the Adams methods have in common."""

    known_grid: ClassVar[bool] = True
    degree: ClassVar[int] = 3

    @property
    @abstractmethod
    def memory(self) -> int:
        """Slopes that are kept."""

    @abstractmethod
    def advance(
        self, eq: Rows, time: Tensor, around: _Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """State at the end of a step, and the slope there."""

    @property
    def dense_order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the cubic through both ends and their slopes."""
        return min(3, self.order)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, not eq.layout.per_sample, y)
        slope = eq.drift(start, y)
        if self.memory == 1:
            return (slope,)
        gaps = torch.zeros(y.shape[0], self.memory - 1, dtype=torch.float64, device=y.device)
        return (slope, *(torch.zeros_like(y) for _ in range(self.memory - 1)), gaps)

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        if self.memory == 1:
            new, slope = self._follow(eq, t, dt, y, state, None)
            return Step(new, None, (slope,), (state[0], slope))
        slopes, gaps = state[:-1], state[-1]
        new, slope = self._start_or_follow(eq, t, dt, y, slopes, gaps, index)
        length = torch.as_tensor(dt, device=gaps.device).reshape(-1, 1)
        after = (slope, *slopes[:-1], torch.cat([length, gaps[:, :-1]], 1))
        return Step(new, None, after, (slopes[0], slope))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))

    def _start_or_follow(
        self,
        eq: Rows,
        t: Ticks,
        dt: Ticks,
        y: Tensor,
        slopes: State,
        gaps: Tensor,
        index: Ticks,
    ) -> tuple[Tensor, Tensor]:
        """One step by the starter in rows with a short history, by the method in the others.

        A compiled loop, which cannot look, takes both steps and chooses.
        """
        short = gaps[:, -1:].detach() == 0
        looks = not isinstance(index, Tensor)
        if looks and not bool(short.any()):  # host values on the CPU: no transfer
            return self._follow(eq, t, dt, y, slopes, gaps)
        first = _STARTER.step(eq, t, dt, y, slopes[:1], index)
        if looks and bool(short.all()):
            return first.y, first.state[0]
        new, slope = self._follow(eq, t, dt, y, slopes, gaps)
        return torch.where(short, first.y, new), torch.where(short, first.state[0], slope)

    def _follow(
        self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, slopes: State, gaps: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (time,) = moments(t, dt, END, not eq.layout.per_sample, y)
        return self.advance(eq, time, _around(dt, gaps), y, slopes)


@final
@dataclass(frozen=True)
class AdamsBashforth(_Adams):
    """Adams-Bashforth on known grids: p through the last k slopes; one evaluation a step.

    F. Bashforth, J. Adams, "An attempt to test the theories of capillary action" (1883);
    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", III.5.

    Args:
        order: k, from 1 to 6.

    Raises:
        ValueError: another order.
    """

    order: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]

    stages: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.order not in range(1, _HIGHEST + 1):
            raise ValueError(f"AdamsBashforth(order={self.order}): give an order from 1 to {_HIGHEST}")

    @property
    def memory(self) -> int:
        return self.order

    def advance(
        self, eq: Rows, time: Tensor, around: _Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        new = _sum(y, _weights(around, around.nodes, y), slopes)
        return new, eq.drift(time, new)


@final
@dataclass(frozen=True)
class AdamsBashforthMoulton(_Adams):
    """Adams-Bashforth-Moulton on known grids as predictor and corrector, P (E C)^m E.

    The predictor of order k - 1 takes p through the last k - 1 slopes; each corrector adds to them
    the slope at the end that was found before it.

    F. Moulton, "New methods in exterior ballistics" (1926);
    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", III.5.

    Args:
        order: k, from 2 to 6.
        correctors: m, at least 1.

    Raises:
        ValueError: another order, or no corrector.
    """

    order: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    correctors: int = 1

    def __post_init__(self) -> None:
        if self.order not in range(2, _HIGHEST + 1):
            raise ValueError(f"AdamsBashforthMoulton(order={self.order}): give an order from 2 to {_HIGHEST}")
        if self.correctors < 1:
            raise ValueError(
                f"AdamsBashforthMoulton(correctors={self.correctors}): give at least one, or use dxdt.AdamsBashforth"
            )

    @property
    def stages(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Evaluations in one step: one after the predictor and one after each corrector."""
        return 1 + self.correctors

    @property
    def memory(self) -> int:
        return self.order - 1

    def advance(
        self, eq: Rows, time: Tensor, around: _Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        slope = eq.drift(time, _sum(y, _weights(around, around.nodes, y), slopes))
        weights = _weights(around, _with_end(around.nodes), y)
        known, new = _sum(y, weights[:-1], slopes), y
        for _ in range(self.correctors):
            new = scaled_sum(known, weights[-1], slope)
            slope = eq.drift(time, new)
        return new, slope


def _around(dt: Ticks, gaps: Tensor | None) -> _Around:
    """The step among its slopes; rows that do not move, or lack history, get distinct nodes."""
    if isinstance(dt, Tensor) or (gaps is not None and gaps.requires_grad):
        device = None if gaps is None else gaps.device
        dt = torch.as_tensor(dt, dtype=torch.float64, device=device).reshape(-1)
        unit = torch.where(dt == 0, 1.0, dt)[:, None]
        if gaps is None:
            return _Around(dt, torch.zeros_like(unit))
        back = torch.where(gaps == 0, unit, gaps).cumsum(1) / unit
        return _Around(dt, torch.cat([torch.zeros_like(unit), -back], 1))
    dt = np.atleast_1d(dt)
    unit = np.where(dt == 0, 1.0, dt)[:, None]
    if gaps is None:
        return _Around(dt, np.zeros_like(unit))
    host = gaps.detach().cpu().numpy()
    back = np.cumsum(np.where(host == 0, unit, host), 1) / unit
    return _Around(dt, np.concatenate([np.zeros_like(unit), -back], 1))


def _with_end(nodes: Any) -> Any:
    """The nodes and the end of the step."""
    if isinstance(nodes, Tensor):
        return torch.cat([nodes, torch.ones_like(nodes[:, :1])], 1)
    return np.concatenate([nodes, np.ones_like(nodes[:, :1])], 1)


def _weights(around: _Around, nodes: Any, like: Tensor) -> Sequence[Any]:
    """dt times the integrals over the step of the Lagrange polynomials of the nodes, as factors.

    The weights b solve sum_j b_j c_j^m = 1 / (m + 1) for m = 0, 1, ...
    """
    k = nodes.shape[1]
    if isinstance(nodes, Tensor):
        powers = torch.stack([nodes**m for m in range(k)], 1)
        moments_ = torch.tensor([1 / (m + 1) for m in range(k)], dtype=nodes.dtype, device=nodes.device)
        wanted = moments_[:, None].expand(nodes.shape[0], k, 1)
        weights = torch.linalg.solve_ex(powers, wanted)[0].squeeze(-1) * around.dt[:, None]
        return weights.to(like.dtype).unsqueeze(-1).unbind(1)
    powers = nodes[:, None] ** np.arange(k)[:, None]
    wanted = np.broadcast_to(1 / np.arange(1, k + 1)[:, None], (len(nodes), k, 1))
    weights = np.linalg.solve(powers, wanted)[..., 0] * around.dt[:, None]
    if len(weights) == 1:
        return weights[0].tolist()
    return from_host(weights[..., None], like).unbind(1)


def _sum(y: Tensor, weights: Sequence[Any], slopes: Sequence[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        y = scaled_sum(y, weight, slope)
    return y
