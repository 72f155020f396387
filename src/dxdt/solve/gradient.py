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
from dxdt.solve.loop import After, Attempt, Carry, Ends, Plan, begin, choose_state, propose, settle
from dxdt.solve.record import Recorder, Request, Served
from dxdt.solve.solver import State, Step

__all__ = ["Checkpointed", "Direct", "Gradient", "Inputs", "Outcome", "captured"]

_NOTHING = Step(torch.empty(0), None, (), ())

Loop = Callable[[Plan, Carry, Callable[[Carry, Attempt, After], Any]], Carry]


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
        starts, coefficients, times = (torch.stack(x) if x else None for x in (self.starts, self.coefficients, self.times))
        return values, starts, coefficients, times


@final
@dataclass(frozen=True)
class Direct(Gradient):
    """Automatic differentiation through the steps as they were taken.

    Exact for the discretisation; memory grows with the number of steps; forward mode works too.
    """

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        plan = inputs.plan(plan)
        answers = _Answers()

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            request = recorder.request(carry, attempt)
            if request is not None:
                answers.add(recorder.serve(plan, attempt, after, request), attempt.at.y)

        observe_or_not = observe if recorder.wants or plan.watch is not None else _ignore
        carry = loop(plan, begin(plan, inputs.y, dt, grad=torch.is_grad_enabled()), observe_or_not)
        return Outcome(carry.y, *answers.stacked(), carry.origin, carry)


