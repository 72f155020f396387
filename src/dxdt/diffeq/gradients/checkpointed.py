"""Gradients by forming the accepted steps again: all their starts stored, or a few.

The tape of a solve holds the clocks of its accepted steps and what was asked of them (a few numbers
a step); the states, which cost the memory, are stored all or by a schedule (see ``schedule``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.gradients.checkpoint_slots import OnlineSlots, split
from dxdt.diffeq.gradients.closure_tensors import captured
from dxdt.diffeq.gradients.conditions import Conditions
from dxdt.diffeq.gradients.cotangents import Cotangents, added, vjp_of
from dxdt.diffeq.gradients.gradient import Answers, Compiled, Direct, Gradient, Inputs, Loop, Outcome, Outputs, Problem
from dxdt.diffeq.loop.plan import NOTHING, After, Attempt, Carry, Plan, Point, choose_state
from dxdt.diffeq.loop.saving import Recorder, Request, Served
from dxdt.diffeq.loop.start import begin, start
from dxdt.diffeq.loop.step import propose, settle
from dxdt.diffeq.methods.solver import State
from dxdt.ops.times import Ticks

__all__ = ["Begun", "Checkpointed", "Task", "Taped", "recomputed"]

_EMPTY = torch.empty(0)


@final
@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Store where accepted steps begin, and form each step again on the way back.

    Exact for the discretisation. Without ``slots`` memory is one state per accepted step and the
    graph of one step; with it, at most ``slots`` states whatever the number of steps, which need
    not be known beforehand (and on the way back as many that are formed again), at the price of
    taking steps again: each at most once while there are fewer than (slots + 1)(slots + 2)/2,
    logarithmically often beyond.

    The field must be a function of (t, y), args, the parameters of the equation's modules and
    ``params``; any other tensor that requires a gradient is an error.

    Args:
        slots: states to keep at most (None: all).
    """

    slots: int | None = None

    def __post_init__(self) -> None:
        if self.slots is not None:
            OnlineSlots(self.slots)

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        return recomputed(Task(loop, plan, inputs, dt, recorder, self.slots))

    def compiled(self, ways: Compiled, problem: Problem) -> Outcome | None:
        return ways.stored(self, problem) if self.slots is None else None


def recomputed(task: Task) -> Outcome:
    """Solve; the outcome is differentiable by the task, where a derivative is wanted."""
    plan, inputs = task.plan, task.inputs
    tensors = inputs.tensors()
    if torch.is_grad_enabled():
        captured(plan, inputs)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        with torch.no_grad():
            return Direct().run(task.loop, plan, inputs, task.dt, task.recorder)
    y, values, starts, coefficients, times, origin = _Function.apply(task, *tensors)
    assert task.carry is not None
    return Outcome(y, values, starts, coefficients, times, origin, task.carry)


class Taped(NamedTuple):
    """One accepted step without its tensors: the clocks of its attempt, and what was asked of it."""

    attempt: Attempt
    request: Request | None


class Begun(NamedTuple):
    """Where a step begins: state, solver state, origin, and where idle rows are parked."""

    y: Tensor
    solver: State
    origin: Tensor | None
    park: tuple[Tensor, State] | None = None


