"""Adams methods: the integral of a polynomial through slopes of several steps.

    y' = y + int_t^{t+dt} p(s) ds,   p the polynomial through the known slopes

The weights follow from the actual distances of the nodes, so grids may be uneven and each row may
have its own; the order holds on every grid, but large ratios of neighbouring steps cost stability.
While the history is short (at the start, after a jump or an event) steps are taken by a one-step method,
so that nothing of the order is lost.

The state is the last slopes, ``(R, n)`` each, and the gaps between their times, ``(R, m - 1)`` in
float64, zero where there is no history yet.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.lagrange import Around, combined, weights
from dxdt.diffeq.methods.solver import Phase, Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import END, START, Ticks, factors, moments, scaled_sum

__all__ = ["AdamsBashforth", "AdamsBashforthMoulton", "Multistep"]

_HIGHEST = 6
_STARTER = Tsit5()


class Multistep(Solver):
    """What the Adams methods have in common."""

    starter: ClassVar[Solver] = _STARTER

    @property
    @abstractmethod
    def memory(self) -> int:
        """Slopes that are kept."""

    @property
    def needs(self) -> int:
        """Slopes that a step needs; while there are fewer the starter takes it."""
        return self.memory

    def claim_steps(self, order: int, stages: int) -> None:
        """State the facts: the cubic through both ends and their slopes, and slopes of earlier steps."""
        self.claim(
            Facts(order, stages, min(3, order), degree=3, known_grid=True, compiles=True, stateful=self.memory > 1)
        )

    @abstractmethod
    def advance(
        self, eq: Rows, time: Tensor, around: Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """State at the end of a step, and the slope there."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The starter's steps, then the method's, for rows that begin together."""
        if self.needs == 1:
            return ()
        return Phase(_Alike(self, True), self.needs - 1), Phase(_Alike(self, False), None)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, eq.layout)
        slope = eq.drift(start, y)
        if self.memory == 1:
            return (slope,)
        gaps = torch.zeros(y.shape[0], self.memory - 1, dtype=torch.float64, device=y.device)
        return (slope, *(torch.zeros_like(y) for _ in range(self.memory - 1)), gaps)

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def cost(self, state: State) -> int:
        """Evaluations of a step that takes both ways and chooses."""
        return self.facts.stages + (self.starter.facts.stages if self.needs > 1 else 0)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        """By the starter in rows with a short history, by the method in the others.

        A compiled loop, which cannot look, takes both steps and chooses.
        """
        if self.needs == 1:
            return self.entered(dt, state, *self.follow(eq, t, dt, y, state))
        short = state[-1][:, self.needs - 2 : self.needs - 1].detach() == 0
        looks = not isinstance(index, Tensor)
        if looks and not bool(short.any()):  # host values on the CPU: no transfer
            return self.entered(dt, state, *self.follow(eq, t, dt, y, state))
        first = self.begin(eq, t, dt, y, state, index)
        if looks and bool(short.all()):
            return self.entered(dt, state, *first)
        new = self.follow(eq, t, dt, y, state)
        return self.entered(dt, state, *(torch.where(short, a, b) for a, b in zip(first, new, strict=True)))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))

    def begin(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> tuple[Tensor, Tensor]:
        """State and slope at the end of a step of the starter."""
        step = self.starter.step(eq, t, dt, y, state[:1], index)
        return step.y, step.state[0]

    def follow(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """State and slope at the end of a step of the method."""
        (time,) = moments(t, dt, END, eq.layout)
        slopes, gaps = (state, None) if self.memory == 1 else (state[:-1], state[-1])
        return self.advance(eq, time, Around.of(dt, gaps, self.needs < self.memory), y, slopes)

    def entered(self, dt: Ticks, state: State, new: Tensor, slope: Tensor) -> Step:
        """The step to ``new``, with its slope in the history."""
        if self.memory == 1:
            return Step(new, None, (slope,), (state[0], slope))
        slopes, gaps = state[:-1], state[-1]
        length = torch.as_tensor(dt, device=gaps.device).reshape(-1, 1)
        after = (slope, *slopes[:-1], torch.cat([length, gaps[:, :-1]], 1) if self.memory > 2 else length)
        return Step(new, None, after, (slopes[0], slope))


@final
@dataclass(frozen=True)
class _Alike(Solver):
    """Steps of a method whose rows all have a short history, or all a long one: nothing to choose."""

    method: Multistep
    short: bool

    def __post_init__(self) -> None:
        stages = (self.method.starter if self.short else self.method).facts.stages
        self.claim(Facts(0, stages, 0))

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return self.method.init(eq, t, y, dense)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        method = self.method
        pair = method.begin(eq, t, dt, y, state, index) if self.short else method.follow(eq, t, dt, y, state)
        return method.entered(dt, state, *pair)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return self.method.dense(step, dt, y)


@final
@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    """Adams-Bashforth on known grids: p through the last k slopes; one evaluation a step.

    F. Bashforth, J. Adams, "An attempt to test the theories of capillary action" (1883);
    E. Hairer, S. Noersett, G. Wanner, "Solving Ordinary Differential Equations I", III.5.

    Args:
        order: k, from 1 to 6.

    Raises:
        ValueError: another order.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order not in range(1, _HIGHEST + 1):
            raise ValueError(f"AdamsBashforth(order={self.order}): give an order from 1 to {_HIGHEST}")
        self.claim_steps(self.order, 1)

    @property
    def memory(self) -> int:
        return self.order

    def advance(
        self, eq: Rows, time: Tensor, around: Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        new = combined(y, weights(around, y), slopes)
        return new, eq.drift(time, new)


@final
@dataclass(frozen=True)
class AdamsBashforthMoulton(Multistep):
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

    order: int = 4
    correctors: int = 1

    def __post_init__(self) -> None:
        if self.order not in range(2, _HIGHEST + 1):
            raise ValueError(f"AdamsBashforthMoulton(order={self.order}): give an order from 2 to {_HIGHEST}")
        if self.correctors < 1:
            raise ValueError(
                f"AdamsBashforthMoulton(correctors={self.correctors}): give at least one, or use dxdt.AdamsBashforth"
            )
        # One evaluation after the predictor and one after each corrector.
        self.claim_steps(self.order, 1 + self.correctors)

    @property
    def memory(self) -> int:
        return self.order - 1

    def advance(
        self, eq: Rows, time: Tensor, around: Around, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        slope = eq.drift(time, combined(y, weights(around, y), slopes))
        last, *rest = weights(around.with_end(), y)
        known, new = combined(y, rest, slopes), y
        for _ in range(self.correctors):
            new = scaled_sum(known, last, slope)
            slope = eq.drift(time, new)
        return new, slope
