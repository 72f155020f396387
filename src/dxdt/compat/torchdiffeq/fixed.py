"""What torchdiffeq's fixed grids add to a solver: linear output, and times nudged off the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from dxdt.diffeq import Solver
from dxdt.diffeq.methods.solver import State, Step

__all__ = ["Chord", "Nudged"]


class _Around(Solver):
    """A solver around another one, with its facts."""

    def __init__(self, inner: Solver) -> None:
        self.inner = inner
        # Neither what the inner solver keeps between steps nor its compiled form is promised of what is around it.
        self.facts = replace(inner.facts, compiles=False, stateful=False, noise=None, degree=1)

    def init(self, eq: Any, t: Any, y: Tensor, dense: bool) -> State:
        return self.inner.init(eq, t, y, dense)

    def step(self, eq: Any, t: Any, dt: Any, y: Tensor, state: State, index: Any) -> Step:
        return self.inner.step(eq, t, dt, y, state, index)

    def dense(self, step: Step, dt: Any, y: Tensor) -> Tensor:
        return self.inner.dense(step, dt, y)


class Chord(_Around):
    """Straight lines between steps: values off the grid cost no evaluation, and have order 1."""

    def __init__(self, inner: Solver) -> None:
        super().__init__(inner)
        self.facts = replace(self.facts, compiles=inner.facts.compiles, stateful=inner.facts.stateful)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chord) and self.inner == other.inner

    def __hash__(self) -> int:
        return hash((Chord, self.inner))

    def slope(self, state: State) -> Tensor | None:
        return self.inner.slope(state)

    def init(self, eq: Any, t: Any, y: Tensor, dense: bool) -> State:
        return self.inner.init(eq, t, y, False)

    def dense(self, step: Step, dt: Any, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)


class Nudged(_Around):
    """Evaluates the field just inside each step instead of at its ends (option ``perturb``).

    A field that jumps at a grid point is then seen from the right side of the jump.
    """

    def __init__(self, inner: Solver, direction: float) -> None:
        super().__init__(inner)
        self.direction = direction

    def init(self, eq: Any, t: Any, y: Tensor, dense: bool) -> State:
        return self.inner.init(cast(Any, _Inside(eq, t, t + self.direction)), t, y, dense)

    def step(self, eq: Any, t: Any, dt: Any, y: Tensor, state: State, index: Any) -> Step:
        inside: Any = _Inside(eq, t, t + dt)
        if state:
            # The slope at the start was seen from the step before.
            state = (self.inner.init(inside, t, y, True)[0], *state[1:])
        return self.inner.step(inside, t, dt, y, state, index)


class _Inside:
    """An equation on rows whose field is never asked at the ends of a step."""

    def __init__(self, eq: Any, start: Any, end: Any) -> None:
        self.eq, self.layout, self.outlook = eq, eq.layout, eq.outlook
        self.start, self.end = start, end

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        # Rounded to the dtype in which the field sees time: a nudge below it would be lost.
        t = t.to(self.layout.time_dtype)
        start, end = (
            torch.as_tensor(x, device=t.device).detach().to(t.dtype).reshape(()) for x in (self.start, self.end)
        )
        for here, there in ((start, end), (end, start)):
            if bool(t.detach() == here):
                t = t + (torch.nextafter(here, there) - here)
                break
        return self.eq.drift(t, y)