@dataclass(eq=False)
class Task:
    """A solve whose accepted steps are on a tape.

    Attributes:
        tape: a sequence of ``Taped``.
        again: steps taken again on the way back so far, those that are then differentiated apart.
        conditions: under which the solve was made.
    """

    loop: Loop
    plan: Plan
    inputs: Inputs
    dt: Ticks | None
    recorder: Recorder
    slots: int | None
    tape: Any = field(default_factory=list)
    states: dict[int, Begun] = field(default_factory=dict)
    carry: Carry | None = None
    again: int = 0
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        self.conditions = Conditions.of(self.plan, self.inputs)

    def forward(self) -> Outputs:
        inputs = self.inputs.constant()
        plan = inputs.plan(self.plan)
        answers = Answers()
        online = None if self.slots is None else OnlineSlots(self.slots)
        before = begin(plan, inputs.y, self.dt, grad=True)

        def observe(carry: Carry, attempt: Attempt, after: After) -> None:
            nonlocal before
            now, before = before, carry
            if not attempt.ok.any():
                return
            request = self.recorder.request(carry, attempt)
            if request is not None:
                answers.add(self.recorder.serve(plan, attempt, after, request), attempt.at.y)
            self.enter(now, attempt, request, online)

        carry = self.loop(plan, before, observe)
        # Detached, because the outputs hold this task through their graph: a cycle would leak.
        origin = None if carry.origin is None else carry.origin.detach()
        self.carry = carry._replace(y=carry.y.detach(), park=None, origin=origin)
        before = self.carry
        self.conditions.settle()
        return carry.y, *answers.stacked(), carry.origin

    def enter(self, now: Carry, attempt: Attempt, request: Request | None, online: OnlineSlots | None) -> None:
        """Put an accepted step on the tape, and its start where states are kept."""
        self._keep(len(self.tape), now, attempt, online)
        self.tape.append(Taped(_light(attempt, now), request))

    def _keep(self, index: int, now: Carry, attempt: Attempt, online: OnlineSlots | None) -> None:
        if online is None:
            self.states[index] = Begun(attempt.at.y, attempt.at.solver, attempt.origin)
            return
        gone = online.offer(index)
        if gone != index:
            assert now.park is not None
            park = (now.y, now.solver) if attempt.ok.all() else (now.park.y, now.park.solver)
            self.states[index] = Begun(now.y, now.solver, now.origin, park)
        if gone is not None and gone != index:
            del self.states[gone]

    def redo(
        self, plan: Plan, recorder: Recorder, tape: Taped, begun: Begun, serve: bool = True
    ) -> tuple[After, Served]:
        """A step from its start: what follows it, and the answers."""
        light, request = tape
        attempt = light._replace(at=light.at._replace(y=begun.y, solver=begun.solver), origin=begun.origin)
        attempt = attempt._replace(step=propose(plan, attempt))
        after = settle(plan, attempt)
        if request is None or not serve:
            return after, Served(None, None, None)
        return after, recorder.serve(plan, attempt, after, request)

    def replay(self, inputs: Inputs) -> Outputs:
        """The recorded steps once more, as one differentiable function of the inputs."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        answers = Answers()
        now = self._beginning(plan, inputs.y)
        for tape in self.tape:
            safe = _safe(plan, tape.attempt, now)
            after, served = self.redo(plan, recorder, tape, safe)
            answers.add(served, safe.y)
            now = _following(plan, tape.attempt, now, safe, after)
        return now.y, *answers.stacked(), now.origin

    def _beginning(self, plan: Plan, y: Tensor) -> Begun:
        assert self.carry is not None
        origin = None
        if plan.ends is not None:
            origin = plan.ends.t0
        elif self.carry.origin is not None:
            origin = torch.as_tensor(plan.span.t0, device=y.device).reshape(-1)
        solver = start(plan, plan.span.t0 if plan.ends is None else plan.ends.t0, y)
        return Begun(y, solver, origin, (y, solver))

    def backwards(self, plan: Plan) -> Iterator[tuple[Taped, Begun]]:
        """The accepted steps from last to first, each with where it began."""
        stack = dict(self.states)
        for index in range(len(self.tape) - 1, -1, -1):
            while index not in stack:
                self._refill(plan, stack, index)
            yield self.tape[index], _safe(plan, self.tape[index].attempt, stack.pop(index))

    def _refill(self, plan: Plan, stack: dict[int, Begun], index: int) -> None:
        """Form states again between the last checkpoint and ``index``, as the free slots allow."""
        last = max(i for i in stack if i < index)
        assert self.slots is not None
        free = self.slots - len(stack)
        target = index if free <= 0 else last + split(index - last + 1, free + 1)
        now = stack[last]
        with torch.no_grad():
            for i in range(last, target):
                tape = self.tape[i]
                safe = _safe(plan, tape.attempt, now)
                after, _ = self.redo(plan, self.recorder, tape, safe, serve=False)
                now = _following(plan, tape.attempt, now, safe, after)
                self.again += 1
        stack[target] = now

    def pull(self, inputs: Inputs, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the outputs, step by step."""
        plan, recorder = inputs.plan(self.plan), replace(self.recorder, moments=inputs.moments)
        choose = plan.span.clock.choose
        assert self.carry is not None
        shared = [x for x in inputs.tensors()[1:] if x.requires_grad]
        totals: list[Tensor | None] = [None] * len(shared)
        cots = Cotangents.of(given, self.carry)
        for tape, safe in self.backwards(plan):
            begun = _leaves(safe)
            with torch.enable_grad():
                after, served = self.redo(plan, recorder, tape, begun)
            outs, pulls, path = cots.of_step(plan, tape.attempt.ok, after, served)
            entries = [begun.y, *begun.solver, *(() if begun.origin is None else (begun.origin,))]
            pulled = vjp_of(outs, [*entries, *shared], pulls)
            back = [torch.zeros_like(x) if g is None else g for g, x in zip(pulled, entries, strict=False)]
            if path is not None:
                back[0] = back[0] + path
            cots.enter([choose(tape.attempt.ok, new, old) for new, old in zip(back, cots.entries(), strict=True)])
            totals = [added(a, b) for a, b in zip(totals, pulled[len(entries) :], strict=True)]
        return self._pull_start(plan, inputs, cots, shared, totals)

    def _pull_start(
        self,
        plan: Plan,
        inputs: Inputs,
        cots: Cotangents,
        shared: list[Tensor],
        totals: list[Tensor | None],
    ) -> list[Tensor | None]:
        gy = cots.y
        if cots.solver:
            y = inputs.y.detach().requires_grad_()
            with torch.enable_grad():
                state = self._beginning(plan, y).solver
            pulled = vjp_of(list(state), [y, *shared], list(cots.solver))
            gy = gy if pulled[0] is None else gy + pulled[0]
            totals = [added(a, b) for a, b in zip(totals, pulled[1:], strict=True)]
        rest = iter(totals)
        out: list[Tensor | None] = [
            gy,
            *(next(rest) if x.requires_grad else None for x in inputs.tensors()[1:]),
        ]
        if inputs.ends is not None and inputs.ends.t0.requires_grad and cots.origin is not None:
            out[1] = added(out[1], cots.origin)
        return out


