"""Gradients of a compiled solve: the recorded steps reversed by generated code.

The forward pass keeps where accepted steps begin, chunk by chunk. Backward, cotangents of saved
values are first laid where they enter (the end, the start or the coefficients of a step), then one
program per chunk forms each step again and pulls them through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dxdt.compiler.dependencies import reads
from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.compiled.events import Met
from dxdt.diffeq.compiled.forward import Asked, Forward, Read, check_field, compilable, undone
from dxdt.diffeq.compiled.pieces import Piece, chained, pieces
from dxdt.diffeq.compiled.state_cotangents import Memories
from dxdt.diffeq.compiled.time_cotangents import TimeCotangents
from dxdt.diffeq.gradients.closure_tensors import captured, lost
from dxdt.diffeq.gradients.conditions import Conditions
from dxdt.diffeq.gradients.gradient import Gradient, Inputs, Outcome, Problem
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.programs.engine import Program, Records, prepare
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.pullback import Holder, Pulled, Taken, hold
from dxdt.diffeq.programs.signature import fields_of
from dxdt.ops.times import beside, from_host, placed
from dxdt.ops.tree import tree_map

__all__ = ["Entry", "detached", "entries", "first_only", "look", "recomputed"]

# Fields whose graph was looked at, by what identifies them.
_looked: dict[Any, None] = {}
_FIELDS = 256


def recomputed(gradient: Gradient | None, problem: Problem) -> Outcome:
    """A compiled solve whose outcome is differentiable by the recorded steps.

    Raises:
        CannotCompile: the solve or its field has no compiled form.
    """
    plan, inputs, dt, recorder = problem
    with undone(plan, recorder):
        compilable(plan)
        if plan.solver.facts.stateful and plan.watch is not None:
            raise CannotCompile(f"gradients of events through {type(plan.solver).__name__} have no compiled form yet")
        check_field(plan, inputs.y)
        # What events depend on is differentiated in the graph around the programs.
        look(replace(plan, watch=None), inputs, gradient, once=True)
        task = _Task(plan, inputs, dt, recorder)
        with reads() as read, torch.no_grad():
            carry = task.solve()
        _look_at_reads(plan, inputs, read, gradient)
    return chained(plan, inputs, task.pieces, task.node, carry)


def look(plan: Plan, inputs: Inputs, gradient: Gradient | None, once: bool = False) -> None:
    """Refuse a field that depends on tensors which a recomputing rule would lose.

    With ``once`` a field like one that was looked at is not evaluated: what its program reads tells as well.

    Raises:
        CannotCompile: it does, and no rule was asked for, so that the eager default can serve.
        ValueError: it does, but such a rule was asked for.
    """
    key = identified(plan), plan.equation.layout
    if once and key in _looked:
        return
    meter = plan.equation.meter
    assert meter is not None
    count = meter.evaluations
    try:
        captured(plan, inputs)
    except ValueError as error:
        _refuse(error, gradient)
    finally:
        meter.evaluations = count
    if len(_looked) >= _FIELDS:
        del _looked[next(iter(_looked))]
    _looked[key] = None


def _look_at_reads(plan: Plan, inputs: Inputs, read: list[Tensor], gradient: Gradient | None) -> None:
    """The same for what a program has read.

    Raises:
        CannotCompile, ValueError: as above.
    """
    known = {id(x) for x in inputs.params}
    stranger = next((x for x in read if id(x) not in known), None)
    if stranger is not None:
        _looked.pop((identified(plan), plan.equation.layout), None)
        _refuse(lost(stranger), gradient)


def _refuse(error: ValueError, gradient: Gradient | None) -> NoReturn:
    if gradient is not None:
        raise error
    raise CannotCompile(str(error)) from error


@dataclass(eq=False)
class _Task:
    plan: Plan
    inputs: Inputs
    dt: Any
    recorder: Recorder
    pieces: list[Piece] = field(default_factory=list)
    program: Program | None = None
    holder: Holder = field(init=False)
    names: tuple[str, ...] = field(init=False)
    shared: tuple[Tensor, ...] = field(init=False)
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        equation, inputs = self.plan.equation, self.inputs
        self.conditions = Conditions.of(self.plan, inputs)
        self.holder, self.names = hold(fields_of(equation.equation), equation.modules(), inputs.params)
        times = 2 * (inputs.ends is not None) + (inputs.moments is not None)
        self.shared = inputs.tensors()[1 + times :]

    def solve(self) -> Carry:
        """Solve, without a gradient; the final carry."""
        plan, y = self.plan, self.inputs.y.detach()
        self.program, _, _ = prepare(plan, y, self.dt, True, plan.solver.facts.stateful)
        if plan.equation.args:
            # Detached, so that what the program reads tells an argument from the same tensor held by the field.
            plan = replace(plan, equation=replace(plan.equation, args=detached(plan.equation.args)))
        forward = Forward(plan, self.recorder, keep=True)
        carry = forward.run(y, self.dt).carry
        self.pieces = pieces(forward.tape, carry.y)
        return carry

    def node(self, number: int, y: Tensor, origin: Tensor | None, end: Tensor | None) -> tuple[Tensor | None, ...]:
        """A piece in the graph."""
        return _Function.apply(self, number, y, origin, end, self.inputs.moments, *self.shared)

    def pull(self, number: int, saved: tuple[Tensor, ...], given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs of a piece from those of its outputs."""
        program, piece = self.program, self.pieces[number]
        assert program is not None
        args = detached(self.plan.equation.args)
        shared = tuple(x.detach() for x in saved[len(saved) - len(self.shared) :])
        gy = given[0] if given[0] is not None else torch.zeros_like(self.inputs.y)
        totals = tuple(torch.zeros_like(x) for x in shared)
        times = TimeCotangents.of(self.inputs, self.plan)
        memories = Memories.of(self.plan, self.inputs.y, piece.reads) if program.shape.states else None
        noisy = self.plan.equation.noise is not None
        for entry in entries(piece.reads, given, times, exact=self.inputs.moments is None, numbered=noisy):
            taken, kept = entry.taken(), entry.kept()
            if not len(kept) and memories is None:
                continue
            clocks = None if times is None else times.masks(kept)
            # The place of the last step is an input, and the number of steps a size that may
            # change: a solve of another length runs the same program.
            (last,), taken = beside(gy, np.array(len(kept) - 1)), taken.any_length()
            memory = None if memories is None else memories.turn()
            pulled = Pulled(
                self.holder, args, self.names, shared, taken, last, gy.contiguous(), totals, clocks, entry.noise, memory
            )
            found = program.pull(self.plan.equation.layout, pulled)
            gy, totals = found.y, found.totals
            if memories is not None:
                memories.enter(found)
            if times is not None:
                times.enter(*found.ends)
        return [
            gy,
            *_for(saved[1:4], (None, None, None) if times is None else times.found()),
            *(g if x.requires_grad else None for g, x in zip(totals, self.shared, strict=True)),
        ]


