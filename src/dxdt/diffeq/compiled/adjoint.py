"""The backward solve of ``Backsolve`` as a program: from one saved time to the one before in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from dxdt.compiler.compile import Functions
from dxdt.diffeq.control.controller import Controller, Scale, Span
from dxdt.diffeq.gradients.adjoint_rows import NODES, WEIGHTS
from dxdt.diffeq.loop.advance import advance
from dxdt.diffeq.loop.plan import Attempt, Plan, pack, unpack
from dxdt.diffeq.loop.save import polynomial
from dxdt.diffeq.loop.start import begin
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.equation import Rows, bounds_of, within
from dxdt.diffeq.problem.status import RUNNING
from dxdt.diffeq.programs.pullback import Holder, opened
from dxdt.diffeq.programs.signature import Form
from dxdt.ops.times import DEVICE, factors, moments
from dxdt.ops.tree import Layout

__all__ = ["AdjointProgram", "AdjointShape", "Seed", "Stretch"]


@dataclass(frozen=True)
class AdjointShape:
    """What the program of a backward solve is specialised to.

    Attributes:
        solver, controller: of the backward solve, tolerances and tables left out.
        layout, form, field: of the equation, as in the shape of its forward program.
        wanted: of which shared tensors gradients are wanted.
        full: whether their integrals are part of the state.
        seminorm: whether errors of these integrals do not count.
        adaptive: whether errors are measured.
    """

    solver: Solver
    controller: Controller
    layout: Layout
    form: Form
    field: Any
    wanted: tuple[bool, ...]
    full: bool
    seminorm: bool
    adaptive: bool


class Seed(NamedTuple):
    """What is put into the state where an interval begins: stored values ``(R, n)``, cotangents
    ``(R, n)``, and the rows that are put back, ``(R,)``."""

    y: Tensor
    cot: Tensor
    rows: Tensor


class Stretch(NamedTuple):
    """An interval: its ends ``(R,)``, the part of a grid in it, tolerances, the attempts of a row."""

    t0: Tensor
    t1: Tensor
    table: Any
    atol: Tensor | None
    rtol: Tensor | None
    limit: Tensor


@dataclass(eq=False)
class _Adjoint:
    """[y, a] or [y, a, integrals] as an equation on rows that can be traced.

    Attributes:
        field: ``(t, y, *shared)`` to the time derivative.
        shared: tensors that the field shares, and which of them are wanted.
        size: n.
        full: whether the integrals are part of the state.
        layout: of the state.
        bounds: the first and the last time that the field is shown, or None.
    """

    field: Callable[..., Tensor]
    shared: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    size: int
    full: bool
    layout: Layout
    noise: Any = None
    kind: Any = None
    bounds: tuple[Tensor, Tensor] | None = None

    def between(self, low: Tensor, high: Tensor) -> _Adjoint:
        """The same of a field that is shown no other times."""
        return replace(self, bounds=bounds_of(low, high, self.layout))

    def pulled(self, t: Tensor, y: Tensor, cot: Tensor, state: bool, params: bool) -> tuple[Tensor, list[Tensor]]:
        """The field, and cotangents of the state and of the wanted shared tensors."""

        def f(*at: Tensor) -> Tensor:
            inner, rest = list(self.shared), (at[1:] if state else at)
            if params:
                for i, x in zip(self.wanted, rest, strict=True):
                    inner[i] = x
            return self.field(t if self.bounds is None else within(t, self.bounds), at[0] if state else y, *inner)

        at = (y,) * state + tuple([self.shared[i] for i in self.wanted]) * params
        out: Any = torch.func.vjp(f, *at)
        return out[0], list(out[1](cot))

    def drift(self, t: Tensor, rows: Tensor) -> Tensor:
        """Time derivative of the state."""
        n = self.size
        f, parts = self.pulled(t, rows[:, :n], -rows[:, n : 2 * n], True, self.full)
        return torch.cat([f, parts[0], *[p.reshape(1, -1).to(f.dtype) for p in parts[1:]]], -1)

    def integrals(self, attempt: Attempt, dense: Tensor) -> list[Tensor]:
        """int a^T df/dtheta over the accepted steps of an attempt, by Gauss quadrature."""
        at, n = attempt.at, self.size
        ok = attempt.ok.unsqueeze(-1)
        times = moments(at.t, at.dt, NODES, self.layout)
        totals: list[Tensor] = []
        for node, factor, time in zip(NODES.numbers, factors(WEIGHTS, -at.dt, at.y), times, strict=True):
            # Rows that rejected the step stand where the field is finite.
            inside = polynomial(dense, torch.full_like(at.t, node).to(at.y.dtype))
            rows = at.y + torch.where(ok, inside, 0.0)
            cot = torch.where(ok, factor * rows[:, n : 2 * n], 0.0)
            _, found = self.pulled(time, rows[:, :n], cot, False, True)
            totals = found if not totals else [a + b for a, b in zip(totals, found, strict=True)]
        return totals


@dataclass(eq=False)
class AdjointProgram:
    """The traced backward solve of one shape, and its compiled form."""

    shape: AdjointShape
    functions: Functions = field(init=False)

    def __post_init__(self) -> None:
        self.functions = Functions.of(self, sweep=AdjointProgram._sweep)

    def sweep(self, *given: Any) -> Any:
        """``_sweep`` compiled.

        Raises:
            CannotCompile: it has no compiled form.
        """
        return self.functions.call("sweep", *given)

    def _sweep(
        self,
        holder: Holder,
        args: tuple[Any, ...],
        names: tuple[str, ...],
        shared: tuple[Tensor, ...],
        state: Tensor,
        seed: Seed,
        dt: Tensor,
        sums: tuple[Tensor, ...],
        x: Stretch,
    ) -> Any:
        """State, next steps, integrals and status at the end of an interval, and what was evaluated."""
        adjoint = self._adjoint(opened(self.shape.form, self.shape.layout, holder, args, names), shared)
        plan = self._plan(adjoint, x)
        n, solver, integrates = adjoint.size, plan.solver, bool(sums)
        rows = seed.rows.unsqueeze(-1)
        y, a = torch.where(rows, seed.y, state[:, :n]), state[:, n : 2 * n] + torch.where(rows, seed.cot, 0.0)
        state = torch.cat([y, a, state[:, 2 * n :]], -1)
        carry = begin(plan, state, dt, some=self.shape.adaptive)
        sizes = len(carry.solver), len(carry.control)

        def keeps(it: Tensor, h: Tensor, *rest: Tensor) -> Tensor:
            return (rest[-3] == RUNNING).any()

        def body(it: Tensor, h: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            sums, packed = rest[:count], rest[count:]
            after, attempt, _ = advance(plan, unpack(packed, sizes))
            if integrates:
                found = adjoint.integrals(attempt, solver.dense(attempt.step, attempt.at.dt, attempt.at.y))
                sums = tuple([a + b for a, b in zip(sums, found, strict=True)])
            # A row that has arrived idles, with steps of length zero, while others go on.
            h = torch.where(after.dt != 0, after.dt.abs(), h)
            return (it + 1, h, *sums, *pack(after))

        count = len(sums)
        it = torch.zeros((), dtype=torch.int64, device=state.device)
        start = (it, dt.clone(), *[s.clone() for s in sums], *[c.clone() for c in pack(carry)])
        out = while_loop(keeps, body, start)
        packed = out[2 + count :]
        work = solver.opening(carry.solver), solver.cost(carry.solver), solver.slope(carry.solver) is None
        return packed[2], out[1], tuple(out[2 : 2 + count]), packed[-3], out[0], work

    def _adjoint(self, rows_of: Callable[[Sequence[Tensor], Any], Rows], shared: tuple[Tensor, ...]) -> _Adjoint:
        shape = self.shape
        wanted = tuple([i for i, is_wanted in enumerate(shape.wanted) if is_wanted])
        extra = sum([shared[i].numel() for i in wanted]) if shape.full else 0
        layout = replace(shape.layout, size=2 * shape.layout.size + extra)

        def f(t: Tensor, y: Tensor, *inner: Tensor) -> Tensor:
            return rows_of(inner, None).drift(t, y)

        return _Adjoint(f, shared, wanted, shape.layout.size, shape.full, layout)

    def _plan(self, adjoint: _Adjoint, x: Stretch) -> Plan:
        shape, n = self.shape, adjoint.size
        scale = None
        if x.atol is not None and x.rtol is not None:
            measure = shape.controller.measure(shape.layout)
            part = shape.seminorm and shape.full
            scale = Scale(x.atol, x.rtol, (lambda ratio: measure(ratio[:, : 2 * n])) if part else measure)
        return Plan(
            adjoint,  # pyright: ignore[reportArgumentType]
            shape.solver,
            shape.controller,
            Span(DEVICE, x.t0, x.t1, x.table),
            scale,
            any(shape.wanted) and not shape.full,
            x.limit,  # pyright: ignore[reportArgumentType]
        )