def _light(attempt: Attempt, now: Carry) -> Attempt:
    """An attempt without its tensors; idle rows stand still where they are parked."""
    at, ok = attempt.at, attempt.ok
    t, dt = at.t, at.dt
    if not ok.all():
        assert now.park is not None
        donor = int(np.flatnonzero(ok)[0])
        t = np.where(ok, t, np.where(now.accepted > 0, now.park.t, t[donor]))
        dt = np.where(ok, dt, 0.0)
    return attempt._replace(at=Point(t, dt, _EMPTY, ()), step=NOTHING, origin=None)


def _safe(plan: Plan, attempt: Attempt, now: Begun) -> Begun:
    """``now`` with idle rows where a derivative is harmless: parked, or where another row began."""
    ok = attempt.ok
    if ok.all() or now.park is None:
        return now
    choose = plan.span.clock.choose
    moved, donor = attempt.index > 0, int(np.flatnonzero(ok)[0])
    rows = np.where(moved, np.arange(len(ok)), donor)
    y = choose(ok, now.y, choose(moved, now.park[0], now.y[rows]))
    idle = choose_state(plan, moved, now.park[1], tuple(s[rows] for s in now.solver))
    return Begun(y, choose_state(plan, ok, now.solver, idle), now.origin, now.park)


def _following(plan: Plan, attempt: Attempt, now: Begun, safe: Begun, after: After) -> Begun:
    """Where the next step begins."""
    choose, ok = plan.span.clock.choose, attempt.ok
    origin = now.origin if after.origin is None or now.origin is None else choose(ok, after.origin, now.origin)
    park = None
    if now.park is not None:
        park = choose(ok, safe.y, now.park[0]), choose_state(plan, ok, safe.solver, now.park[1])
    return Begun(choose(ok, after.y, now.y), choose_state(plan, ok, after.solver, now.solver), origin, park)


def _leaves(begun: Begun) -> Begun:
    origin = None if begun.origin is None else begun.origin.detach().requires_grad_()
    return Begun(
        begun.y.detach().requires_grad_(),
        tuple(s.detach().requires_grad_() for s in begun.solver),
        origin,
    )


class _Function(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: Task, *tensors: Tensor) -> Any:
        ctx.task = task
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return task.forward()

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        task: Task = ctx.task
        with task.conditions.held():
            saved = ctx.saved_tensors
            if torch.is_grad_enabled():
                return (None, *_pull_again(task, saved, given))
            params = len(task.inputs.params)
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in saved[: len(saved) - params]]
            inputs = task.inputs.rebuilt([*leaves, *saved[len(saved) - params :]])
            return (None, *task.pull(inputs, given))


def _pull_again(task: Task, saved: tuple[Tensor, ...], given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Cotangents that can be differentiated again: through the whole record at once."""
    outs = task.replay(task.inputs.rebuilt(saved))
    pairs = [(o, g) for o, g in zip(outs, given, strict=True) if o is not None and g is not None]
    wanted = [x for x in saved if x.requires_grad]
    pulled = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(pulled) if x.requires_grad else None for x in saved]
