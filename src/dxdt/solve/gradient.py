"""How to differentiate a solve.

Every rule differentiates the record of accepted steps (t, dt, y per row), never the controller or
the choice of what to accept; rows contribute exactly zero once they have ended or failed. A rule
receives the loop and the plan: it runs the one and never imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from dxdt.ops.clock import Ticks
from dxdt.ops.tree import flatten, tree_map
from dxdt.solve.loop import Attempt, Carry, Ends, Plan, begin, choose_state, propose, renew
from dxdt.solve.record import Recorder, Request, Served
from dxdt.solve.solver import State, Step

__all__ = ["Checkpointed", "Direct", "Gradient", "Inputs", "Outcome", "captured"]

Loop = Callable[[Plan, Carry, Callable[[Carry, Attempt], Any]], Carry]


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
        args = tuple(x for x in flatten(self.args)[0] if _differentiable(x))
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

    def plan(self, plan: Plan) -> Plan:
        """A plan that reads these inputs."""
        return replace(plan, equation=replace(plan.equation, args=self.args), ends=self.ends)


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


class Outcome(NamedTuple):
    """What a rule returns: the final rows, and the answers to all requests in order.

    Attributes:
        y: final rows ``(R, n)``.
        values: answers ``(N, n)``, or None where nothing was asked.
        starts, coefficients: the path, ``(K, R, n)`` and ``(K, degree, R, n)``, or None.
        carry: the final carry.
    """

    y: Tensor
    values: Tensor | None
    starts: Tensor | None
    coefficients: Tensor | None
    carry: Carry


class Gradient(ABC):
    """A rule for differentiating a solve."""

    @abstractmethod
    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        """Solve, so that the outcome is differentiable in the inputs."""


@dataclass
class _Answers:
    """Answers of the steps seen so far."""

    values: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    coefficients: list[Tensor] = field(default_factory=list)

    def add(self, served: Served, y: Tensor) -> None:
        if served.values is not None:
            self.values.append(served.values)
        if served.coefficients is not None:
            self.starts.append(y)
            self.coefficients.append(served.coefficients)

    def stacked(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values = torch.cat(self.values) if self.values else None
        if not self.coefficients:
            return values, None, None
        return values, torch.stack(self.starts), torch.stack(self.coefficients)


@final
@dataclass(frozen=True)
class Direct(Gradient):
    """Automatic differentiation through the steps as they were taken.

    Exact for the discretisation; memory grows with the number of steps; forward mode works too.
    """

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        plan = inputs.plan(plan)
        answers = _Answers()

        def observe(carry: Carry, attempt: Attempt) -> None:
            if recorder.wants:
                request = recorder.request(carry, attempt)
                if request is not None:
                    answers.add(recorder.serve(plan, attempt, request), attempt.at.y)

        carry = loop(plan, begin(plan, inputs.y, dt, grad=torch.is_grad_enabled()), observe)
        return Outcome(carry.y, *answers.stacked(), carry)


class _Tape(NamedTuple):
    """One accepted step: its attempt without the proposal, and what was asked of it."""

    attempt: Attempt
    request: Request | None


@final
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Store where accepted steps begin, and form each step again on the way back.

    Exact for the discretisation; memory is the states, one per accepted step, and the graph of one
    step. The field must be a function of (t, y), args, the parameters of the equation's modules
    and ``params``; any other tensor that requires a gradient is an error.
    """

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        tensors = inputs.tensors()
        if torch.is_grad_enabled():
            captured(plan, inputs)
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            with torch.no_grad():
                return Direct().run(loop, plan, inputs, dt, recorder)
        task = _Task(loop, plan, inputs, dt, recorder)
        y, values, starts, coefficients = _Function.apply(task, *tensors)  # pyright: ignore[reportGeneralTypeIssues]
        assert task.carry is not None
        return Outcome(y, values, starts, coefficients, task.carry)


