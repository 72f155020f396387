"""Events: stop where something happens, and differentiate when it happens.

An event is a condition c(t, y, *args): a real value whose change of sign is located on the dense
output of the step, or a boolean that is looked at after each accepted step. Where the sign changes
at t*, the implicit function theorem gives its derivative with respect to anything the solution
depends on,

    dt*/dp = - (dc/dp) / (dc/dt)      along the solution,

formed as one Newton correction of the located root. A reset map starts the solution again from
y+ = r(t*, y*); without one the sample ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.loop.save import polynomial
from dxdt.diffeq.loop.sign_change import Bracket, Signs, bracket
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.autodiff import derivative
from dxdt.ops.times import START, Ticks, from_host, moments, to_host
from dxdt.ops.tree import Tree, leaves

__all__ = ["Crossing", "Event", "SteadyState", "Track", "Watch"]

_ROUNDS = 80


@final
@dataclass(frozen=True, eq=False)
class Event:
    """Something to stop at.

    Args:
        condition: ``(t, y, *args)`` to a real value, ``()`` jointly or ``(B,)`` per sample, or to a
            boolean of that shape (looked at after each step, not located).
        direction: +1 for a sign change upwards only, -1 downwards only, 0 for both.
        reset: map ``(t, y, *args)`` to the state to go on from; None ends the sample.
        checks: points of each step at which the sign is looked at; where the values turn back near to zero, the
            turning point is looked for between them, so that two crossings in one step are not missed.

    Raises:
        ValueError: a direction other than -1, 0, 1, or no checks.
    """

    condition: Callable[..., Any]
    direction: int = 0
    reset: Callable[..., Tree] | None = None
    checks: int = 4

    def __post_init__(self) -> None:
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"Event(direction={self.direction}): choose 1 (upwards), -1 (downwards) or 0 (both)")
        if self.checks < 1:
            raise ValueError(f"Event(checks={self.checks}): look at each step at least once")


@final
@dataclass(frozen=True, eq=False)
class SteadyState:
    """Condition that is true where the solution hardly moves: |f(t, y)| < atol + rtol |y|.

    Use it as ``Event(SteadyState(field))``; the norms are root mean squares over the state, or over
    each sample.

    Args:
        field: the vector field of the equation.
        rtol, atol: relative and absolute tolerance.
    """

    field: Callable[..., Tree]
    rtol: float = 1e-4
    atol: float = 1e-6

    def __call__(self, t: Tensor, y: Tree, *args: Any) -> Tensor:
        slope, size = (_size(x, t.dim()) for x in (self.field(t, y, *args), y))
        return slope < self.atol + self.rtol * size


def _size(tree: Tree, batch: int) -> Tensor:
    flat = [x.abs().flatten(batch) for x in leaves(tree)]
    squares = sum(x.square().sum(-1) for x in flat)
    return (squares / sum(x.shape[-1] for x in flat)).sqrt()  # pyright: ignore[reportAttributeAccessIssue]


class Crossing(NamedTuple):
    """Where a step was cut short.

    Attributes:
        rows: rows that met an event in it.
        theta: where in the step, in (0, 1].
        which: index of the event, -1 for rows without.
        ends: rows that stop there.
    """

    rows: Ticks
    theta: Ticks
    which: Ticks
    ends: Ticks


@dataclass(frozen=True, eq=False)
class Watch:
    """The events of a solve, on rows.

    Attributes:
        equation: the equation on rows, for its layout and arguments.
        events: what to look for.
    """

    equation: Rows
    events: tuple[Event, ...]

    @property
    def goes_on(self) -> bool:
        """Whether a row may go on after an event."""
        return any(e.reset is not None for e in self.events)

    def sides(self, t: Ticks, y: Tensor) -> tuple[np.ndarray, ...]:
        """Sign of each condition at the start, ``(R,)``; 0 where it is exactly zero.

        Raises:
            TypeError, ValueError: a condition that returns something else than one number a row.
        """
        (time,) = moments(t, t * 0, START, self.equation.layout)
        with torch.no_grad():
            return tuple(
                np.sign(to_host(self._value(e, time, y.detach(), check=True)).reshape(-1)) for e in self.events
            )

    def probe(self, t: Ticks, y: Tensor) -> tuple[Tensor, ...]:
        """Conditions and reset maps evaluated once at the start, to look at their graphs."""
        (time,) = moments(t, t * 0, START, self.equation.layout)
        layout, args = self.equation.layout, self.equation.args
        values = [self._value(e, time, y) for e in self.events]
        resets = [e.reset(time, layout.unpack(y), *args) for e in self.events if e.reset is not None]
        for value in resets:
            layout.check(value, "the reset map's value")
        return (*values, *(layout.pack(value) for value in resets))

    def find(
        self, t: Ticks, dt: Ticks, ok: Ticks, y: Tensor, dense: Tensor, sides: tuple[np.ndarray, ...]
    ) -> tuple[Crossing | None, tuple[np.ndarray, ...]]:
        """The first crossing of each row in an accepted step, and the signs after it."""
        single = np.ndim(ok) == 0
        t, dt, ok = np.atleast_1d(t, dt, ok)
        with torch.no_grad():
            track = Track(self, t, dt, y.detach(), dense.detach())
            inside = [track.signs(event) for event in self.events]
            found = [
                bracket(e.direction, track.leaning(e, ok, side, x), ok, x)
                for e, side, x in zip(self.events, sides, inside, strict=True)
            ]
            crossing, sides = self.locate(track, [b for b, _ in found], tuple(side for _, side in found))
        return (Crossing(*(x[0] for x in crossing)) if single and crossing is not None else crossing), sides

    def locate(
        self, track: Track, brackets: Sequence[Bracket], sides: tuple[np.ndarray, ...]
    ) -> tuple[Crossing | None, tuple[np.ndarray, ...]]:
        """The first crossing of each row, from where each condition changes, and the signs after it."""
        if not any(b.rows.any() for b in brackets):
            return None, sides
        thetas = np.stack([track.root(event, b) for event, b in zip(self.events, brackets, strict=True)])
        which = np.argmin(thetas, axis=0)
        theta = thetas[which, np.arange(len(which))]
        rows = np.isfinite(theta)
        for i, (event, b) in enumerate(zip(self.events, brackets, strict=True)):
            # A boolean is looked at wherever a step ends, so also where another event ends it.
            if b.exact and event.reset is None and (rows & (which != i)).any():
                true = track.value(event, np.where(rows, theta, 1.0)) > 0
                which = np.where(rows & true, i, which)
        stays = np.array([e.reset is not None for e in self.events])
        sides = tuple(
            np.where(rows, self._after(e, i, which, theta, track), s)
            for (i, e), s in zip(enumerate(self.events), sides, strict=True)
        )
        return Crossing(rows, np.where(rows, theta, 1.0), np.where(rows, which, -1), rows & ~stays[which]), sides

    def _after(self, event: Event, i: int, which: np.ndarray, theta: np.ndarray, track: Track) -> np.ndarray:
        # At its own root an event has no side until it is seen away from zero; others keep theirs.
        value = np.sign(track.value(event, np.where(np.isfinite(theta), theta, 1.0)))
        return np.where(which == i, 0.0, value)

    def meet(self, crossing: Crossing, t: Ticks, dt: Ticks, y: Tensor, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time ``(R,)``, state on arrival and state to go on from, differentiable in the step."""
        rows, which = np.atleast_1d(crossing.rows, crossing.which)
        theta = self._rooted(crossing, t, dt, y, dense)
        start, length = (torch.as_tensor(x, dtype=torch.float64, device=y.device).reshape(-1) for x in (t, dt))
        time = start + theta * length
        arrive = y + polynomial(dense, theta.to(y.dtype))
        leave = arrive
        for i, event in enumerate(self.events):
            mask = rows & (which == i)
            if event.reset is not None and mask.any():
                layout = self.equation.layout
                value = event.reset(self._time(time, y), layout.unpack(arrive), *self.equation.args)
                layout.check(value, "the reset map's value")
                leave = torch.where(torch.as_tensor(mask, device=y.device)[:, None], layout.pack(value), leave)
        return time, arrive, leave

    def _rooted(self, crossing: Crossing, t: Ticks, dt: Ticks, y: Tensor, dense: Tensor) -> Tensor:
        """Position of the root in the step, with its derivative by the implicit function theorem."""
        rows, which, host = np.atleast_1d(crossing.rows, crossing.which, crossing.theta)
        theta = torch.as_tensor(host, device=y.device)
        tied = isinstance(dt, Tensor) or dense.requires_grad or y.requires_grad or torch.is_grad_enabled()
        if not tied:
            return theta
        start, length = (torch.as_tensor(x, dtype=torch.float64, device=y.device).reshape(-1) for x in (t, dt))
        for i, event in enumerate(self.events):
            mask = torch.as_tensor(rows & (which == i), device=y.device)
            if not mask.any():
                continue
            slope = self._slope(event, theta, start, length, y, dense)
            if slope is None:
                continue
            at = theta.detach()
            value = self._value(event, self._time(start + at * length, y), y + polynomial(dense, at.to(y.dtype)))
            shift = (value - value.detach()).to(torch.float64) / torch.where(mask, slope, 1.0)
            theta = theta - torch.where(mask, shift, 0.0)
        return theta

    def _slope(
        self, event: Event, theta: Tensor, start: Tensor, length: Tensor, y: Tensor, dense: Tensor
    ) -> Tensor | None:
        """dc/dtheta along the step, or None for a boolean condition."""
        y, dense, start, length = (x.detach() for x in (y, dense, start, length))

        def along(at: Tensor) -> Tensor:
            return self._value(event, self._time(start + at * length, y), y + polynomial(dense, at.to(y.dtype)))

        slope = derivative(along, theta.detach())
        if slope is None:
            return None
        if not bool(torch.isfinite(slope).all()):
            slope = torch.where(torch.isfinite(slope), slope, 1.0)
        return torch.where(slope == 0, 1.0, slope)

    def _time(self, time: Tensor, y: Tensor) -> Tensor:
        time = time.to(self.equation.layout.time_dtype)
        return time if self.equation.layout.per_sample else time.reshape(())

    def _value(self, event: Event, time: Tensor, y: Tensor, check: bool = False) -> Tensor:
        layout = self.equation.layout
        value = event.condition(time.to(layout.time_dtype), layout.unpack(y), *self.equation.args)
        if check:
            _check(value, layout.per_sample, layout.rows)
        return value.reshape(-1)


