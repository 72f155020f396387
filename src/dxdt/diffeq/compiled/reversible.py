"""``Reversible`` compiled: of the forward solve only clocks are kept, and a program walks back along them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.compiled.checkpointed import Entry, detached, entries, first_only, look
from dxdt.diffeq.compiled.forward import Forward, check_field, compilable, undone
from dxdt.diffeq.compiled.reverse_walk import Walked, WalkProgram, WalkShape
from dxdt.diffeq.gradients.conditions import Conditions
from dxdt.diffeq.gradients.cotangents import vjp_of
from dxdt.diffeq.gradients.gradient import Inputs, Outcome, Problem
from dxdt.diffeq.gradients.reversible import LOST, Reversible, missed
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.loop.start import start
from dxdt.diffeq.programs.engine import Chunk, Records, program
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.predrawn import redrawn
from dxdt.diffeq.programs.pullback import Holder, hold
from dxdt.diffeq.programs.signature import Form, fields_of
from dxdt.ops.times import beside

__all__ = ["walked_back"]


def walked_back(gradient: Reversible, problem: Problem) -> Outcome:
    """A compiled solve whose outcome is differentiable by walking back along its steps.

    Raises:
        CannotCompile: the solve, its field or the walk has no compiled form.
    """
    plan, inputs, dt, recorder = problem
    with undone(plan, recorder):
        gradient.check(plan)
        compilable(plan)
        if plan.watch is not None or plan.controller.jumps:
            raise CannotCompile("a walk back across events and jumps of the field has no compiled form")
        if plan.equation.layout.device.type != "cpu":
            raise CannotCompile("a walk back is compiled on the CPU only")
        if inputs.ends is not None or inputs.moments is not None:
            raise CannotCompile("derivatives for times by Reversible() have no compiled form yet")
        check_field(plan, inputs.y)
        look(plan, inputs, gradient)
        task = _Task(plan, inputs, dt, recorder)
        y, values, starts, coefficients = _Function.apply(task, *inputs.tensors())
    assert task.outcome is not None
    return Outcome(y, values, starts, coefficients, None, None, task.outcome.carry)


@dataclass(eq=False)
class _Task:
    plan: Plan
    inputs: Inputs
    dt: Any
    recorder: Recorder
    forward: Forward = field(init=False)
    outcome: Outcome | None = None
    program: WalkProgram = field(init=False)
    holder: Holder = field(init=False)
    names: tuple[str, ...] = field(init=False)
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        equation, plan = self.plan.equation, self.plan
        self.conditions = Conditions.of(plan, self.inputs)
        self.holder, self.names = hold(fields_of(equation.equation), equation.modules(), self.inputs.params)
        shape = WalkShape(plan.solver, equation.layout, Form.of(equation), identified(plan), plan.dense)
        self.program = program(shape, WalkProgram)
        self.forward = Forward(plan, self.recorder, keep=True, lighter=self._clocks)

    def _clocks(self, chunk: Chunk) -> Chunk:
        """A chunk without its states: zeros that take no memory stand for them."""
        records, used = chunk.records, chunk.used
        assert records is not None
        t, dt, end = (x[:used].clone() for x in records[:3])
        zero = records.y.new_zeros(())
        coefficients = None if records.coefficients is None else zero.expand(used, *records.coefficients.shape[1:])
        light = Records(t, dt, end, zero.expand(used, *records.y.shape[1:]), coefficients)
        path = self.plan.equation.noise
        return chunk._replace(records=light, noise=None if path is None else redrawn(path, chunk.noise))

    def solve(self) -> tuple[Tensor | None, ...]:
        outcome = self.forward.run(self.inputs.y.detach(), self.dt)
        for read in self.forward.tape:
            read.hand_over()
        # Detached, because the outputs hold this task through their graph: a cycle would leak.
        carry = outcome.carry._replace(y=outcome.y.detach())
        self.outcome = outcome._replace(values=None, starts=None, coefficients=None, carry=carry, y=carry.y)
        return outcome.y, outcome.values, outcome.starts, outcome.coefficients

    def pull(self, saved: tuple[Tensor, ...], given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs from those of the outputs."""
        assert self.outcome is not None
        carry, shared = self.outcome.carry, tuple([x.detach() for x in saved[1:]])
        lost = np.isin(np.atleast_1d(carry.status), [s.code for s in LOST])
        given = self._found(given, lost)
        ended = (carry.y, *carry.solver)
        cots = tuple([torch.zeros_like(x) for x in ended])
        if given[0] is not None:
            cots = (given[0].contiguous(), *cots[1:])
        totals = tuple([torch.zeros_like(x) for x in shared])
        fixed = self.holder, detached(self.plan.equation.args), self.names, shared
        for entry in entries(self.forward.tape, given, None, exact=True, numbered=True):
            steps, noise = _walked(entry, lost), entry.noise
            if steps is None:
                continue
            (last,), drawn = beside(steps.t, np.array(len(steps.t) - 1)), None if noise is None else noise()
            ended, cots, totals = self.program.walk(*fixed, steps.any_length(), last, ended, cots, totals, drawn)
        y0 = saved[0].detach()
        missed(torch.where(beside(y0, lost)[0][:, None], y0, ended[0]), self.plan, y0)
        gy, found = self._begun(y0, saved[1:], cots)
        sums = [a if b is None else a + b for a, b in zip(totals, found, strict=True)]
        return [gy, *[g if x.requires_grad else None for g, x in zip(sums, saved[1:], strict=True)]]

    def _found(self, given: tuple[Tensor | None, ...], lost: np.ndarray) -> tuple[Tensor | None, ...]:
        """The cotangents; those of lost rows count as zero."""
        if not lost.any():
            return given
        y, values, *rest = given
        y = None if y is None else torch.where(beside(y, lost)[0][:, None], 0.0, y)
        if values is not None:
            (gone,) = beside(values, lost[np.concatenate(self.recorder.row)])
            values = torch.where(gone[:, None], 0.0, values)
        return y, values, *rest

    def _begun(
        self, y0: Tensor, shared: tuple[Tensor, ...], cots: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Cotangents of the initial state and of what is shared, through the solver's state before the first step."""
        if len(cots) == 1:
            return cots[0], [None] * len(shared)
        params = len(self.inputs.params)
        count = len(shared) - params
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in shared[:count]]
        inputs = self.inputs.rebuilt([y0.requires_grad_(), *leaves, *shared[count:]])
        plan = inputs.plan(self.plan)
        wanted = [x for x in (*leaves, *shared[count:]) if x.requires_grad]
        with torch.enable_grad():
            state = start(plan, plan.span.t0, inputs.y)
        pulled = vjp_of(list(state), [inputs.y, *wanted], list(cots[1:]))
        rest = iter(pulled[1:])
        found = [next(rest) if x.requires_grad else None for x in shared]
        return cots[0] if pulled[0] is None else cots[0] + pulled[0], found


def _walked(entry: Entry, lost: np.ndarray) -> Walked | None:
    """The steps of a chunk that some row accepted, lost rows idle; None where there are none."""
    assert entry.index is not None
    t, dt, number = entry.records.t.numpy(), entry.records.dt.numpy(), entry.index.numpy()
    dt = np.where(lost, 0.0, dt)
    ok = dt != 0
    some = np.flatnonzero(ok.any(1))
    if not len(some):
        return None
    ok, t, dt, number = ok[some], t[some], dt[some], number[some]
    donor = ok.argmax(1)
    t = np.where(ok, t, np.take_along_axis(t, donor[:, None], 1))
    number = np.array(np.broadcast_to(number, dt.shape))
    at, starts, lengths, numbers, donors = beside(entry.end, some, t, dt, number, donor)
    coefficients = None if entry.coefficients is None else entry.coefficients[at]
    return Walked(starts, lengths, numbers, donors, entry.end[at], entry.start[at], coefficients)


class _Function(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Tensor) -> Any:
        ctx.task = task
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return task.solve()

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        task: _Task = ctx.task
        with task.conditions.held(), torch.no_grad():
            saved = ctx.saved_tensors
            pulled = task.pull(saved, given)
        return (None, *first_only(pulled, *saved, *given))
