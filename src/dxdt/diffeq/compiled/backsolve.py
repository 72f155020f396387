"""``Backsolve`` compiled: a forward solve that keeps no starts, and one program that is called for each interval
between saved times on the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.compiled.adjoint import AdjointProgram, AdjointShape, Seed, Stretch
from dxdt.diffeq.compiled.checkpointed import look
from dxdt.diffeq.compiled.forward import Forward, check_field, compilable, undone
from dxdt.diffeq.gradients.adjoint_rows import NODES, AdjointRows
from dxdt.diffeq.gradients.adjoint_sweep import EagerSweep, Sweep, Way, adjoint_of, arrived, part_of
from dxdt.diffeq.gradients.backsolve import Backsolve, Task, args_of
from dxdt.diffeq.gradients.gradient import Inputs, Outcome, Problem
from dxdt.diffeq.loop.advance import run
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.programs.controller_split import split
from dxdt.diffeq.programs.eager_fallback import warn_once
from dxdt.diffeq.programs.engine import first_step, program, tables
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.pullback import Holder, hold
from dxdt.diffeq.programs.signature import Form, fields_of
from dxdt.ops.times import hosted
from dxdt.ops.tree import tree_map

__all__ = ["backsolved"]


def backsolved(gradient: Backsolve, problem: Problem) -> Outcome:
    """A compiled solve whose outcome is differentiable by the continuous adjoint.

    Raises:
        CannotCompile: the solve, its field or the backward solve has no compiled form.
    """
    plan, inputs, dt, recorder = problem
    with undone(plan, recorder):
        compilable(plan)
        gradient.check(plan, inputs, recorder)
        check_field(plan, inputs.y)
        look(plan, inputs, gradient)
        back = _Back(gradient.way(plan), plan, inputs, dt)
        y = inputs.y.detach()

        def solved() -> Outcome:
            with torch.no_grad():
                return Forward(plan, recorder, keep=False).run(y, dt)

        return Task(gradient, plan, inputs, recorder, solved, back.sweep).outcome()


@dataclass(eq=False)
class _Back:
    """The way back of a solve, and what of it is known before."""

    way: Way
    plan: Plan
    inputs: Inputs
    dt: Any
    program: AdjointProgram = field(init=False)
    holder: Holder = field(init=False)
    names: tuple[str, ...] = field(init=False)
    shape: AdjointShape = field(init=False)

    def __post_init__(self) -> None:
        plan, inputs, equation = self.plan, self.inputs, self.plan.equation
        solver, controller, seminorm, _ = self.way
        if not solver.facts.compiles:
            raise CannotCompile(f"{type(solver).__name__} has no compiled form yet")
        if equation.noise is not None:
            raise CannotCompile("Backsolve along a random path has no compiled form yet; Checkpointed() has")
        rule, _ = split(controller)
        self.holder, self.names = hold(fields_of(equation.equation), equation.modules(), inputs.params)
        shared = *args_of(inputs), *inputs.params
        adjoint = adjoint_of(plan, [x for x in shared if x.requires_grad], seminorm)
        wanted = tuple(x.requires_grad for x in shared)
        form, seen = Form.of(equation), identified(plan)
        self.shape = AdjointShape(
            solver, rule, equation.layout, form, seen, wanted, adjoint.full, seminorm, controller.adaptive
        )
        self.program = program(self.shape, AdjointProgram)

    def sweep(self, inputs: Inputs, shared: list[Tensor]) -> Sweep:
        """The backward solve for these inputs."""
        plan = inputs.plan(self.plan)
        adjoint = adjoint_of(plan, shared, self.way.seminorm)
        return _Sweep(self, plan, inputs, EagerSweep.of(self.way, run, adjoint, plan, self.dt))


@dataclass(eq=False)
class _Sweep:
    """The backward solve by the program, and by the eager loop from where it has no compiled form.

    Attributes:
        eager: holds the state and the next steps.
        seed: what is put into the state where the next interval begins, or None.
        failed: whether the eager loop has taken over.
    """

    made: _Back
    plan: Plan
    inputs: Inputs
    eager: EagerSweep
    seed: Seed | None = None
    failed: bool = False
    evaluated: int = 0

    def __post_init__(self) -> None:
        controller, inputs = self.made.way.controller, self.inputs
        self.args = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, inputs.args)
        self.shared = tuple([x.detach() for x in (*args_of(inputs), *inputs.params)])
        self.sums = tuple(self.adjoint.sums) if self.adjoint.integrates else ()
        scale, y = self.adjoint.scale(controller), inputs.y
        self.scale = (None, None) if scale is None else (_like(scale.atol, y), _like(scale.rtol, y))
        self.table = split(controller)[1]
        self.limit = torch.tensor(self.made.way.max_steps, device=y.device)
        dt, rows = self.eager.dt, self.adjoint.layout.rows
        if not controller.adaptive:
            dt = first_step(controller, self.made.dt, rows)
            dt = np.zeros(rows) if dt is None else np.broadcast_to(dt, (rows,))
        self.dt = _clock(dt, y)
        self.nothing = Seed(
            torch.zeros_like(y), torch.zeros_like(y), torch.zeros(rows, dtype=torch.bool, device=y.device)
        )
        self.every = torch.ones(rows, dtype=torch.bool, device=y.device)

    @property
    def adjoint(self) -> AdjointRows:
        return self.eager.adjoint

    @property
    def evaluations(self) -> int:
        return self.evaluated + self.eager.evaluations

    def begin(self, y: Tensor, a: Tensor) -> None:
        self.eager.begin(y, a)

    def reseed(self, number: np.ndarray, rows: np.ndarray, values: Tensor, cots: Tensor) -> None:
        if self.failed:
            return self.eager.reseed(number, rows, values, cots)
        self._settle()
        if len(self.every) == 1:
            i = int(number[0])
            self.seed = Seed(values[i : i + 1], cots[i : i + 1], self.every)
            return None
        index, at = (torch.as_tensor(x, device=values.device) for x in (rows, number))
        y, cot = (self.nothing.y.index_put((index,), x[at]) for x in (values, cots))
        self.seed = Seed(y, cot, self.nothing.rows.index_fill(0, index, True))
        return None

    def end(self) -> tuple[Tensor, list[Tensor]]:
        self._settle()
        if not self.failed:
            self.adjoint.sums = list(self.sums)
        return self.eager.end()

    def back(self, now: np.ndarray, goal: np.ndarray) -> None:
        if (now == goal).all():
            return
        if not self.failed:
            try:
                return self._back(now, goal)
            except CannotCompile as error:
                warn_once(f"the backward solve has no compiled form: {error}", self.made.holder.called)
                self._hand_over()
        self.eager.back(now, goal)

    def _back(self, now: np.ndarray, goal: np.ndarray) -> None:
        made, y, eager = self.made, self.inputs.y, self.eager
        part = part_of(made.way.controller, now, goal)
        table = self.table if part is None else part
        table = None if table is None else tables(table, y)
        stretch = Stretch(_clock(now, y), _clock(goal, y), table, self.scale[0], self.scale[1], self.limit)
        seed, fixed = self.seed or self.nothing, (made.holder, self.args, made.names, self.shared)
        out = made.program.sweep(*fixed, eager.state, seed, self.dt, self.sums, stretch)
        eager.state, dt, self.sums, status, used, work = out
        if made.shape.adaptive:
            self.dt = dt
        self.seed = None
        status, used = hosted([status, used])
        arrived(status.numpy())
        self.evaluated += _evaluated(int(used), work, made.shape.adaptive, bool(self.sums))

    def _settle(self) -> None:
        """Put what waits into the state."""
        seed, self.seed = self.seed, None
        if seed is not None:
            rows = seed.rows.nonzero()[:, 0]
            self.eager.state = self.adjoint.reseed(self.eager.state, rows, seed.y[rows], seed.cot[rows])

    def _hand_over(self) -> None:
        self._settle()
        self.failed, self.eager.dt = True, hosted([self.dt])[0].numpy().copy()
        if self.adjoint.integrates:
            self.adjoint.sums = [s.clone() for s in self.sums]


def _evaluated(attempts: int, work: tuple[int, int, bool], adaptive: bool, integrates: bool) -> int:
    """Evaluations of the adjoint in an interval: before the first attempt, and in each."""
    opening, each, apart = work
    return opening + adaptive * (1 + apart) + attempts * (each + integrates * len(NODES.numbers))


def _clock(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(like.device)


def _like(x: Tensor | float, y: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=y.dtype, device=y.device)
