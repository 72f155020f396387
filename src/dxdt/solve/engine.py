"""Compiled solves: many attempted steps in one call of generated code.

The loop's ``advance`` is traced as it is, with its clocks beside the data, inside a ``while_loop``
that runs until every row has ended or the records of accepted steps are full. Programs are kept by
what shapes them (the code of the field and the structure of its modules, solver, controller,
layout, what is recorded); parameters, arguments, times and tolerances are inputs.

Records are written in place into captured buffers, one slot per attempt, and read once per chunk:
save times, dense output and the backward pass all come from them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from dxdt.ops.clock import DEVICE
from dxdt.ops.tree import Layout
from dxdt.solve.ahead import Ahead
from dxdt.solve.controller import Constant, Controller, Scale, Span
from dxdt.solve.fallback import CannotCompile, warn_once
from dxdt.solve.form import Form
from dxdt.solve.functions import Functions
from dxdt.solve.identity import identified
from dxdt.solve.loop import advance
from dxdt.solve.plan import Carry, Plan
from dxdt.solve.reverse_chunk import reverse
from dxdt.solve.solution import RUNNING
from dxdt.solve.solver import Solver
from dxdt.solve.start import begin
from dxdt.solve.static import static

__all__ = [
    "Chunk",
    "Program",
    "Records",
    "Shape",
    "chunks",
    "prepare",
    "program",
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
        slots: attempts before the loop comes back, 0 for no limit.
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
    slots: int


class Inputs(NamedTuple):
    """What a program is called with, besides the state; ``room`` attempts are made in one call."""

    t0: Tensor
    t1: Tensor
    table: Any
    atol: Tensor | None
    rtol: Tensor | None
    limit: Tensor
    room: Tensor | None
    noise: Any


class Records(NamedTuple):
    """Accepted steps, one slot an attempt: clocks ``(K, R)``, starts ``(K, R, n)``, coefficients
    ``(K, degree, R, n)``; dt is zero where a row did not accept."""

    t: Tensor
    dt: Tensor
    end: Tensor
    y: Tensor
    coefficients: Tensor | None


class Chunk(NamedTuple):
    """What one call did: the packed carry, how many slots it filled, the records, and the noise;
    ``cut`` tells which steps an event cut short, ``(K, R)``, once that was looked for."""

    carry: Carry
    used: int
    records: Records | None
    noise: Any
    cut: Any = None


@dataclass(eq=False)
class Program:
    """The traced functions of one shape, and their compiled forms."""

    shape: Shape
    functions: Functions = field(init=False)

    def __post_init__(self) -> None:
        self.functions = Functions.of(self, first=Program._first, more=Program._more, back=Program._back)

    def _plan(self, f: Any, args: tuple[Any, ...], x: Inputs) -> Plan:
        shape = self.shape
        rows = shape.form.rows(f, shape.layout, args, x.noise)
        scale = None
        if x.atol is not None and x.rtol is not None:
            scale = Scale(x.atol, x.rtol, shape.controller.measure(shape.layout))
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
        plan = self._plan(f, args, x)
        carry = begin(plan, y, dt)
        return self._loop(plan, carry, records, x.room)

    def _more(
        self,
        f: Any,
        args: tuple[Any, ...],
        packed: tuple[Tensor, ...],
        x: Inputs,
        records: Records | None,
    ) -> Any:
        size = self.shape.controller.state_size
        carry = _unpack(packed, (len(packed) - 6 - size, size), x.t0)
        return self._loop(self._plan(f, args, x), carry, records, x.room)

    def _loop(self, plan: Plan, carry: Carry, records: Records | None, room: Tensor | None) -> Any:
        sizes = len(carry.solver), len(carry.control)
        solver = plan.solver

        def keeps(it: Tensor, *packed: Tensor) -> Tensor:
            going = (packed[-3] == RUNNING).any()
            return going if room is None else going & (it < room)

        def body(it: Tensor, *packed: Tensor) -> tuple[Tensor, ...]:
            after, attempt, _ = advance(plan, _unpack(packed, sizes, plan.span.t0))
            if records is not None:
                at, ok, slot = attempt.at, attempt.ok, (it,)
                records.t.index_put_(slot, at.t)
                records.dt.index_put_(slot, torch.where(ok, at.dt, 0.0))
                records.end.index_put_(slot, attempt.end)
                records.y.index_put_(slot, at.y)
                if records.coefficients is not None:
                    records.coefficients.index_put_(slot, solver.dense(attempt.step, at.dt, at.y))
            return (it + 1, *_pack(after))

        it = torch.zeros((), dtype=torch.int64, device=carry.y.device)
        return while_loop(keeps, body, (it, *(x.clone() for x in _pack(carry))))

    def call(self, name: str, *given: Any) -> Any:
        """The value of a compiled function.

        Raises:
            CannotCompile: it could not be traced or compiled, now or before.
        """
        return self.functions.call(name, *given)

    def pull(self, *given: Any) -> Any:
        """``_back`` compiled, or eager and with one warning where it has no compiled form.

        The forward pass is over by then, so there is no other way to answer.
        """
        try:
            return self.call("back", *given)
        except CannotCompile as error:
            warn_once(f"the backward pass has no compiled form: {error}")
            return self._back(*given)

    def _back(self, *given: Any) -> Any:
        shape = self.shape
        return reverse(shape.solver, shape.form, shape.layout, shape.dense, *given)


def _pack(c: Carry) -> tuple[Tensor, ...]:
    return (c.t, c.dt, c.y, *c.solver, *c.control, c.status, c.attempts, c.accepted)


def _unpack(x: Sequence[Tensor], sizes: tuple[int, int], like: Tensor) -> Carry:
    n, m = sizes
    solver, control = tuple(x[3 : 3 + n]), tuple(x[3 + n : 3 + n + m])
    status, attempts, accepted = x[3 + n + m :]
    return Carry(
        x[0],
        x[1],
        x[2],
        solver,
        control,
        status,
        attempts,
        accepted,
        None,
        None,
        torch.zeros_like(accepted),
        (),
    )


class _Programs:
    """The programs that were used last. One that is given up frees what was generated for it.

    Torch keeps generated code with the code object it was traced from, where nothing else reaches it.
    """

    def __init__(self, most: int) -> None:
        self.most, self.kept, self.lock = most, OrderedDict[Any, Any](), Lock()

    def __call__(self, shape: Any, kind: Callable[[Any], Any] = Program) -> Any:
        with self.lock:
            program = self.kept.pop(shape, None) or kind(shape)
            self.kept[shape] = program
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)[1].functions.free()
        return program

    def clear(self) -> None:
        """Give all programs up."""
        with self.lock:
            while self.kept:
                self.kept.popitem()[1].functions.free()


_program = _Programs(256)


def program(shape: Any, kind: Callable[[Any], Any]) -> Any:
    """The program of a shape, of any kind that holds ``functions``."""
    return _program(shape, kind)


def prepare(plan: Plan, y: Tensor, dt: Any, starts: bool, bounded: bool) -> tuple[Program, Any, Any]:
    """The program of a solve, the first step and the table of its grid.

    Raises:
        CannotCompile: the solve has no compiled form.
    """
    controller, table = static(plan.controller)
    layout, solver = plan.equation.layout, plan.solver
    if not solver.compiles:
        raise CannotCompile(f"{type(solver).__name__} has no compiled form yet")
    slots = 0
    if starts or plan.dense or bounded:
        per_slot = y.element_size() * y.numel() * (1 + _degree(plan)) + 24 * layout.rows
        slots = int(min(_SLOTS, max(16, _BYTES // per_slot)))
    given = getattr(plan.controller, "controller", plan.controller)
    if isinstance(given, Constant) and given.dt is not None:
        dt = np.full(layout.rows, abs(given.dt))
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
        slots,
    )
    return _program(shape), dt, table


def _degree(plan: Plan) -> int:
    return plan.solver.degree if plan.dense else 0


def chunks(
    plan: Plan, f: Any, args: tuple[Any, ...], y: Tensor, dt: Any, starts: bool, bounded: bool
) -> Iterator[Chunk]:
    """Run a solve compiled; yields each chunk of attempts, whose carry may be written into.

    Raises:
        CannotCompile: the solve or the field has no compiled form.
    """
    program, dt, table = prepare(plan, y, dt, starts, bounded)
    slots, size = program.shape.slots, program.shape.controller.state_size
    ahead = Ahead.of(plan, dt, slots)
    x = _inputs(plan, table, y)
    step = None if dt is None else _tensor(dt, y)
    recorded = starts or plan.dense
    name, given = "first", (y, step)
    while True:
        noise, room = ahead.run(y.device)
        records = _records(slots, _degree(plan), y) if recorded else None
        out = program.call(name, f, args, *given, x._replace(noise=noise, room=room), records)
        used, packed = int(out[0]), out[1:]
        carry = _unpack(packed, (len(packed) - 6 - size, size), x.t0)
        yield Chunk(carry, used, records, noise)
        if not (carry.status.numpy() == RUNNING).any():
            return
        name, given = "more", (tuple(packed),)


def _tensor(values: Any, like: Tensor) -> Tensor:
    host = torch.from_numpy(np.array(values, dtype=np.float64, ndmin=1))
    return host if like.device.type == "cpu" else host.to(like.device)


@lru_cache(maxsize=256)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as an input; no program writes into its inputs but the records."""
    return torch.tensor(value, dtype=dtype, device=device)