def entries(
    tape: Sequence[Read],
    given: tuple[Tensor | None, ...],
    times: TimeCotangents | None,
    exact: bool,
    numbered: bool,
) -> Iterator[Entry]:
    """The steps of each chunk from last to first, with the cotangents that enter there.

    Where values at the ends of steps are ``exact``, their cotangents do not move with times.
    """
    gvalues, gstarts, gcoefficients = given[1:4]
    used = 0 if gvalues is None else len(gvalues)
    level = 0 if gcoefficients is None else len(gcoefficients)
    for read in reversed(tape):
        entry = Entry.of(read, numbered)
        if read.met is not None:
            entry.met(read.met, *given[4:])
        if times is not None:
            times.turn(read)
        if read.asked is not None and gvalues is not None:
            g = gvalues[used - len(read.asked.slot) : used]
            used -= len(read.asked.slot)
            if times is not None:
                times.answer(read.asked, g)
            entry.answer(read.asked, g, exact=exact)
        if gcoefficients is not None:
            some = np.flatnonzero((read.kept.dt.numpy() != 0).any(1))
            mine = slice(level - len(some), level)
            entry.path(some, gcoefficients[mine], None if gstarts is None else gstarts[mine])
            level -= len(some)
        yield entry


@dataclass
class Entry:
    """Cotangents that enter at the steps of a chunk, whose numbers are ``index``, and its noise."""

    records: Records
    end: Tensor
    start: Tensor
    coefficients: Tensor | None
    index: Tensor | None
    noise: Any
    sides: tuple[Tensor, ...]
    leap: Tensor | None

    @classmethod
    def of(cls, read: Read, numbered: bool) -> Entry:
        """Without cotangents."""
        records = read.kept
        y, held = records.y, records.coefficients
        zeros = torch.zeros_like(y), torch.zeros_like(y), None if held is None else torch.zeros_like(held)
        leap = read.leap if records.states else None
        return cls(records, *zeros, _indices(read) if numbered else None, read.noise, read.sides, leap)

    def answer(self, asked: Asked, g: Tensor, exact: bool) -> None:
        """Saved values: at the end of a step, or inside it (all of them, if not ``exact``)."""
        slot, row, theta, _, ends = asked
        whole = np.ones(len(slot), dtype=bool) if ends else (theta == 1) & exact
        at = lambda mask: beside(g, slot[mask], row[mask])  # noqa: E731
        self.end.index_put_(at(whole), g[beside(g, whole)], accumulate=True)
        if whole.all():
            return
        inside = ~whole
        g, place = g[beside(g, inside)], from_host(theta[inside], g)[:, None]
        self.start.index_put_(at(inside), g, accumulate=True)
        assert self.coefficients is not None
        for j in range(self.coefficients.shape[1]):
            self.coefficients[:, j].index_put_(at(inside), g * place ** (j + 1), accumulate=True)

    def met(self, met: Met, start: Tensor | None, coefficients: Tensor | None) -> None:
        """Steps that an event cut short."""
        at = met.steps
        if start is not None:
            self.start.index_put_(at, start[at[1]], accumulate=True)
        if coefficients is not None:
            assert self.coefficients is not None
            self.coefficients[at[0], :, at[1]] += coefficients[:, at[1]].movedim(0, 1)

    def path(self, some: np.ndarray, g: Tensor, gstart: Tensor | None) -> None:
        """The dense path."""
        (index,) = beside(g, some)
        assert self.coefficients is not None
        self.coefficients.index_add_(0, index, g)
        if gstart is not None:
            self.start.index_add_(0, index, gstart)

    def kept(self) -> np.ndarray:
        """The attempts that some row accepted."""
        return np.flatnonzero((self.records.dt.numpy() != 0).any(1))

    def taken(self) -> Taken:
        """The chunk without attempts that nobody accepted.

        Idle rows stand where a derivative is harmless.
        """
        records = self.records
        t, dt, y = records.t, records.dt, records.y
        taken = Taken(
            *(t, dt, y, self.end, self.start, self.coefficients, self.index, records.states, self.sides, self.leap)
        )
        ok = dt.numpy() != 0
        if not ok.all():
            some = np.flatnonzero(ok.any(1))
            taken = taken.each(lambda x: x.index_select(0, *beside(x, some)))
            kept = ok[ok.any(1)]
            if not kept.all():
                at = _harmless(kept)
                states = tuple(x[beside(x, *at)] for x in taken.states)
                taken = taken._replace(t=taken.t[beside(taken.t, *at)], y=taken.y[beside(y, *at)], states=states)
        clocks = {name: getattr(taken, name) for name in ("t", "dt", "number", "leap")}
        clocks = {name: x for name, x in clocks.items() if x is not None}
        there = placed([*clocks.values(), *taken.sides], y.device)
        taken = taken._replace(**dict(zip(clocks, there, strict=False)), sides=tuple(there[len(clocks) :]))
        return taken.each(lambda x: x.contiguous())


