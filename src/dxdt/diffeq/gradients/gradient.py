"""How to differentiate a solve.

Every rule differentiates the record of accepted steps (t, dt, y per row), never the controller or
the choice of what to accept; rows contribute exactly zero once they have ended or failed. A rule
receives the loop and the plan: it runs the one and never imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Attempt, Carry, Ends, Plan
from dxdt.diffeq.loop.saving import Recorder, Served
from dxdt.diffeq.loop.start import begin
from dxdt.ops.times import Ticks
from dxdt.ops.tree import flatten, tree_map

__all__ = ["Answers", "Compiled", "Direct", "Gradient", "Inputs", "Loop", "Outcome", "Outputs", "Problem"]

Loop = Callable[[Plan, Carry, Callable[[Carry, Attempt, After], Any] | None], Carry]


@dataclass(frozen=True)
class Inputs:
    """What a solve depends on differentiably.

    Attributes:
        y: initial rows.
        ends: t0 and t1, or None where no gradient for them is wanted.
        moments: save times, likewise.
        args: extra arguments, a tree.
        params: parameters of the fields.
    """

    y: Tensor
    ends: Ends | None
    moments: Tensor | None
    args: tuple[Any, ...]
    params: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """All differentiable inputs in a fixed order."""
        return self._tensors

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        args = tuple(x for x in flatten(self.args)[0] if _differentiable(x)) if self.args else ()
        ends = () if self.ends is None else tuple(self.ends)
        moments = () if self.moments is None else (self.moments,)
        return (self.y, *ends, *moments, *args, *self.params)

    def rebuilt(self, tensors: Iterable[Tensor]) -> Inputs:
        """The same inputs made of other tensors, in the order of ``tensors()``."""
        rest = iter(tensors)
        y = next(rest)
        ends = None if self.ends is None else Ends(next(rest), next(rest))
        moments = None if self.moments is None else next(rest)
        args = tree_map(lambda x: next(rest) if _differentiable(x) else x, self.args)
        return Inputs(y, ends, moments, args, tuple(rest))

    def constant(self) -> Inputs:
        """The same without their graphs, but for parameters, which fields hold by themselves.

        Where no graph is kept, a field that differentiates inside is not to take what it is shown for a part of one.
        """
        tensors = self.tensors()
        count = len(tensors) - len(self.params)
        return self.rebuilt([*(x.detach() for x in tensors[:count]), *self.params])

    def plan(self, plan: Plan) -> Plan:
        """A plan that reads these inputs."""
        equation = replace(plan.equation, args=self.args)
        watch = None if plan.watch is None else replace(plan.watch, equation=equation)
        return replace(plan, equation=equation, ends=self.ends, watch=watch)


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


class Outcome(NamedTuple):
    """What a rule returns: the final rows, and the answers to all requests in order.

    Attributes:
        y: final rows ``(R, n)``.
        values: answers ``(N, n)``, or None where nothing was asked.
        starts, coefficients: the path, ``(K, R, n)`` and ``(K, degree, R, n)``, or None.
        times: times of events, ``(K, R)``, or None.
        origin: where the last piece of the solution began, ``(R,)``, or None.
        carry: the final carry.
    """

    y: Tensor
    values: Tensor | None
    starts: Tensor | None
    coefficients: Tensor | None
    times: Tensor | None
    origin: Tensor | None
    carry: Carry


Outputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""The tensors of an outcome, in its order."""


class Problem(NamedTuple):
    """What a compiled solve is asked for: the arguments of ``Gradient.run`` but the loop."""

    plan: Plan
    inputs: Inputs
    dt: Ticks | None
    recorder: Recorder


class Compiled(NamedTuple):
    """The ways in which programs differentiate a solve: each takes the rule, or None, and the problem.

    Attributes:
        stored: where steps began is kept, and each is formed again.
        reversed: steps are undone from the end.
        adjoint: the adjoint equation is solved backwards.
    """

    stored: Callable[[Any, Problem], Outcome]
    reversed: Callable[[Any, Problem], Outcome]
    adjoint: Callable[[Any, Problem], Outcome]


class Gradient(ABC):
    """A rule for differentiating a solve.

    Class facts:
        shows: whether steps are shown to somebody while they are taken.
        continuous: whether the equation is differentiated, and not the steps that were taken.
    """

    shows: ClassVar[bool] = False
    continuous: ClassVar[bool] = False

    @abstractmethod
    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        """Solve, so that the outcome is differentiable in the inputs."""

    def compiled(self, ways: Compiled, problem: Problem) -> Outcome | None:
        """The same by programs, in one of the ways there are, or None where the rule has no compiled form."""
        return None


@dataclass
class Answers:
    """Answers of the steps seen so far."""

    values: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    coefficients: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)

    def add(self, served: Served, y: Tensor) -> None:
        if served.values is not None:
            self.values.append(served.values)
        if served.coefficients is not None:
            self.starts.append(y)
            self.coefficients.append(served.coefficients)
        if served.time is not None:
            self.times.append(served.time)

    def stacked(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        values = torch.cat(self.values) if self.values else None
        starts, coefficients, times = (
            torch.stack(x) if x else None for x in (self.starts, self.coefficients, self.times)
        )
        return values, starts, coefficients, times


@final
@dataclass(frozen=True)
class Direct(Gradient):
    """Automatic differentiation through the steps as they were taken.

    Exact for the discretisation; memory grows with the number of steps; forward mode works too.
    """

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        plan = inputs.plan(plan)
        answers = Answers()

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            request = recorder.request(carry, attempt)
            if request is not None:
                answers.add(recorder.serve(plan, attempt, after, request), attempt.at.y)

        observe_or_not = observe if recorder.wants or plan.watch is not None else None
        carry = loop(plan, begin(plan, inputs.y, dt, grad=torch.is_grad_enabled()), observe_or_not)
        return Outcome(carry.y, *answers.stacked(), carry.origin, carry)
