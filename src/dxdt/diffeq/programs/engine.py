"""Compiled solves: many attempted steps in one call of generated code.

The loop's ``advance`` is traced as it is, with its clocks beside the data, inside a ``while_loop``
that runs until every row has ended or the records of accepted steps are full. Programs are kept by
what shapes them (the code of the field and the structure of its modules, solver, controller,
layout, what is recorded); parameters, arguments, times and tolerances are inputs.

Records are written in place into captured buffers, one slot per attempt, and read once per chunk by all who need them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from dxdt.compiler.compile import Functions
from dxdt.compiler.explain import CannotCompile, NotForAllSizes, why
from dxdt.diffeq.control.controller import Controller, Scale, Span
from dxdt.diffeq.loop.advance import advance
from dxdt.diffeq.loop.plan import Carry, Plan, pack, unpack
from dxdt.diffeq.loop.start import begin
from dxdt.diffeq.methods.solver import Phase, Solver
from dxdt.diffeq.problem.status import RUNNING
from dxdt.diffeq.programs.batch import Batch
from dxdt.diffeq.programs.controller_split import split
from dxdt.diffeq.programs.eager_fallback import warn_once
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.open_batch import Sizes
from dxdt.diffeq.programs.predrawn import Ahead
from dxdt.diffeq.programs.pullback import Pulled, reverse
from dxdt.diffeq.programs.runtime_inputs import Inputs, inputs_of, tables, tensor
from dxdt.diffeq.programs.signature import Form
from dxdt.diffeq.programs.starters import Kinds, kinds_of, renews
from dxdt.diffeq.programs.step_buffer import Records
from dxdt.diffeq.programs.transfer import beside_data, on_host
from dxdt.ops.times import DEVICE, hosted
from dxdt.ops.tree import Layout, tree_map

__all__ = [
    "Chunk",
    "Program",
    "Records",
    "Shape",
    "chunks",
    "clocks_of",
    "first_step",
    "prepare",
    "program",
    "tables",
]

# Slots of the records: enough for most solves in one chunk, bounded in memory.
_SLOTS, _BYTES = 256, 1 << 25


@dataclass(frozen=True)
class Shape:
    """What a program is specialised to.

    Attributes:
        solver, controller: the method and the rule, tolerances and tables left out.
        layout: how the state lies in rows.
        form: kind of the equation.
        field: what identifies the field's code and modules.
        adaptive: whether errors are measured.
        starts: whether starts of accepted steps are recorded.
        dense: whether their interpolation coefficients are.
        given: whether the first step is given.
        recalls: whether the clocks before each attempt are recorded, for events that may take rows back.
        slots: attempts before the loop comes back, 0 for no limit.
        batch: how the batch is an input, in which case ``layout`` is that of a batch of two; None where
            it is that of the layout.
        renews: whether a solver's state may be renewed on the way, row by row.
        states: whether those of the solver are recorded.
    """

    solver: Solver
    controller: Controller
    layout: Layout
    form: Form
    field: Any
    adaptive: bool
    starts: bool
    dense: bool
    given: bool
    recalls: bool
    slots: int
    batch: Batch | None = None
    renews: bool = False
    states: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The rules of its steps, one after the other."""
        return (() if self.renews else self.solver.phases) or (Phase(self.solver, None),)

    @cached_property
    def _hash(self) -> int:
        # Looked up several times a solve, and made of much.
        return hash((self.solver, self.controller, self.layout, self.field, self.starts, self.dense, self.slots))

    def __hash__(self) -> int:
        return self._hash

    def opened(self, layout: Layout, args: Any, given: Any, x: Inputs, records: Records | None) -> tuple[Any, ...]:
        """Inputs of a program, whose batch is open where it is an input."""
        batch = self.batch
        if batch is None:
            return args, *given, x, records

        def rows(v: Any, axis: int = 0) -> Any:
            return batch.rows(v, layout, axis) if v is not None and v.dim() > axis else v

        table = tree_map(lambda v: rows(v, 1), x.table)
        atol, rtol = (None if v is None else batch.row(v, layout) for v in (x.atol, x.rtol))
        x = Inputs(rows(x.t0), rows(x.t1), table, atol, rtol, x.limit, x.room, x.noise)
        if records is not None:
            t, dt, end, y = (rows(v, 1) for v in records[:4])
            records = Records(t, dt, end, y, rows(records.coefficients, 2), (), rows(records.clocks, 2))
        return batch.args(args), *tree_map(rows, given), x, records

    def layout_of(self, y: Tensor) -> Layout:
        """The layout of a solve by its state as an input."""
        if self.batch is None:
            return self.layout
        return self.layout.resized(y.shape[0] if self.batch.per_sample else y.shape[-2])

    def closed(self, x: Tensor, axis: int = 0) -> Tensor:
        """Rows of an input."""
        return x if self.batch is None else self.batch.closed(x, axis)


