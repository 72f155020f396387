"""Controllers: accept or reject an attempted step, and choose the next (see ``rule``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.rule import Controller, Decision, Scale, Span, max_norm, rms
from dxdt.ops.times import Ticks, to_host
from dxdt.ops.tree import Layout, Tree, leaves

__all__ = ["PI", "PID", "Clip", "Constant", "Controller", "Decision", "Grid", "I", "Scale", "Span", "max_norm", "rms"]

# A clock is known to this fraction of what it was formed from.
_ROUNDING = 4 * float(np.finfo(np.float64).eps)


@final
@dataclass(frozen=True)
class Constant(Controller):
    """Steps of constant length |dt|, the last one shortened to end at t1.

    Step n ends at t0 + n dt, computed from n, so that rounding does not accumulate.

    Args:
        dt: length of a step; by default the ``dt`` of the solve.
    """

    dt: float | None = None

    state_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.dt is not None and not (self.dt != 0 and np.isfinite(self.dt)):
            raise ValueError(f"Constant(dt={self.dt}): give a finite step other than zero")

    def check(self, t0: np.ndarray, t1: np.ndarray, dt: Ticks | None) -> None:
        if self.dt is None and dt is None:
            raise ValueError("Constant() has no step size: give it one, or give dt to the solve")

    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        if self.dt is not None:
            dt = span.clock.full(span.t0, abs(self.dt))
        assert dt is not None
        dt = span.clock.where(span.t1 < span.t0, -abs(dt), abs(dt))
        return dt, (dt, span.clock.count(span.t0))

    def ends(self, span: Span, dt: Ticks | None) -> np.ndarray:
        size = np.abs(np.asarray(dt if self.dt is None else self.dt))
        t0, t1 = (np.atleast_1d(x) for x in (span.t0, span.t1))
        # The loop stretches a last step a little, so that rounding leaves no sliver.
        count = np.maximum(np.ceil(np.abs(t1 - t0) / size - 1 - 1e-8), 0) + 1
        number = np.arange(int(count.max()) + 1)[:, None]
        return np.where(number < count, t0 + np.sign(t1 - t0) * size * number, t1)

    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        size, count = state
        accept = error <= 1
        count = count + accept
        step = span.t0 + (count + 1) * size - span.clock.where(accept, t + dt, t)
        return Decision(accept, step, (size, count), ~accept)


@final
@dataclass(frozen=True, eq=False)
class Grid(Controller):
    """Steps between given times.

    Args:
        times: N + 1 strictly monotone times ``(N + 1,)``, or ``(N + 1, B)`` for one grid a sample.

    Raises:
        ValueError: fewer than two times, or times that are not strictly monotone.
    """

    times: Any

    state_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        times = to_host(self.times) if isinstance(self.times, Tensor) else self.times
        times = np.asarray(times, dtype=np.float64)
        if times.ndim not in (1, 2) or times.shape[0] < 2:
            raise ValueError(f"Grid has times of shape {times.shape}: give at least two times along axis 0")
        steps = np.diff(times, axis=0)
        if not np.all(np.isfinite(times)) or not np.all((np.sign(steps) == np.sign(steps[:1])) & (steps != 0)):
            raise ValueError("Grid has times that are not strictly monotone: sort them and drop repeated ones")
        object.__setattr__(self, "times", times if times.ndim == 2 else times[:, None])

    def check(self, t0: np.ndarray, t1: np.ndarray, dt: Ticks | None) -> None:
        times = self.times
        if times.shape[1] not in (1, len(t0)):
            raise ValueError(
                f"Grid has times for {times.shape[1]} samples but the solve has {len(t0)}: give one column for each"
            )
        slack = 1e-9 * np.abs(t1 - t0)
        if (np.abs(times[0] - t0) > slack).any() or (np.abs(times[-1] - t1) > slack).any():
            raise ValueError(
                f"Grid goes from {times[0, 0]:g} to {times[-1, 0]:g} but the solve from {t0[0]:g} to {t1[0]:g}: "
                f"begin it at t0 and end it at t1"
            )

    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        count = span.clock.count(span.t0)
        return span.clock.table(self._times(span), count + 1) - span.t0, (count,)

    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        (count,) = state
        accept = error <= 1
        times = self._times(span)
        # Rows that reached the end stay there while others, cut short by events, still step.
        count = count + (accept & (count < times.shape[0] - 1))
        ahead = count + (count < times.shape[0] - 1)
        end = span.clock.table(times, ahead)
        return Decision(accept, end - span.clock.where(accept, t + dt, t), (count,), ~accept)

    def ends(self, span: Span, dt: Ticks | None) -> np.ndarray:
        return self.times

    def _times(self, span: Span) -> Any:
        return self.times if span.table is None else span.table


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
        tiny = ~accept & (abs(step) <= 4e-16 * clock.maximum(abs(t), abs(span.t1 - span.t0)))
        failed = ~accept & (below if not self.force_dtmin else ~finite & (abs(dt) <= abs(step))) | tiny
        history = (clock.where(accept, error, e1), clock.where(accept, e1, e2), k)
        return Decision(accept, step, history, failed)

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


@final
@dataclass(frozen=True, eq=False)
class Clip(Controller):
    """A controller whose steps end at given times, besides where they would end.

    Args:
        controller: rule for the steps between.
        steps: times at which a step must end, such as times where the solution is wanted exactly.
        jumps: times where the field is discontinuous: a step ends there and the next begins there, with
            the solver's memory of the field renewed. The field is shown the floats just before and just
            after, in the dtype in which it sees time; the clock itself loses nothing.

    Raises:
        ValueError: times that are not a finite vector.
    """

    controller: Controller
    steps: Any = ()
    jumps_at: Any = ()
    some: ClassVar[tuple[bool, bool]]

    def __init__(self, controller: Controller, steps: Any = (), jumps: Any = ()) -> None:
        object.__setattr__(self, "controller", controller)
        object.__setattr__(self, "steps", _times(steps, "Clip.steps"))
        object.__setattr__(self, "jumps_at", _times(jumps, "Clip.jumps"))
        object.__setattr__(self, "some", (self.steps.size > 0, self.jumps_at.size > 0))

    @property
    def adaptive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.adaptive

    @property
    def state_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 + self.controller.state_size

    @property
    def jumps(self) -> bool:
        return self.some[1]

    @property
    def stops(self) -> bool:
        return self.some[0] or self.some[1]

    def scale(self, layout: Layout) -> Scale | None:
        return self.controller.scale(layout)

    def measure(self, layout: Layout) -> Callable[[Tensor], Tensor]:
        return self.controller.measure(layout)

    def check(self, t0: np.ndarray, t1: np.ndarray, dt: Ticks | None) -> None:
        self.controller.check(t0, t1, dt)

    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        dt, state = self.controller.start(self._inner(span), dt, order)
        return self._clip(span, span.t0, dt), (dt, *state)

    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        clock, (wanted, *inner) = span.clock, state
        decision = self.controller.decide(self._inner(span), error, t, dt, tuple(inner))
        clipped, control = decision.accept & (abs(dt) < abs(wanted) * (1 - 1e-9)), decision.state
        rest = clock.where(abs(wanted) > abs(decision.dt), wanted, decision.dt) if self.adaptive else wanted - dt
        if not self.adaptive:  # a part of the inner rule's step is none of its steps
            control = [clock.where(clipped, a, b) for a, b in zip(inner, control, strict=True)]
        step = clock.where(clipped, rest, decision.dt)
        end = clock.where(decision.accept, self.land(span, t, dt)[0], t)
        return Decision(decision.accept, self._clip(span, end, step), (step, *control), decision.failed)

    def land(self, span: Span, t: Ticks, dt: Ticks) -> tuple[Ticks, Ticks]:
        reach, slack = t + dt, _ROUNDING * (abs(t) + abs(dt))
        landed, jumped = reach, reach != reach
        for times, some, jump in zip(self._stops(span), self.some, (False, True), strict=True):
            if not some:
                continue
            stops = span.clock.column(times, t)
            near = abs(stops - reach) <= slack
            met = near.any(0)
            # Of several within rounding the last one: the others lie behind it.
            last = _where(near, stops * _sign(span), stops * 0 - float("inf"))
            last = (last.amax(0) if isinstance(last, Tensor) else last.max(0)) * _sign(span)
            landed = span.clock.where(met, last, landed)
            jumped = jumped | met if jump else jumped
        return landed, jumped

    def _stops(self, span: Span) -> tuple[Any, Any]:
        return (self.steps, self.jumps_at) if span.table is None else span.table[:2]

    def _inner(self, span: Span) -> Span:
        return span if span.table is None else span._replace(table=span.table[2])

    def _clip(self, span: Span, t: Ticks, dt: Ticks) -> Ticks:
        sign = _sign(span)
        for times, some in zip(self._stops(span), self.some, strict=True):
            if some:
                gap = (span.clock.column(times, t) - t) * sign
                gap = _where(gap > 0, gap, gap * 0 + float("inf"))
                ahead = gap.min(0) if not isinstance(gap, Tensor) else gap.amin(0)
                dt = span.clock.where(abs(dt) >= ahead * (1 - 1e-9), sign * ahead, dt)
        return dt


def _sign(span: Span) -> Ticks:
    """Direction of time."""
    return span.clock.where(span.t1 < span.t0, -1.0, 1.0)


def _where(mask: Ticks, a: Ticks, b: Ticks) -> Ticks:
    """Entries of columns, which a clock of one row keeps as arrays."""
    return torch.where(mask, a, b) if isinstance(mask, Tensor) else np.where(mask, a, b)


def _times(times: Any, what: str) -> np.ndarray:
    values = to_host(times) if isinstance(times, Tensor) else times
    values = np.asarray(values if isinstance(values, (Sequence, np.ndarray)) else list(values), dtype=np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(f"{what} is not a vector of finite times: give a sequence of numbers")
    return np.sort(values)
