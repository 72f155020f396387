"""Why a solve took too many steps: what its last state says of stiffness and of jumps of the field."""

from __future__ import annotations

import numpy as np
import torch

from dxdt.diffeq.loop.plan import Carry
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import START, moments

__all__ = ["diagnosis"]

# Steps of an explicit method that its stability limits are some two to four over the fastest rate; those that its
# tolerance limits are a fraction of one.
_STIFF = 1.5
_ROUNDS, _MOSTLY = 10, 0.35


def diagnosis(rows: Rows, solver: Solver, carry: Carry, row: int) -> str:
    """A sentence on why a row took too many steps, with the remedy, or nothing.

    The fastest rate of the field near the last state is estimated by power iteration on differences of the field,

        rate = max |f(t, y + e v) - f(t, y)| / |e v|,

    and compared with the length of the steps.
    """
    if solver.facts.implicit or solver.facts.stochastic or rows.noise is not None:
        return ""
    step = abs(float(np.atleast_1d(carry.dt)[row]))
    rate = _fastest_rate(rows, carry, row)
    if step * rate > _STIFF:
        size, name = f"{step * rate:.1f}", type(solver).__name__
        return (
            f": it looks stiff there, for a step of {step:.2g} times the fastest rate of the field is {size}, about as "
            f"much as {name} can follow; use a stiff method, as solver=dxdt.Kvaerno5()"
        )
    attempts, accepted = (int(np.atleast_1d(x)[row]) for x in (carry.attempts, carry.accepted))
    if attempts > 20 and attempts - accepted > _MOSTLY * attempts:
        return (
            f": {attempts - accepted} of its {attempts} steps were rejected, as where the field jumps; give the times "
            f"of jumps as controller=dxdt.Clip(dxdt.PID(), jumps=[...]), or locate them by an event with a reset"
        )
    return ""


def _fastest_rate(rows: Rows, carry: Carry, row: int) -> float:
    layout = rows.layout
    t = carry.t if layout.per_sample else np.atleast_1d(carry.t)[0]
    (time,) = moments(t, 0 * np.asarray(t)[()], START, layout)
    with torch.no_grad():
        y = carry.y.detach()
        if not bool(torch.isfinite(y).all()):
            return 0.0
        try:
            here = rows.drift(time, y)
            way, found = here, 0.0
            for _ in range(_ROUNDS):
                length = torch.linalg.vector_norm(way, dim=-1, keepdim=True)
                size = 1e-6 * (1 + torch.linalg.vector_norm(y, dim=-1, keepdim=True))
                moved = rows.drift(time, y + size * way / torch.where(length > 0, length, 1.0)) - here
                way = moved / size
                found = float(torch.linalg.vector_norm(way[row]))
        except Exception:  # the field's own trouble is told elsewhere
            return 0.0
    return found if np.isfinite(found) else 0.0