class Chunk(NamedTuple):
    """What one call did: the carry, its clocks on the host, how many slots it filled, the records, and the
    noise."""

    carry: Carry
    used: int
    records: Records | None
    noise: Any


@dataclass(eq=False)
class Program:
    """The traced functions of one shape, and their compiled forms."""

    shape: Shape
    functions: Functions = field(init=False)

    def __post_init__(self) -> None:
        self.functions = Functions.of(self, first=Program._first, more=Program._more, back=Program._back)

    def _plan(self, f: Any, args: tuple[Any, ...], layout: Layout, x: Inputs) -> Plan:
        shape = self.shape
        rows = shape.form.rows(f, layout, args, x.noise)
        scale = None
        if x.atol is not None and x.rtol is not None:
            atol, rtol = shape.closed(x.atol, -1), shape.closed(x.rtol, -1)
            scale = Scale(atol, rtol, shape.controller.measure(layout))
        span = Span(DEVICE, x.t0, x.t1, x.table)
        return Plan(
            rows,
            shape.solver,
            shape.controller,
            span,
            scale,
            shape.dense,
            x.limit,  # pyright: ignore[reportArgumentType]
            check=scale is None,
        )

    def _first(
        self,
        f: Any,
        args: tuple[Any, ...],
        y: Tensor,
        dt: Tensor | None,
        x: Inputs,
        records: Records | None,
    ) -> Any:
        plan = self._plan(f, args, self.shape.layout_of(y), x)
        carry = begin(plan, self.shape.closed(y), dt)
        return self._loop(plan, carry, records, x.room)

    def _more(
        self,
        f: Any,
        args: tuple[Any, ...],
        packed: tuple[Tensor, ...],
        x: Inputs,
        records: Records | None,
    ) -> Any:
        size, layout = self.shape.controller.state_size, self.shape.layout_of(packed[2])
        packed = tuple([self.shape.closed(v) for v in packed])
        carry = unpack(packed, (len(packed) - 6 - size, size))
        return self._loop(self._plan(f, args, layout, x), carry, records, x.room)

    def _loop(self, plan: Plan, carry: Carry, records: Records | None, room: Tensor | None) -> Any:
        it = torch.zeros((), dtype=torch.int64, device=carry.y.device)
        packed = (it, *(x.clone() for x in pack(carry)))
        for solver, until in self.shape.phases:
            packed = self._lap(replace(plan, solver=solver), packed, len(carry.solver), records, room, until)
        return packed

    def _lap(
        self,
        plan: Plan,
        packed: tuple[Tensor, ...],
        size: int,
        records: Records | None,
        room: Tensor | None,
        until: int | None,
    ) -> tuple[Tensor, ...]:
        """Attempts by one rule, until no row runs, the records are full, or the next rule takes over."""
        sizes, solver = (size, self.shape.controller.state_size), plan.solver

        def keeps(it: Tensor, *packed: Tensor) -> Tensor:
            going = packed[-3] == RUNNING
            going = (going if until is None else going & (packed[-1] < until)).any()
            return going if room is None else going & (it < room)

        def body(it: Tensor, *packed: Tensor) -> tuple[Tensor, ...]:
            before = unpack(packed, sizes)
            after, attempt, _ = advance(plan, before)
            if records is not None:
                at = attempt.at
                _put(records.t, it, at.t)
                _put(records.dt, it, torch.where(attempt.ok, at.dt, 0.0))
                _put(records.end, it, attempt.end)
                _put(records.y, it, at.y)
                if records.coefficients is not None:
                    _put(records.coefficients, it, solver.dense(attempt.step, at.dt, at.y))
                for place, state in zip(records.states, at.solver, strict=False):
                    _put(place, it, state)
                if records.clocks is not None:
                    _put(records.clocks, it, clocks_of(before))
            return (it + 1, *pack(after))

        return while_loop(keeps, body, packed)

    def call(self, name: str, *given: Any) -> Any:
        """The value of a compiled function.

        Raises:
            CannotCompile: it could not be traced or compiled, now or before.
            NotForAllSizes: likewise, but with its batch as an input.
        """
        try:
            return self.functions.call(name, *given)
        except Exception as error:
            if self.shape.batch is None:
                raise
            # Also the error of a field, which comes again where the batch is no input.
            reason = str(error) if isinstance(error, CannotCompile) else why(error)
            _sizes.close(self.shape, reason)
            raise NotForAllSizes(reason) from error

    def pull(self, layout: Layout, given: Pulled) -> Any:
        """``_back`` compiled, or eager and with one warning where it has no compiled form.

        The forward pass is over by then, so there is no other way to answer.
        """
        try:
            return self.call("back", *given.opened(self.shape.batch, layout))
        except NotForAllSizes:
            return _program(replace(self.shape, layout=layout, batch=None)).pull(layout, given)
        except CannotCompile as error:
            warn_once(f"the backward pass has no compiled form: {error}", given[0].called)
            return self._back(*given)

    def _back(self, *given: Any) -> Any:
        shape, pulled = self.shape, Pulled(*given)
        layout = shape.layout_of(pulled.gy)
        return reverse(shape.phases, shape.form, layout, shape.dense, *pulled)


