"""Controllers: accept or reject an attempted step, and choose the next (see ``rule``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.rule import Controller, Decision, Scale, Span, max_norm, rms
from dxdt.diffeq.problem.span import rounding
from dxdt.ops.times import Ticks, to_host
from dxdt.ops.tree import Layout

__all__ = ["Clip", "Constant", "Controller", "Decision", "Grid", "Scale", "Span", "max_norm", "rms"]

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

    @property
    def length(self) -> float | None:
        return None if self.dt is None else abs(self.dt)

    def most_steps(self, span: Span, dt: Ticks | None) -> int:
        spanned, step = np.abs(np.asarray(span.t1) - np.asarray(span.t0)), self.dt if dt is None else dt
        return int(np.ceil(np.max(spanned / np.abs(np.asarray(step))))) + 1

    def split(self) -> tuple[Controller, Any]:
        return _ANY_LENGTH, None

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
    eps: float = field(default=0.0, init=False, repr=False)

    state_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", rounding(self.times))
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

    def fitted(self, t0: np.ndarray, t1: np.ndarray, eps: float) -> Controller:
        if self.times.shape[1] not in (1, len(t0)):
            return self
        gaps = np.abs(self.times[0] - t0), np.abs(self.times[-1] - t1)
        slack = 4 * max(self.eps, eps) * np.maximum(np.abs(t0), np.abs(t1))
        if not (gaps[0].any() or gaps[1].any()) or any((gap > slack).any() for gap in gaps):
            return self
        times = np.array(np.broadcast_to(self.times, (len(self.times), max(self.times.shape[1], len(t0)))))
        times[0], times[-1] = t0, t1
        # A single column where rows do not differ, which keeps it known to be one grid.
        return Grid(times if np.ptp(times, axis=1).any() else times[:, :1])

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

    def most_steps(self, span: Span, dt: Ticks | None) -> int:
        return len(self.times) - 1

    def split(self) -> tuple[Controller, Any]:
        return _ANY_GRID, self.times

    def _times(self, span: Span) -> Any:
        return self.times if span.table is None else span.table


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

    def fitted(self, t0: np.ndarray, t1: np.ndarray, eps: float) -> Controller:
        inner = self.controller.fitted(t0, t1, eps)
        return self if inner is self.controller else Clip(inner, self.steps, self.jumps_at)

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

    @property
    def length(self) -> float | None:
        return self.controller.length

    def most_steps(self, span: Span, dt: Ticks | None) -> int | None:
        inner = self.controller.most_steps(span, dt)
        return None if inner is None else inner + len(self.steps) + len(self.jumps_at)

    def split(self) -> tuple[Controller, Any]:
        inner, table = self.controller.split()
        lists = self.steps, self.jumps_at
        return _clip(inner, *self.some), (
            *(_padded(x) if some else None for x, some in zip(lists, self.some, strict=True)),
            table,
        )

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


# What programs are kept by: rules without what varies from solve to solve.
_ANY_LENGTH, _ANY_GRID = Constant(), Grid([0.0, 1.0])
# Where nothing ever arrives.
_NEVER = 1e300


def _padded(times: np.ndarray) -> np.ndarray:
    # Lists of similar lengths share a program.
    size = max(8, 1 << (len(times) - 1).bit_length())
    return np.append(times, np.full(size - len(times), _NEVER))


@lru_cache(maxsize=256)
def _clip(inner: Controller, steps: bool, jumps: bool) -> Clip:
    return Clip(inner, [0.0] * steps, [0.0] * jumps)
