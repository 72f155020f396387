"""The equations of implicit stages, solved for each row by simplified Newton iterations.

A stage asks for slopes k with G(k) = 0, such as G(k) = k - f(t, base + dt a k). The iteration

    k <- k - M^{-1} G(k),      M = dG/dk with the Jacobian of f at the start of the step,

needs one factorisation for all stages. It has converged where what is left, by the ratio of two steps, is a small part
of the tolerance of the step; where steps grow, or do not fall in time, the row has failed, which the controller sees as
an infinite error. Known steps have no tolerance: there slopes are found to rounding, with new Jacobians where one does
not do.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", IV.8 (1996).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dxdt.diffeq.problem.equation import Rows
from dxdt.implicit.gradient import tie
from dxdt.ops.autodiff import jacobian
from dxdt.ops.host import transformed
from dxdt.ops.linear import Factored, factor, identity
from dxdt.ops.times import DEVICE, HOST, SINGLE, Clock, Ticks

__all__ = ["Field", "Found", "StageNewton", "slopes_of", "step_size", "tied", "wants_gradient"]

Map = Callable[[Tensor], Tensor]
Field = Callable[[Tensor, Tensor], Tensor]
# Rounds with new Jacobians where there is no step to make smaller, and the least part of its first step that a stage
# is taken to be wrong by: its rate is its own, and may be higher than that of the stage before.
_ROUNDS, _LEAST = 4, 0.2


class Found(NamedTuple):
    """Slopes of a stage, which rows have them, and what an iteration leaves of the step before, ``(R,)`` clocks."""

    k: Tensor
    ok: Ticks
    rest: Ticks


@dataclass(frozen=True)
class StageNewton:
    """How the equations of implicit stages are solved.

    Args:
        iterations: of a stage at most, before the step is given up.
        part: of the tolerance of a step that may be left of a stage.

    Raises:
        ValueError: fewer than two iterations, or a part outside of (0, 1).
    """

    iterations: int = 10
    part: float = 0.02

    def __post_init__(self) -> None:
        if self.iterations < 2 or not 0 < self.part < 1:
            raise ValueError(
                f"StageNewton(iterations={self.iterations}, part={self.part}): take at least 2 iterations, "
                f"and a part between 0 and 1"
            )

    def solve(
        self,
        eq: Rows,
        k: Tensor,
        size: Any,
        y: Tensor,
        index: Ticks,
        rest: Ticks,
        residual: Map,
        inverse: Map,
        renewed: Callable[[Tensor], Map],
    ) -> Found:
        """Slopes with residual(k) = 0, as constants.

        Args:
            eq: the equation, which knows the tolerance of the solve.
            k: first guess ``(R, m)``.
            size: what a slope of one moves the state by, ``(R, 1)`` or a number.
            y: state at the start of the step ``(R, n)``.
            index: accepted steps before this one: on the host where the loop is.
            rest: ``Found.rest`` of the stage before, or None.
            residual: G.
            inverse: M^{-1}, with the Jacobian at the start of the step.
            renewed: M^{-1} with the Jacobian at given slopes.
        """
        scale = eq.outlook.scale
        clock = DEVICE if isinstance(index, Tensor) else HOST if eq.layout.per_sample else SINGLE
        with torch.no_grad():
            k, y = k.detach(), y.detach()
            measure = _relative(y, size) if scale is None else _scaled(scale, y, size)
            goal = 1.0 if scale is None else self.part
            found = self._round(k, clock, rest, residual, inverse, measure, goal, scale is None)
            if scale is not None or isinstance(index, Tensor):
                return found
            for _ in range(_ROUNDS - 1):
                if found.ok.all():
                    break
                again = self._round(found.k, clock, None, residual, renewed(found.k), measure, goal, True)
                found = Found(clock.choose(~found.ok, again.k, found.k), found.ok | again.ok, again.rest)
        return found

    def _round(
        self, k: Tensor, clock: Clock, rest: Ticks, residual: Map, inverse: Map, measure: Map, goal: float, exact: bool
    ) -> Found:
        first = clock.read(measure(k))
        running, before, ok = first == first, clock.full(first, float("inf")), first != first
        running = running | ~running
        rest = clock.full(first, 1.0) if rest is None or exact else clock.maximum(rest, _LEAST)
        for _ in range(self.iterations):
            rise = inverse(-residual(k))
            step = clock.read(measure(rise))
            finite = clock.isfinite(step)
            known = clock.isfinite(before) & (before > 0)
            ratio = clock.where(known, step / clock.where(known, before, 1.0), 0.0)
            seen = clock.where(ratio < 1, ratio / clock.where(ratio < 1, 1 - ratio, 1.0), float("inf"))
            rest = clock.where(running & known, seen, rest)
            done = running & finite & ((step * rest <= goal) | (step == 0))
            # Steps of rounding do not fall any more.
            done = done | (running & known & (ratio > 0.2) & (step <= 1e3 * goal) if exact else done)
            lost = running & (~finite | (known & (ratio >= 1) & ~done))
            k = clock.choose(running & ~lost, k + rise, k)
            ok, running, before = ok | done, running & ~done & ~lost, clock.where(running, step, before)
            if clock is not DEVICE and not running.any():
                break
        return Found(k, ok, clock.where(clock.isfinite(rest), rest, 1.0))


def _scaled(scale: Any, y: Tensor, size: Any) -> Map:
    """Sizes of changes of slopes in units of the tolerance of a step."""
    n = y.shape[-1]

    def measure(rise: Tensor) -> Tensor:
        if rise.shape[-1] == n:
            return scale(size * rise, y, y)
        parts = (size * rise).unflatten(-1, (-1, n)).unbind(-2)
        return torch.stack([scale(x, y, y) for x in parts]).amax(0)

    return measure


def _relative(y: Tensor, size: Any) -> Map:
    """Sizes of changes of slopes in units of rounding of a state."""
    whole = torch.linalg.vector_norm(y, float("inf"), dim=-1)
    unit = torch.finfo(y.dtype).eps

    def measure(rise: Tensor) -> Tensor:
        return torch.linalg.vector_norm(size * rise, float("inf"), dim=-1) / (unit * (whole + unit))

    return measure


def slopes_of(field: Field, time: Tensor, y: Tensor) -> Tensor:
    """df/dy of rows at a time, ``(R, n, n)``, as a constant."""
    with torch.no_grad():
        return jacobian(lambda z: field(time, z), y.detach())[1].detach()


def step_size(dt: Ticks, part: float, like: Tensor) -> Any:
    """dt times a number as a factor of rows, as a constant: a number, or ``(R, 1)``."""
    if isinstance(dt, Tensor):
        return (dt.detach() * part).to(like.dtype).reshape(-1, 1)
    if getattr(dt, "ndim", 0):
        return torch.as_tensor(dt * part, dtype=like.dtype, device=like.device).reshape(-1, 1)
    return float(dt * part)


def wants_gradient(*values: Any) -> bool:
    """Whether something follows derivatives of these tensors."""
    if transformed():
        return True
    tensors = [x for x in values if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def tied(residual: Map, matrix: Tensor, k: Tensor) -> Tensor:
    """Slopes with the derivatives, first and second, that residual(k) = constant implies.

    Args:
        residual: G.
        matrix: dG/dk at k, ``(R, m, m)``.
        k: the slopes, as constants.
    """
    regular = factor(matrix).regular[:, None]
    # Rows without an inverse have failed: an identity instead, so that their zero is no product with infinity.
    system: Factored = factor(torch.where(regular[..., None], matrix, identity(k)))
    return tie(residual, system.solve, k.detach(), 2)