def _put(record: Tensor, slot: Tensor, value: Tensor) -> None:
    # The same shape, but that says to a compiler that an open batch is as long in both.
    record.index_put_((slot,), value.reshape(record.shape[1:]))


def clocks_of(carry: Carry) -> Tensor:
    """The step and the controller's state, ``(1 + state_size, R)``."""
    return torch.stack([x.to(torch.float64) for x in (carry.dt, *carry.control)])


class _Programs:
    """The programs that were used last. One that is given up frees what was generated for it.

    Torch keeps generated code with the code object it was traced from, where nothing else reaches it.
    """

    def __init__(self, most: int) -> None:
        self.most, self.kept, self.lock = most, OrderedDict[Any, Any](), Lock()

    def __call__(self, shape: Any, kind: Callable[[Any], Any] = Program) -> Any:
        with self.lock:
            program = self.kept.get(shape)
            if program is None:
                program = self.kept[shape] = kind(shape)
            self.kept.move_to_end(shape)
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)[1].functions.free()
        return program

    def clear(self) -> None:
        """Give all programs up."""
        with self.lock:
            while self.kept:
                self.kept.popitem()[1].functions.free()


_program = _Programs(256)
_sizes = Sizes()


def program(shape: Any, kind: Callable[[Any], Any]) -> Any:
    """The program of a shape, of any kind that holds ``functions``."""
    return _program(shape, kind)