def _indices(read: Read) -> Tensor:
    """Accepted steps before each attempt of a chunk, ``(K, R)``: the names of its noise."""
    ok = read.kept.dt.numpy() != 0
    return torch.from_numpy(read.accepted + np.cumsum(ok, axis=0) - ok)


def _harmless(ok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each slot and row the slot and row to stand at.

    Its own, the row's last accepted, or that of another row.
    """
    slots, rows = ok.shape
    index = np.where(ok, np.arange(slots)[:, None], -1)
    last = np.maximum.accumulate(index, axis=0)
    donor = ok.argmax(1)
    slot = np.where(last >= 0, last, np.arange(slots)[:, None])
    row = np.where(last >= 0, np.arange(rows)[None], donor[:, None])
    return slot, row


def _for(inputs: Iterable[Tensor | None], found: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    """Cotangents of the inputs that there are."""
    return (None if x is None else g for x, g in zip(inputs, found, strict=True))


def detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments without their graphs."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, args) if args else ()


class _Function(torch.autograd.Function):
    """A piece of the solve as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: _Task, number: int, *tensors: Tensor) -> Any:
        ctx.task, ctx.number = task, number
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return task.pieces[number].outputs()

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        task: _Task = ctx.task
        with task.conditions.held(), torch.no_grad():
            saved = ctx.saved_tensors
            pulled = task.pull(ctx.number, saved, given)
        return (None, None, *first_only(pulled, *saved, *given))


def first_only(pulled: list[Tensor | None], *of: Tensor | None) -> list[Tensor | None]:
    """Gradients that may not be differentiated again, where somebody could try."""
    if not torch.is_grad_enabled():
        return pulled
    return [None if g is None else _Once.apply(g, *of) for g in pulled]


class _Once(torch.autograd.Function):
    """A gradient that may not be differentiated again."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *inputs: Tensor | None) -> Tensor:
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        raise RuntimeError(
            "second derivatives of a solve have no compiled form: solve with compile=False where you need them"
        )