@dataclass(eq=False)
class _Task:
    """A solve whose accepted steps are on a tape."""

    loop: Loop
    plan: Plan
    inputs: Inputs
    dt: Ticks | None
    recorder: Recorder
    tape: list[_Tape] = field(default_factory=list)
    carry: Carry | None = None

    def forward(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        plan = self.inputs.plan(self.plan)
        answers = _Answers()

        def observe(carry: Carry, attempt: Attempt) -> None:
            if not attempt.ok.any():
                return
            request = self.recorder.request(carry, attempt) if self.recorder.wants else None
            if request is not None:
                answers.add(self.recorder.serve(plan, attempt, request), attempt.at.y)
            light = attempt._replace(step=Step(attempt.at.y, None, (), ()))
            self.tape.append(_Tape(light, request))

        carry = self.loop(plan, begin(plan, self.inputs.y, self.dt, grad=True), observe)
        # Detached, because the outputs hold this task through their graph: a cycle would leak.
        self.carry = carry._replace(y=carry.y.detach(), park=None)
        return carry.y, *answers.stacked()

    def redo(self, plan: Plan, recorder: Recorder, tape: _Tape, y: Tensor, solver: State) -> tuple[Step, State, Served]:
        """A step from its start: the proposal, the solver state that follows, the answers."""
        light, request = tape
        attempt = light._replace(at=light.at._replace(y=y, solver=solver))
        step = propose(plan, attempt.at, light.first, light.last, light.index)
        state = step.state
        if light.jumped is not None:
            state = renew(plan, light.jumped, light.landed, step.y, state)
        served = Served(None, None)
        if request is not None:
            served = recorder.serve(plan, attempt._replace(step=step), request)
        return step, state, served

    def replay(self, inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The recorded steps once more, as one differentiable function of the inputs."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        clock, answers = plan.span.clock, _Answers()
        y, solver = inputs.y, self._start(plan, inputs.y)
        for tape in self.tape:
            ok, at = tape.attempt.ok, tape.attempt.at
            begun = clock.choose(ok, y, at.y), choose_state(plan, ok, solver, at.solver)
            step, state, served = self.redo(plan, recorder, tape, *begun)
            answers.add(served, begun[0])
            y, solver = clock.choose(ok, step.y, y), choose_state(plan, ok, state, solver)
        return y, *answers.stacked()

    def _start(self, plan: Plan, y: Tensor) -> State:
        t0 = plan.span.t0 if plan.ends is None else plan.ends.t0
        return plan.solver.init(plan.equation, t0, y, plan.dense)

    def pull(self, inputs: Inputs, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of (y, values, starts, coefficients), step by step."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        clock = plan.span.clock
        gy, gvalues, gstarts, gcoefficients = given
        assert self.carry is not None
        gy = torch.zeros_like(inputs.y) if gy is None else gy
        gsolver: State = tuple(torch.zeros_like(s) for s in self.carry.solver)
        shared = [x for x in inputs.tensors()[1:] if x.requires_grad]
        totals: list[Tensor | None] = [None] * len(shared)
        used = 0 if gvalues is None else gvalues.shape[0]
        level = len(self.tape)
        for tape in reversed(self.tape):
            level -= 1
            ok, at = tape.attempt.ok, tape.attempt.at
            y = at.y.detach().requires_grad_()
            solver = tuple(s.detach().requires_grad_() for s in at.solver)
            with torch.enable_grad():
                step, state, served = self.redo(plan, recorder, tape, y, solver)
            outs, cots = [step.y, *state], [_masked(clock, ok, g) for g in (gy, *gsolver)]
            if served.values is not None and gvalues is not None:
                outs.append(served.values)
                cots.append(gvalues[used - len(served.values) : used])
                used -= len(served.values)
            gstart = None
            if served.coefficients is not None and gcoefficients is not None:
                outs.append(served.coefficients)
                mask = torch.as_tensor(ok, device=gy.device).reshape(-1, 1)
                cots.append(torch.where(mask, gcoefficients[level], 0.0))
                gstart = None if gstarts is None else torch.where(mask, gstarts[level], 0.0)
            pulled = _vjp(outs, [y, *solver, *shared], cots)
            back = [torch.zeros_like(x) if g is None else g for g, x in zip(pulled, (y, *solver), strict=False)]
            if gstart is not None:
                back[0] = back[0] + gstart
            gy, *rest = (clock.choose(ok, new, old) for new, old in zip(back, (gy, *gsolver), strict=True))
            gsolver = tuple(rest)
            totals = [_add(a, b) for a, b in zip(totals, pulled[len(back) :], strict=True)]
        return self._pull_start(plan, inputs, gy, gsolver, shared, totals)

    def _pull_start(
        self, plan: Plan, inputs: Inputs, gy: Tensor, gsolver: State, shared: list[Tensor], totals: list[Tensor | None]
    ) -> list[Tensor | None]:
        if gsolver:
            y = inputs.y.detach().requires_grad_()
            with torch.enable_grad():
                state = self._start(plan, y)
            pulled = _vjp(list(state), [y, *shared], list(gsolver))
            gy = gy if pulled[0] is None else gy + pulled[0]
            totals = [_add(a, b) for a, b in zip(totals, pulled[1:], strict=True)]
        rest = iter(totals)
        return [gy, *(next(rest) if x.requires_grad else None for x in inputs.tensors()[1:])]


class _Function(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Tensor) -> Any:
        ctx.task = task
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return task.forward()

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        task: _Task = ctx.task
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *_pull_again(task, saved, given))
        params = len(task.inputs.params)
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in saved[: len(saved) - params]]
        inputs = task.inputs.rebuilt([*leaves, *saved[len(saved) - params :]])
        return (None, *task.pull(inputs, given))


def _pull_again(task: _Task, saved: tuple[Tensor, ...], given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Cotangents that can be differentiated again: through the whole record at once."""
    outs = task.replay(task.inputs.rebuilt(saved))
    pairs = [(o, g) for o, g in zip(outs, given, strict=True) if o is not None and g is not None]
    wanted = [x for x in saved if x.requires_grad]
    pulled = iter(
        torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return [next(pulled) if x.requires_grad else None for x in saved]


def _masked(clock: Any, ok: Ticks, g: Tensor) -> Tensor:
    return clock.choose(ok, g, torch.zeros_like(g)) if not ok.all() else g


def _vjp(outs: list[Tensor], inputs: list[Tensor], cots: list[Tensor]) -> list[Tensor | None]:
    live = [(o, c) for o, c in zip(outs, cots, strict=True) if o.requires_grad]
    if not live:
        return [None] * len(inputs)
    return list(torch.autograd.grad([o for o, _ in live], inputs, [c for _, c in live], allow_unused=True))


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def captured(plan: Plan, inputs: Inputs) -> None:
    """Walk the graph of one evaluation, and refuse what a recomputing rule would lose.

    Raises:
        ValueError: the field uses a tensor that requires a gradient and is not an input of the
            solve, or draws random numbers (a second evaluation would differ).
    """
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs.tensors()]
    params = len(inputs.params)
    inputs = inputs.rebuilt([*leaves[: len(leaves) - params], *inputs.params])
    plan = inputs.plan(plan)
    y = inputs.y.detach().requires_grad_()
    before = torch.get_rng_state()
    with torch.enable_grad():
        values = plan.equation.probe(plan.span.t0, y)
    if not torch.equal(before, torch.get_rng_state()):
        raise ValueError(
            "the field draws random numbers (dropout?), so forming its steps again would give other values: "
            "call .eval() on it, or use gradient=dxdt.Direct()"
        )
    known = {id(x) for x in (y, *inputs.tensors())}
    for leaf in _leaves_of(values):
        if id(leaf) not in known:
            raise ValueError(
                f"the field uses a tensor of shape {tuple(leaf.shape)} that requires a gradient but is not an input of "
                f"the solve, so its gradient would be lost: pass it in args=, list it in params=, make it a parameter "
                f"of the field's module, or use gradient=dxdt.Direct()"
            )


def _leaves_of(values: Iterable[Tensor]) -> Iterable[Tensor]:
    """Tensors that a graph ends in."""
    stack = [v.grad_fn for v in values if v.grad_fn is not None]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        stack.extend(n for n, _ in node.next_functions if n is not None)