def _ignore(carry: Carry, attempt: Attempt, after: After) -> None:
    """Nothing is asked of the steps."""


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
        outputs = _Function.apply(task, *tensors)
        assert task.carry is not None
        return Outcome(*outputs, task.carry)


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

    def forward(self) -> Outputs:
        plan = self.inputs.plan(self.plan)
        answers = _Answers()

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            if not attempt.ok.any():
                return
            request = self.recorder.request(carry, attempt)
            if request is not None:
                answers.add(self.recorder.serve(plan, attempt, after, request), attempt.at.y)
            self.tape.append(_Tape(attempt._replace(step=_NOTHING), request))

        carry = self.loop(plan, begin(plan, self.inputs.y, self.dt, grad=True), observe)
        # Detached, because the outputs hold this task through their graph: a cycle would leak.
        origin = None if carry.origin is None else carry.origin.detach()
        self.carry = carry._replace(y=carry.y.detach(), park=None, origin=origin)
        return carry.y, *answers.stacked(), carry.origin

    def redo(self, plan: Plan, recorder: Recorder, tape: _Tape, begun: _Begun) -> tuple[After, Served]:
        """A step from its start: what follows it, and the answers."""
        light, request = tape
        at = light.at._replace(y=begun.y, solver=begun.solver)
        attempt = light._replace(at=at, origin=begun.origin)
        attempt = attempt._replace(step=propose(plan, attempt))
        after = settle(plan, attempt)
        if request is None:
            return after, Served(None, None, None)
        return after, recorder.serve(plan, attempt, after, request)

    def replay(self, inputs: Inputs) -> Outputs:
        """The recorded steps once more, as one differentiable function of the inputs."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        choose, answers = plan.span.clock.choose, _Answers()
        now = _Begun(inputs.y, self._start(plan, inputs.y), self._origin(plan))
        for tape in self.tape:
            ok, at = tape.attempt.ok, tape.attempt.at
            begun = _Begun(choose(ok, now.y, at.y), choose_state(plan, ok, now.solver, at.solver), now.origin)
            after, served = self.redo(plan, recorder, tape, begun)
            answers.add(served, begun.y)
            origin = now.origin if after.origin is None or now.origin is None else choose(ok, after.origin, now.origin)
            now = _Begun(choose(ok, after.y, now.y), choose_state(plan, ok, after.solver, now.solver), origin)
        return now.y, *answers.stacked(), now.origin

    def _origin(self, plan: Plan) -> Tensor | None:
        if plan.ends is not None:
            return plan.ends.t0
        assert self.carry is not None
        if self.carry.origin is None:
            return None
        return torch.as_tensor(plan.span.t0, device=self.carry.origin.device).reshape(-1)

    def _start(self, plan: Plan, y: Tensor) -> State:
        t0 = plan.span.t0 if plan.ends is None else plan.ends.t0
        return plan.solver.init(plan.equation, t0, y, plan.dense)

    def pull(self, inputs: Inputs, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the outputs, step by step."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        choose = plan.span.clock.choose
        assert self.carry is not None
        shared = [x for x in inputs.tensors()[1:] if x.requires_grad]
        totals: list[Tensor | None] = [None] * len(shared)
        cots = _Cotangents.of(given, self.carry)
        for tape in reversed(self.tape):
            ok, at, origin = tape.attempt.ok, tape.attempt.at, tape.attempt.origin
            begun = _Begun(*_leaves((at.y, at.solver, origin)))
            with torch.enable_grad():
                after, served = self.redo(plan, recorder, tape, begun)
            outs, pulls, start = cots.of_step(plan, ok, after, served)
            entries = [begun.y, *begun.solver, *(() if begun.origin is None else (begun.origin,))]
            pulled = _vjp(outs, [*entries, *shared], pulls)
            back = [torch.zeros_like(x) if g is None else g for g, x in zip(pulled, entries, strict=False)]
            if start is not None:
                back[0] = back[0] + start
            kept = [choose(ok, new, old) for new, old in zip(back, cots.entries(), strict=True)]
            cots.enter(kept)
            totals = [_add(a, b) for a, b in zip(totals, pulled[len(entries) :], strict=True)]
        return self._pull_start(plan, inputs, cots, shared, totals)

    def _pull_start(
        self, plan: Plan, inputs: Inputs, cots: _Cotangents, shared: list[Tensor], totals: list[Tensor | None]
    ) -> list[Tensor | None]:
        gy = cots.y
        if cots.solver:
            y = inputs.y.detach().requires_grad_()
            with torch.enable_grad():
                state = self._start(plan, y)
            pulled = _vjp(list(state), [y, *shared], list(cots.solver))
            gy = gy if pulled[0] is None else gy + pulled[0]
            totals = [_add(a, b) for a, b in zip(totals, pulled[1:], strict=True)]
        rest = iter(totals)
        out: list[Tensor | None] = [gy, *(next(rest) if x.requires_grad else None for x in inputs.tensors()[1:])]
        if inputs.ends is not None and inputs.ends.t0.requires_grad and cots.origin is not None:
            out[1] = _add(out[1], cots.origin)
        return out


class _Begun(NamedTuple):
    """Where a step begins, as differentiable tensors."""

    y: Tensor
    solver: State
    origin: Tensor | None


def _leaves(begun: tuple[Tensor, State, Tensor | None]) -> _Begun:
    y, solver, origin = begun
    origin = None if origin is None else origin.detach().requires_grad_()
    return _Begun(y.detach().requires_grad_(), tuple(s.detach().requires_grad_() for s in solver), origin)


@dataclass
class _Cotangents:
    """Cotangents on the way back: of what a step hands on, and of the answers still to be met."""

    y: Tensor
    solver: State
    origin: Tensor | None
    values: Tensor | None
    starts: Tensor | None
    coefficients: Tensor | None
    times: Tensor | None
    used: int
    level: int
    event: int

    @classmethod
    def of(cls, given: tuple[Tensor | None, ...], carry: Carry) -> _Cotangents:
        y, values, starts, coefficients, times, origin = given
        y = torch.zeros_like(carry.y) if y is None else y
        if carry.origin is not None and origin is None:
            origin = torch.zeros_like(carry.origin)
        lengths = (0 if x is None else x.shape[0] for x in (values, coefficients, times))
        solver = tuple(torch.zeros_like(s) for s in carry.solver)
        return cls(y, solver, origin, values, starts, coefficients, times, *lengths)

    def entries(self) -> list[Tensor]:
        return [self.y, *self.solver, *(() if self.origin is None else (self.origin,))]

    def enter(self, kept: list[Tensor]) -> None:
        self.y = kept[0]
        self.solver = tuple(kept[1 : 1 + len(self.solver)])
        self.origin = None if self.origin is None else kept[-1]

    def of_step(
        self, plan: Plan, ok: Ticks, after: After, served: Served
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Outputs of a step, their cotangents, and the cotangent of its start as a value of the path."""
        outs = [after.y, *after.solver, *(() if after.origin is None else (after.origin,))]
        pulls = [_masked(plan, ok, g) for g in self.entries()]
        if served.values is not None and self.values is not None:
            outs.append(served.values)
            pulls.append(self.values[self.used - len(served.values) : self.used])
            self.used -= len(served.values)
        if served.time is not None and self.times is not None:
            self.event -= 1
            outs.append(served.time)
            pulls.append(_masked(plan, ok, self.times[self.event]))
        start = None
        if served.coefficients is not None and self.coefficients is not None:
            self.level -= 1
            mask = torch.as_tensor(ok, device=self.y.device).reshape(-1, 1)
            outs.append(served.coefficients)
            pulls.append(torch.where(mask, self.coefficients[self.level], 0.0))
            start = None if self.starts is None else torch.where(mask, self.starts[self.level], 0.0)
        return outs, pulls, start


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


def _masked(plan: Plan, ok: Ticks, g: Tensor) -> Tensor:
    return g if ok.all() else plan.span.clock.choose(ok, g, torch.zeros_like(g))


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
        if plan.watch is not None:
            values = (*values, *plan.watch.probe(plan.span.t0, y))
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
