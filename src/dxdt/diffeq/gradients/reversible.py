"""Gradients by walking back along a reversible solve, which keeps none of its states.

The tape holds when each accepted step began (see ``starts``); the state there is formed from where it
ended by the solver's ``reverse``. Steps at which the state was cut or renewed (events, jumps of the
field) cannot be walked back: there the start is kept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.gradients.checkpoint_slots import OnlineSlots
from dxdt.diffeq.gradients.checkpointed import Begun, Task, recomputed
from dxdt.diffeq.gradients.clock_tape import Starts, donor
from dxdt.diffeq.gradients.gradient import Compiled, Gradient, Inputs, Loop, Outcome, Outputs, Problem
from dxdt.diffeq.loop.plan import Attempt, Carry, Plan, choose_state
from dxdt.diffeq.loop.saving import Recorder, Request
from dxdt.diffeq.loop.step import attach, sided
from dxdt.diffeq.problem.status import Status
from dxdt.ops.times import Ticks

__all__ = ["LOST", "Reversible", "missed"]

LOST = Status.NOT_FINITE, Status.STEP_TOO_SMALL


@final
@dataclass(frozen=True)
class Reversible(Gradient):
    """Walk back along the numbers of the forward solve, step by step, and keep none of them.

    Exact for the discretisation up to rounding, with fixed and with adaptive steps, with and
    without noise. Memory does not grow with the number of steps but for 8 bytes a step and row, the
    time at which the step began. A step costs its evaluations three times and one transposed pass.

    With ``EES25``, which undoes its steps nearly, the gradient is exact to that order.

    Rounding on the way back grows where the solve contracts, because walking back expands; outside
    of the solver's stability region it grows without bound. A walk that misses y0 by more than the
    root of the machine's precision warns (by more than 1e-3 with a method that undoes nearly).

    Samples that failed because values were not finite, or for want of a small enough step,
    contribute exactly zero, also by values that they saved before: where they ended is no place to
    walk back from.

    The field must be a function of (t, y), args, the parameters of the equation's modules and
    ``params``; any other tensor that requires a gradient is an error.

    P. Kidger, J. Foster, X. Li, T. Lyons, "Efficient and accurate gradients for neural SDEs",
    NeurIPS (2021); S. McCallum, J. Foster, "Efficient, accurate and stable gradients for neural
    ODEs", arXiv:2410.11648 (2024).
    """

    def run(self, loop: Loop, plan: Plan, inputs: Inputs, dt: Ticks | None, recorder: Recorder) -> Outcome:
        self.check(plan)
        rows = plan.equation.layout.rows
        single = not plan.equation.layout.per_sample
        return recomputed(_Walk(loop, plan, inputs, dt, recorder, None, Starts(rows, single)))

    def compiled(self, ways: Compiled, problem: Problem) -> Outcome:
        return ways.reversed(self, problem)

    def check(self, plan: Plan) -> None:
        """Raise ValueError for a solver that has no inverse."""
        if not hasattr(plan.solver, "reverse"):
            raise ValueError(
                f"Reversible walks back along a reversible solver, which "
                f"{type(plan.solver).__name__} is not: use dxdt.ReversibleHeun(), "
                f"dxdt.McCallumFoster(dxdt.Tsit5()), or gradient=dxdt.Checkpointed()"
            )


@dataclass(eq=False)
class _Walk(Task):
    """A solve whose steps are walked back; its tape is of ``Starts``."""

    def enter(self, now: Carry, attempt: Attempt, request: Request | None, online: OnlineSlots | None) -> None:
        cut = attempt.crossing is not None
        if cut or (attempt.jumped is not None and np.any(attempt.jumped)):
            self.states[len(self.tape)] = Begun(now.y, now.solver, now.origin)
        elif attempt.jumped is not None:
            attempt = attempt._replace(jumped=None)
        self.tape.append(attempt, request)

    def forward(self) -> Outputs:
        outputs = super().forward()
        assert self.carry is not None
        self.tape.close(self.carry)
        return outputs

    def pull(self, inputs: Inputs, given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Cotangents of the inputs; those of lost rows count as zero."""
        lost = self._lost()
        if lost.any():
            y, values, *rest = given
            y = None if y is None else torch.where(_column(lost, y), 0.0, y)
            if values is not None and self.recorder.row:
                values = torch.where(_column(lost[np.concatenate(self.recorder.row)], values), 0.0, values)
            given = (y, values, *rest)
        return super().pull(inputs, given)

    def _lost(self) -> np.ndarray:
        """Rows whose values overflowed or nearly: where they ended is no place to walk back from."""
        assert self.carry is not None
        return np.isin(np.atleast_1d(self.carry.status), [s.code for s in LOST])

    def backwards(self, plan: Plan) -> Any:
        """The accepted steps from last to first, each with where it began."""
        assert self.carry is not None
        lost = self._lost()
        now = Begun(self.carry.y, self.carry.solver, self.carry.origin)
        for i, tape in self.tape.backwards():
            attempt = _without(tape.attempt, lost) if lost.any() else tape.attempt
            if not attempt.ok.any():
                yield tape._replace(attempt=attempt), self._beginning(plan, self.inputs.y.detach())
                continue
            kept = self.states.get(i)
            now = self._before(plan, attempt, now) if kept is None else kept
            yield tape._replace(attempt=attempt), _donated(attempt, now)
        y0 = self.inputs.y.detach()
        missed(torch.where(_column(lost, y0), y0, now.y), plan, y0)

    def _before(self, plan: Plan, attempt: Attempt, now: Begun) -> Begun:
        """Where a step began, from where it ended."""
        solver: Any = plan.solver
        at = attempt.at._replace(y=now.y)
        choose, ok = plan.span.clock.choose, attempt.ok
        with torch.no_grad():
            t, dt = attach(plan, attempt._replace(at=at, origin=now.origin))
            y, state = solver.reverse(sided(plan, at.t, at.dt), t, dt, now.y, now.solver, attempt.index)
            state = choose_state(plan, ok, state, now.solver)
            return Begun(choose(ok, y, now.y), state, now.origin)