def _inputs(plan: Plan, table: Any, y: Tensor) -> Inputs:
    atol = rtol = None
    if plan.scale is not None:
        atol, rtol = (v.to(y) if isinstance(v, Tensor) else _number(v, y.dtype, y.device) for v in plan.scale[:2])
    span = plan.span
    limit = _number(plan.max_steps, torch.int64, y.device)
    if table is not None:
        table = _tables(table, y)
    return Inputs(
        _tensor(span.t0, y),
        _tensor(span.t1, y),
        table,
        atol,
        rtol,
        limit,
        None,
        None,
    )


def _tables(values: Any, like: Tensor) -> Any:
    """The times of a grid, or the lists of times that ``Clip`` has."""
    if isinstance(values, tuple):
        return tuple(None if x is None else _tensor(x, like) for x in values)
    times = _tensor(values, like)
    torch._dynamo.mark_dynamic(times, 0)  # a grid of another length runs the same program
    return times


def _records(slots: int, degree: int, y: Tensor) -> Records:
    # Three tensors, not views of one: programs write into them.
    shape = slots, y.shape[0]
    t, dt, end = (torch.zeros(shape, dtype=torch.float64, device=y.device) for _ in range(3))
    coefficients = y.new_empty(slots, degree, *y.shape) if degree else None
    return Records(t, dt, end, y.new_empty(slots, *y.shape), coefficients)
