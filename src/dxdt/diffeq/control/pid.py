"""Proportional, integral and derivative control of the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
from torch import Tensor

from dxdt.diffeq.control.rule import Controller, Decision, Scale, Span, rms
from dxdt.ops.times import Ticks, to_host
from dxdt.ops.tree import Layout, Tree, leaves

__all__ = ["I", "PI", "PID"]


@final
@dataclass(frozen=True)
class PID(Controller):
    """Proportional-integral-derivative control of the local error.

        e_n = || error / (atol + rtol max(|y_n|, |y_{n+1}|)) ||,    accept if e_n <= 1,
        dt' = dt * clip(safety * e_n^{-(P+I+D)/k} e_{n-1}^{(P+2D)/k} e_{n-2}^{-D/k})

    with k the power of dt in the estimate; the factor is clipped to [1, factor_max] after an
    accepted step and to [factor_min, safety] after a rejected one. Values that are not finite count
    as a large error. A row whose step falls below ``dtmin`` fails.

    Args:
        rtol, atol: tolerances: a number, or a tree with one for each leaf of y.
        p, i, d: coefficients; (0, 1, 0) is I control.
        safety: factor below the step that would just meet the tolerance.
        factor_min, factor_max: limits of the change of one step.
        dtmin: smallest step (default: the resolution of float64 at t).
        dtmax: largest step.
        force_dtmin: step on with ``dtmin``, whatever the error, where a smaller step is wanted.
        norm: maps the ratio rows ``(R, n)`` to ``(R,)``; ``rms`` or ``max_norm`` or your own.
    References:
        G. Soederlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003).

    Raises:
        ValueError: tolerances that are negative or both zero, limits out of order.
    """

    rtol: Tree = 1e-4
    atol: Tree = 1e-6
    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    dtmin: float | None = None
    dtmax: float | None = None
    force_dtmin: bool = False
    norm: Callable[[Tensor], Tensor] = rms
    order: float | None = None

    adaptive: ClassVar[bool] = True
    state_size: ClassVar[int] = 3

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if type(value) is float and 0 <= value < float("inf"):
                continue
            for x in leaves(value):
                x = to_host(x) if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)
                if not ((x >= 0) & np.isfinite(x)).all():
                    raise ValueError(f"PID({name}={value}): a tolerance is a finite number >= 0")
        if not 0 < self.factor_min < 1 <= self.factor_max or not 0 < self.safety <= 1:
            raise ValueError(
                f"PID(safety={self.safety}, factor_min={self.factor_min}, factor_max={self.factor_max}): "
                f"choose 0 < safety <= 1 and factor_min < 1 <= factor_max"
            )
        least, most = (x if x is not None else y for x, y in ((self.dtmin, 1e-300), (self.dtmax, float("inf"))))
        if not 0 < least <= most:
            raise ValueError(f"PID(dtmin={self.dtmin}, dtmax={self.dtmax}): choose 0 < dtmin <= dtmax")
        if self.force_dtmin and self.dtmin is None:
            raise ValueError("PID(force_dtmin=True) has no dtmin: give the smallest step")

    def scale(self, layout: Layout) -> Scale:
        atol, rtol = layout.spread(self.atol, "PID.atol"), layout.spread(self.rtol, "PID.rtol")
        least = atol + rtol
        if bool((least == 0).any()) if isinstance(least, Tensor) else least == 0:
            raise ValueError("PID has rtol = atol = 0, which no step can meet: give one of them a positive value")
        return Scale(atol, rtol, self.norm)

    def measure(self, layout: Layout) -> Callable[[Tensor], Tensor]:
        return self.norm

    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        if dt is None or (self.order or order) is None:
            raise ValueError("PID needs a first step and a solver with an error estimate: give dt, or use dxdt.Tsit5()")
        one = span.clock.full(span.t0, 1.0)
        dt = span.clock.where(span.t1 < span.t0, -abs(dt), abs(dt))
        return self._limit(span, dt)[0], (one, one, one * float(self.order or order or 1))

    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        clock, (e1, e2, k) = span.clock, state
        finite = clock.isfinite(error)
        error = clock.maximum(clock.where(finite, error, 1e10), 1e-10)
        accept = error <= 1
        if self.force_dtmin and self.dtmin is not None:
            accept = accept | (finite & (abs(dt) <= self.dtmin))
        factor = self.safety * error ** (-(self.p + self.i + self.d) / k)
        if self.p or self.d:
            factor = factor * e1 ** ((self.p + 2 * self.d) / k) * e2 ** (-self.d / k)
        low = clock.where(accept, 1.0, self.factor_min)
        high = clock.where(accept, self.factor_max, self.safety)
        proposal = dt * clock.minimum(clock.maximum(factor, low), high)
        step, below = self._limit(span, proposal)
        length = abs(span.t1 - span.t0)
        # Where t is zero its resolution has no end: there a part of the span stands in for it, if it has an end.
        least = clock.maximum(4e-16 * abs(t), clock.where(clock.isfinite(length), 1e-30 * length, 0.0))
        tiny = ~accept & (abs(step) <= least)
        failed = ~accept & (below if not self.force_dtmin else ~finite & (abs(dt) <= abs(step))) | tiny
        history = (clock.where(accept, error, e1), clock.where(accept, e1, e2), k)
        return Decision(accept, step, history, failed)

    def split(self) -> tuple[Controller, Any]:
        numbers = isinstance(self.rtol, float) and isinstance(self.atol, float)
        return _same_tolerances(self) if numbers else replace(self, rtol=1.0, atol=1.0), None

    def _limit(self, span: Span, dt: Ticks) -> tuple[Ticks, Ticks]:
        """Step within [dtmin, dtmax], and whether it was below."""
        size, clock = abs(dt), span.clock
        below = size < (self.dtmin or 1e-300)
        if self.dtmin is not None and self.force_dtmin:
            size = clock.maximum(size, self.dtmin)
        if self.dtmax is not None:
            size = clock.minimum(size, self.dtmax)
        return clock.where(dt < 0, -size, size), below


def I(rtol: Tree = 1e-4, atol: Tree = 1e-6, **options: Any) -> PID:  # noqa: E743, N802
    """Integral control, the classical rule: ``PID`` with coefficients (0, 1, 0)."""
    return PID(rtol, atol, p=0.0, i=1.0, d=0.0, **options)


def PI(rtol: Tree = 1e-4, atol: Tree = 1e-6, **options: Any) -> PID:  # noqa: N802
    """Proportional-integral control for mildly stiff problems: ``PID`` with (0.4, 0.3, 0)."""
    return PID(rtol, atol, p=0.4, i=0.3, d=0.0, **options)


@lru_cache(maxsize=256)
def _same_tolerances(controller: PID) -> PID:
    return replace(controller, rtol=1.0, atol=1.0)