def prepare(plan: Plan, y: Tensor, dt: Any, starts: bool, states: bool = False) -> tuple[Program, Any, Any]:
    """The program of a solve, the first step and the table of its grid; ``states`` records those of the solver.

    Raises:
        CannotCompile: the solve has no compiled form.
    """
    controller, table = split(plan.controller)
    layout, solver = plan.equation.layout, plan.solver
    if not solver.facts.compiles:
        raise CannotCompile(f"{type(solver).__name__} has no compiled form yet")
    slots = 0
    if starts or plan.dense:
        per_slot = y.element_size() * y.numel() * (1 + _degree(plan)) + 24 * layout.rows
        per_slot += sum(size.numel() * dtype.itemsize for size, dtype in kinds_of(plan, y)) if states else 0
        slots = int(min(_SLOTS, max(16, _BYTES // per_slot)))
    dt = first_step(plan.controller, dt, layout.rows)
    shape = Shape(
        solver,
        controller,
        layout,
        Form.of(plan.equation),
        identified(plan),
        plan.scale is not None,
        starts,
        plan.dense,
        dt is not None,
        plan.watch is not None and plan.watch.goes_on,
        slots,
        renews=renews(plan),
        states=states,
    )
    if shape not in _program.kept and not states:
        shape = _sizes.chosen(shape, plan.equation)
    return _program(shape), dt, table


def first_step(controller: Controller, dt: Any, rows: int) -> Any:
    """The step that a controller prescribes, ``(R,)``, or the one that is given."""
    return dt if controller.length is None else np.full(rows, controller.length)


def _degree(plan: Plan) -> int:
    return plan.solver.facts.degree if plan.dense else 0


def chunks(
    plan: Plan,
    f: Any,
    args: tuple[Any, ...],
    y: Tensor,
    dt: Any,
    starts: bool,
    states: bool = False,
) -> Iterator[Chunk]:
    """Run a solve compiled; yields each chunk of attempts, whose carry may be written into.

    Raises:
        CannotCompile: the solve or the field has no compiled form.
    """
    program, dt, table = prepare(plan, y, dt, starts, states)
    shape, layout, slots = program.shape, plan.equation.layout, program.shape.slots
    size = shape.controller.state_size
    ahead = Ahead.of(plan, dt, slots)
    x = inputs_of(plan, table, y)
    step = None if dt is None else tensor(dt, y)
    buffers = _Buffers(shape, y, starts or plan.dense, kinds_of(plan, y) if states else ())
    name, given = "first", (y, step)
    while True:
        noise, room = ahead.run(y.device)
        records = buffers.records()
        inputs = shape.opened(layout, args, given, x._replace(noise=noise, room=room), records)
        out = program.call(name, f, *inputs)
        carry = unpack(out[1:], (len(out) - 7 - size, size))
        (it,), carry = on_host(carry, out[0])
        used = int(it)
        records = buffers.kept(records, used)
        if records is not None:
            t, dt, end = hosted([x[:used] for x in records[:3]])
            records = records._replace(t=t, dt=dt, end=end)
        yield Chunk(carry, used, records, noise)
        if not (carry.status.numpy() == RUNNING).any():
            return
        ahead.follow(carry)
        name, given = "more", (beside_data(carry),)


@dataclass
class _Buffers:
    """What programs write their records into.

    Runs of a solve with events are short: they share one set of buffers, and what they used is copied.
    """

    shape: Shape
    y: Tensor
    recorded: bool
    kinds: Kinds
    shared: Records | None = None

    def records(self) -> Records | None:
        """Buffers for one call."""
        if not self.recorded:
            return None
        if self.shared is not None:
            return self.shared
        shape = self.shape
        clocks = 1 + shape.controller.state_size if shape.recalls else 0
        made = Records.empty(shape.slots, shape.solver.facts.degree if shape.dense else 0, self.y, self.kinds, clocks)
        self.shared = made if shape.recalls else None
        return made

    def kept(self, records: Records | None, used: int) -> Records | None:
        """The records of a call that used so many slots."""
        if records is None or self.shared is None:
            return records
        return records.first(used).each(torch.clone)
