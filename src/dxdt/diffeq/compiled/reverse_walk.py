"""A chunk of a reversible solve walked back by a program: each step undone, formed again, and pulled through.

Only clocks are known of the steps. The carry of the walk is where a step ended, state and solver state, with the
cotangents of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dxdt.compiler.compile import Functions
from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.programs.eager_fallback import warn_once
from dxdt.diffeq.programs.pullback import Holder, Made, any_length, filled, means, opened, room
from dxdt.diffeq.programs.signature import Form
from dxdt.ops.times import DEVICE
from dxdt.ops.tree import Layout

__all__ = ["WalkProgram", "WalkShape", "Walked"]


@dataclass(frozen=True)
class WalkShape:
    """What the program is specialised to: the parts of the shape of the forward program that matter."""

    solver: Solver
    layout: Layout
    form: Form
    field: Any
    dense: bool


class Walked(NamedTuple):
    """Steps of a chunk: clocks and numbers ``(K, R)``, a row that took part ``(K,)``, and the cotangents that enter:
    of the value at the end and at the start ``(K, R, n)``, and of the coefficients ``(K, degree, R, n)``."""

    t: Tensor
    dt: Tensor
    number: Tensor
    donor: Tensor
    end: Tensor
    start: Tensor
    coefficients: Tensor | None

    def any_length(self) -> Walked:
        """The same for a program that serves any number of steps."""
        size = room(len(self.t), self.t.device)
        parts = [x if x is None or len(x) == size else filled(x, size) for x in self]
        any_length(parts)
        return Walked(*parts)  # pyright: ignore[reportArgumentType]


@dataclass(eq=False)
class WalkProgram:
    """The traced walk of one shape, and its compiled form."""

    shape: WalkShape
    functions: Functions = field(init=False)

    def __post_init__(self) -> None:
        self.functions = Functions.of(self, walk=WalkProgram._walk)

    def walk(self, *given: Any) -> Any:
        """``_walk`` compiled, or eager and with one warning where it has no compiled form.

        The forward pass is over by then, so there is no other way to answer.
        """
        try:
            return self.functions.call("walk", *given)
        except CannotCompile as error:
            warn_once(f"the walk back has no compiled form: {error}", given[0].called)
            return self._walk(*given)

    def _walk(
        self,
        holder: Holder,
        args: tuple[Any, ...],
        names: tuple[str, ...],
        shared: tuple[Tensor, ...],
        steps: Walked,
        last: Tensor,
        ended: tuple[Tensor, ...],
        cots: tuple[Tensor, ...],
        totals: tuple[Tensor, ...],
        noise: Any,
    ) -> Any:
        """State and solver state where the chunk began, their cotangents, and those of what its steps share.

        ``ended`` and ``cots`` hold the same where it ended; ``last`` is the place of the last step.
        """
        shape, count = self.shape, len(ended)
        solver, dense, alone = shape.solver, shape.dense, shape.layout.rows == 1
        pull, loop = means()
        rows_of = opened(shape.form, shape.layout, holder, args, names)

        def keeps(i: Tensor, *carry: Tensor) -> Tensor:
            return i >= 0

        def body(i: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
            now, g, totals = carry[:count], carry[count : 2 * count], carry[2 * count :]
            slot = i.reshape(1)
            t, dt, number, end, start = (
                x.index_select(0, slot)[0] for x in (steps.t, steps.dt, steps.number, steps.end, steps.start)
            )
            ok = dt != 0
            path = None if noise is None else Made(noise.increment(t, dt, number))
            y, state = solver.reverse(rows_of(shared, path), t, dt, now[0], now[1:], number)  # pyright: ignore[reportAttributeAccessIssue]
            began = tuple([DEVICE.choose(ok, new, old) for new, old in zip((y, *state), now, strict=True)])
            at = began
            if not alone:
                # Idle rows stand where another row began, so that a derivative is harmless.
                donor = steps.donor.index_select(0, slot)
                at = tuple([DEVICE.choose(ok, x, x.index_select(0, donor)) for x in began])

            def step(*at: Tensor) -> tuple[Tensor, ...]:
                rows = rows_of(at[count:], path)
                after = solver.step(rows, t, dt, at[0], at[1:count], number)
                return after.y, *after.state, *((solver.dense(after, dt, at[0]),) if dense else ())

            given = [DEVICE.choose(ok, x, torch.zeros_like(x)) for x in (g[0] + end, *g[1:])]
            if steps.coefficients is not None:
                given.append(steps.coefficients.index_select(0, slot)[0])
            pulled = pull(step, (*at, *shared), tuple(given))
            back = (pulled[0] + start, *pulled[1:count])
            g = [DEVICE.choose(ok, new, old) for new, old in zip(back, g, strict=True)]
            totals = [a + b for a, b in zip(totals, pulled[count:], strict=True)]
            return (i - 1, *began, *g, *totals)

        start = (last, *ended, *cots, *totals)
        out = loop(keeps, body, tuple([x.clone() for x in start]))[1:]
        return out[:count], out[count : 2 * count], out[2 * count :]