def _without(attempt: Attempt, lost: np.ndarray) -> Attempt:
    """An attempt in which lost rows idle."""
    ok = attempt.ok & (lost[0] ^ True if np.ndim(attempt.ok) == 0 else ~lost)
    t, dt = attempt.at.t, attempt.at.dt
    if ok.any() and not ok.all():
        t = np.where(ok, t, t[donor(ok)])
    at = attempt.at._replace(t=t, dt=dt * ok)
    muted = None if attempt.muted is None or not ok.any() else attempt.muted
    return attempt._replace(at=at, ok=ok, fresh=attempt.fresh & ok, last=attempt.last & ok, muted=muted)


def _column(rows: np.ndarray, like: Tensor) -> Tensor:
    """A mask of rows beside data."""
    return torch.from_numpy(rows).to(like.device)[:, None]


def _donated(attempt: Attempt, now: Begun) -> Begun:
    """``now`` with idle rows where another row began, so that a derivative is harmless."""
    ok = attempt.ok
    if ok.all():
        return now
    rows = torch.from_numpy(np.where(ok, np.arange(len(ok)), donor(ok))).to(now.y.device)
    return Begun(now.y[rows], tuple(s[rows] for s in now.solver), now.origin)


def missed(reached: Tensor, plan: Plan, y0: Tensor) -> None:
    """Warn where the walk did not end at y0."""
    y0 = y0.detach()
    nearly = plan.solver.facts.symmetric_order is not None
    size = 1e-3 if nearly else torch.finfo(y0.dtype).eps ** 0.5
    miss = float((reached - y0).abs().max() / y0.abs().max().clamp_min(1.0))
    if not miss <= size:
        warnings.warn(
            f"walking back along {type(plan.solver).__name__} missed y0 by {miss:.1e}, so the "
            f"gradient is not exact: the steps leave its stability region or the solve contracts "
            f"too much; take smaller steps, float64, or gradient=dxdt.Checkpointed()",
            RuntimeWarning,
            stacklevel=2,
        )