def _check(value: Any, per_sample: bool, rows: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"an event's condition returned a {type(value).__name__}: return a tensor with one number a sample"
        )
    if value.is_complex():
        raise TypeError(
            "an event's condition returned complex values, which have no sign: return a real part or a modulus"
        )
    want = (rows,) if per_sample else ()
    if tuple(value.shape) != want and not (not per_sample and value.numel() == 1):
        raise ValueError(
            f"an event's condition returned shape {tuple(value.shape)}: return {want}, "
            + (
                "one number for each sample"
                if per_sample
                else "one number (per_sample=True gives each sample its own event)"
            )
        )


@dataclass(eq=False)
class Track:
    """Conditions along one accepted step, on the host."""

    watch: Watch
    t: np.ndarray
    dt: np.ndarray
    y: Tensor
    dense: Tensor

    def value(self, event: Event, theta: np.ndarray) -> np.ndarray:
        """The condition at ``theta`` of each row; booleans are -1 (false) and 1 (true)."""
        value = self._at(event, theta)
        return to_host(value) * 2 - 1 if value.dtype is torch.bool else to_host(value)

    def _at(self, event: Event, theta: np.ndarray) -> Tensor:
        rows = self.y + polynomial(self.dense, from_host(theta, self.y))
        time = self.watch._time(torch.from_numpy(self.t + theta * self.dt).to(self.y.device), self.y)
        return self.watch._value(event, time, rows)

    def signs(self, event: Event) -> Signs:
        """Signs at the points at which the step is looked at."""
        size = len(self.t)
        end = self._at(event, np.ones(size))
        if end.dtype is torch.bool:
            return Signs.at_end(to_host(end))
        places = (np.full(size, j / event.checks) for j in range(event.checks))
        values = np.stack([*(self.value(event, theta) for theta in places), to_host(end)])
        return Signs.along(values, lambda theta: self.value(event, theta))

    def leaning(self, event: Event, ok: np.ndarray, side: np.ndarray, inside: Signs) -> np.ndarray:
        """The sign before the step; where the condition is zero there, just after: the sign of its slope."""
        zero = ok & (side == 0)
        if inside.boolean or not zero.any():
            return side
        t, dt = (torch.from_numpy(x).to(self.y.device) for x in (self.t, self.dt))
        slope = self.watch._slope(event, torch.zeros_like(t), t, dt, self.y, self.dense)
        return side if slope is None else np.where(zero, np.sign(to_host(slope)), side)

    def root(self, event: Event, found: Bracket) -> np.ndarray:
        """Where the condition is zero, inf in rows where it is not.

        Right of the zero by rounding: inverse quadratic interpolation where it is safe, else bisection.

        T. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function
        without using derivatives", Adv. Eng. Softw. 28 (1997).
        """
        rows, low, high, side, exact = found
        if exact or not rows.any():
            return np.where(rows, high, np.inf)
        tol = float(np.finfo(np.float64 if self.y.dtype == torch.float64 else np.float32).eps)
        # The newest point, the other end of the bracket, and the point that was given up last.
        x1, x2, x3 = high.copy(), low.copy(), low.copy()
        f1, f2 = self.value(event, x1), self.value(event, x2)
        f2 = np.where(f2 == 0, side * 1e-300, f2)
        f3, share = f2, np.full(len(x1), 0.5)
        for _ in range(_ROUNDS):
            best = np.where(np.abs(f1) < np.abs(f2), x1, x2)
            least = (tol * np.abs(best) + 0.5 * tol) / np.maximum(np.abs(x2 - x1), 1e-300)
            open_ = rows & (least <= 0.5) & (f1 != 0)
            if not open_.any():
                break
            x = x1 + np.clip(share, least, 1 - least) * (x2 - x1)
            f = self.value(event, np.where(open_, x, x1))
            same = np.sign(f) == np.sign(f1)
            given_up = np.where(same, x1, x2), np.where(same, f1, f2)
            kept = np.where(same, x2, x1), np.where(same, f2, f1)
            x3, f3 = (np.where(open_, new, old) for new, old in zip(given_up, (x3, f3), strict=True))
            x2, f2 = (np.where(open_, new, old) for new, old in zip(kept, (x2, f2), strict=True))
            x1, f1 = np.where(open_, x, x1), np.where(open_, f, f1)
            with np.errstate(all="ignore"):
                xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
                share = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
                share = np.where((phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi), share, 0.5)
        # A value that is exactly zero lies on the far side of the crossing.
        return np.where(rows, np.where(f1 == 0, x1, np.maximum(x1, x2)), np.inf)
