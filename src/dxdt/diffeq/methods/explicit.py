"""Explicit Runge-Kutta methods: one step written once, each method a class of data.

    k_1 = f(t, y),  k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j),  y' = y + dt sum_i b_i k_i

The products dt a_ij are formed together before the stages, so that a stage costs one fused
multiply-add per nonzero coefficient. Methods whose last stage is f(t + dt, y') carry it to the next
step; the others do so only where the solve needs dense output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction as F
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.methods.tableau import Row, Tableau
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import END, START, Ticks, factors, from_host, moments

__all__ = ["RK4", "Bosh3", "Dopri5", "Euler", "Heun", "Midpoint", "Ralston", "RungeKutta", "Tsit5"]


# Numbers of a state below which a step costs dispatch, not arithmetic.
_SMALL = 4096


class RungeKutta(Solver):
    """Base of the explicit Runge-Kutta methods; a method is a subclass that gives ``tableau``, and its facts follow."""

    tableau: ClassVar[Tableau]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        tableau = cls.tableau
        cls.facts = Facts(
            order=tableau.order,
            stages=tableau.stages - tableau.fsal,
            dense_order=tableau.dense_order if tableau.dense or tableau.middle else min(3, tableau.order),
            error_order=tableau.error_order,
            degree=len(tableau.powers) if tableau.powers is not None else 4 if tableau.middle else 3,
            compiles=True,
            symmetric_order=tableau.symmetric_order,
        )

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        tableau = self.tableau
        if not (tableau.fsal or dense or _estimate_uses_end(tableau)):
            return ()
        (start,) = moments(t, t * 0, START, eq.layout)
        return (eq.drift(start, y),)

    def slope(self, state: State) -> Tensor | None:
        return state[0] if state else None

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        if y.numel() <= _SMALL and isinstance(dt, (float, np.ndarray)) and not torch.is_grad_enabled():
            return self._small_step(eq, t, dt, y, state)
        tableau = self.tableau
        rows = y.shape
        steps = factors(tableau.values, dt, y)
        nodes = tableau.nodes if tableau.fsal or not state else tableau.nodes_and_end
        times = moments(t, dt, nodes, eq.layout)
        drift, y, stages = _natural(eq, dt, y, state)
        stages = stages or [drift(moments(t, dt, START, eq.layout)[0], y)]
        z, used = y, 0
        for i, time in enumerate(times[: tableau.stages - 1]):
            row = tableau.rows[i]
            z = _combine(y, row, steps[used:], stages, last=tableau.solution == i)
            used += len(row)
            stages.append(drift(time, z))
        if not tableau.fsal:
            row = tableau.rows[tableau.solution]
            z = _combine(y, row, steps[used:], stages, last=True)
            used += len(row)
            if state:
                stages.append(drift(times[-1], z))
        error = None
        if tableau.error is not None:
            error = _combine(None, tableau.rows[-1], steps[used:], detached(stages))
            error = _rows(_finite_at_end(tableau, error, state, stages), rows)
        return Step(_rows(z, rows), error, (_rows(stages[-1], rows),) if state else (), tuple(stages))

    def _small_step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State) -> Step:
        """The same step where dispatch costs more than arithmetic: each stage is added to all later
        sums by one operation, instead of one per coefficient."""
        tableau = self.tableau
        joint, rows = not eq.layout.per_sample, y.shape
        nodes = tableau.nodes if tableau.fsal or not state else tableau.nodes_and_end
        times = moments(t, dt, nodes, eq.layout)
        drift, y, stages = _natural(eq, dt, y, state)
        columns, begins = _shaped(tableau, y.dim(), y.dtype, y.device)
        factor = from_host(columns * dt if joint else columns * dt.reshape(-1, *(1,) * (y.dim() - 1)), y).unbind(0)
        stages = stages or [drift(moments(t, dt, START, eq.layout)[0], y)]
        sums = y * begins
        views = sums.unbind(0)
        last, end, z = tableau.stages - 1, tableau.solution, y
        for i in range(last):
            sums.addcmul_(factor[i], stages[i])
            if i == end:
                z = y + views[end]
                stages.append(drift(times[i], z))
            else:
                stages.append(_apart(drift(times[i], views[i]), sums))
        sums.addcmul_(factor[last], stages[last])
        if end == last:
            z = y + views[end]
        if not tableau.fsal and state:
            stages.append(drift(times[-1], z))
            if len(factor) > tableau.stages:
                sums.addcmul_(factor[-1], stages[-1])
        error = None
        if tableau.error is not None:
            error = _rows(_finite_at_end(tableau, views[-1], state, stages), rows)
        return Step(_rows(z, rows), error, (_rows(stages[-1], rows),) if state else (), tuple(stages))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        tableau, stages = self.tableau, tuple([_rows(k, y.shape) for k in step.data])
        if tableau.powers is not None:
            return torch.stack([_weigh(row, dt, stages) for row in tableau.powers])
        (h,) = factors(END, dt, y)
        f0, f1 = h * stages[0], h * stages[-1]
        if tableau.middle is None:
            return torch.stack(hermite(y, step.y, f0, f1))
        middle = _weigh(tableau.halfway, dt, stages)
        return torch.stack(_quartic(step.y - y, f0, f1, middle))


@lru_cache(maxsize=256)
def _shaped(tableau: Tableau, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[np.ndarray, Tensor]:
    """The columns of a tableau and what its sums begin with, broadcast against a state of ``dim`` axes."""
    columns, begins = tableau.columns
    like = torch.empty((), dtype=dtype, device=device)
    return columns.reshape(*columns.shape, *(1,) * dim), from_host(begins.reshape(-1, *(1,) * dim), like)


def _natural(eq: Rows, dt: Ticks, y: Tensor, state: State) -> tuple[Callable[..., Tensor], Tensor, list[Tensor]]:
    """The drift, the state and the stages so far, in the user's shape where nothing need be packed."""
    whole = eq.natural if isinstance(eq, Rows) and not isinstance(dt, Tensor) else None
    if not whole:
        return eq.drift, y, list(state)
    if eq.layout.aliased:
        return eq.direct, y, list(state)
    return eq.direct, y.reshape(whole), [k.reshape(whole) for k in state]


def _rows(x: Tensor, rows: torch.Size) -> Tensor:
    """A tensor in the shape of the rows; no operation where it has it."""
    return x if x.shape == rows else x.reshape(rows)


def _apart(k: Tensor, sums: Tensor) -> Tensor:
    """A stage that does not lie in ``sums``: a field may return its argument, or a view of it."""
    if k._base is None and not k.is_inference():
        return k
    return k.clone() if k.untyped_storage().data_ptr() == sums.untyped_storage().data_ptr() else k


def _estimate_uses_end(tableau: Tableau) -> bool:
    return tableau.error is not None and len(tableau.error) > tableau.stages


def _finite_at_end(tableau: Tableau, error: Tensor, state: State, stages: list[Tensor]) -> Tensor:
    """An estimate that is not finite where the slope at the end is not, so that no step begins there."""
    if not state or tableau.fsal or _estimate_uses_end(tableau):
        return error
    return torch.add(error, stages[-1].detach(), alpha=0)


def detached(stages: list[Tensor]) -> list[Tensor]:
    """Stages without their graph: what enters the controller is not differentiated."""
    return [k.detach() for k in stages] if stages[-1].requires_grad else stages


def _combine(
    y: Tensor | None, row: tuple[int, ...], steps: Sequence[Any], stages: Sequence[Tensor], last: bool = False
) -> Tensor:
    """y + sum_j (dt a_j) k_j over the nonzero entries of a row of the tableau.

    ``last`` adds y at the end, so that a step rounds the solution once and not once a stage.
    """
    if last and y is not None:
        return y + _combine(None, row, steps, stages)
    total = y
    if total is None:
        total, row, steps = stages[row[0]] * steps[0], row[1:], steps[1:]
    if row and isinstance(steps[0], float):
        for j, step in zip(row, steps, strict=False):
            total = torch.add(total, stages[j], alpha=step)
        return total
    for j, step in zip(row, steps, strict=False):
        total = torch.addcmul(total, step, stages[j])
    return total


def _weigh(row: Row, dt: Ticks, stages: tuple[Tensor, ...]) -> Tensor:
    return _combine(None, row.stages, factors(row.weights, dt, stages[0]), stages)


def _quartic(rise: Tensor, f0: Tensor, f1: Tensor, middle: Tensor) -> tuple[Tensor, ...]:
    """Coefficients of the quartic with p(0) = 0, p(1) = rise, p(1/2) = middle and end slopes f0, f1."""
    return (
        f0,
        16 * middle - 5 * rise - 4 * f0 + f1,
        14 * rise - 32 * middle + 5 * f0 - 3 * f1,
        16 * middle - 8 * rise - 2 * f0 + 2 * f1,
    )


@final
@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method."""

    tableau = Tableau(a=[], b=[1], order=1)


@final
@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Explicit midpoint method with Euler's method as the lower member of the pair."""

    tableau = Tableau(a=[[F(1, 2)]], b=[0, 1], order=2, error=[-1, 1], error_order=2)


@final
@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (explicit trapezoidal rule) with Euler's method as the lower member of the pair."""

    tableau = Tableau(a=[[1]], b=[F(1, 2), F(1, 2)], order=2, error=[F(-1, 2), F(1, 2)], error_order=2)


@final
@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's second-order method of least truncation error, with Euler's method below.

    A. Ralston, "Runge-Kutta methods with minimum error bounds", Math. Comp. 16 (1962).
    """

    tableau = Tableau(a=[[F(2, 3)]], b=[F(1, 4), F(3, 4)], order=2, error=[F(-3, 4), F(3, 4)], error_order=2)


@final
@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """Bogacki-Shampine 3(2).

    P. Bogacki, L. Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Lett. 2 (1989).
    """

    tableau = Tableau(
        a=[[F(1, 2)], [0, F(3, 4)], [F(2, 9), F(1, 3), F(4, 9)]],
        b=[F(2, 9), F(1, 3), F(4, 9), 0],
        order=3,
        error=[F(-5, 72), F(1, 12), F(1, 9), F(-1, 8)],
        error_order=3,
    )


@final
@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order method."""

    tableau = Tableau(a=[[F(1, 2)], [0, F(1, 2)], [0, 0, 1]], b=[F(1, 6), F(1, 3), F(1, 3), F(1, 6)], order=4)


@final
@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """Dormand-Prince 5(4) with Shampine's fourth-order dense output.

    J. Dormand, P. Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math. 6 (1980);
    L. Shampine, "Some practical Runge-Kutta formulas", Math. Comp. 46 (1986).
    """

    tableau = Tableau(
        a=[
            [F(1, 5)],
            [F(3, 40), F(9, 40)],
            [F(44, 45), F(-56, 15), F(32, 9)],
            [F(19372, 6561), F(-25360, 2187), F(64448, 6561), F(-212, 729)],
            [F(9017, 3168), F(-355, 33), F(46732, 5247), F(49, 176), F(-5103, 18656)],
            [F(35, 384), 0, F(500, 1113), F(125, 192), F(-2187, 6784), F(11, 84)],
        ],
        b=[F(35, 384), 0, F(500, 1113), F(125, 192), F(-2187, 6784), F(11, 84), 0],
        order=5,
        error=[F(71, 57600), 0, F(-71, 16695), F(71, 1920), F(-17253, 339200), F(22, 525), F(-1, 40)],
        error_order=5,
        dense=[
            [1, F(-8048581381, 2820520608), F(8663915743, 2820520608), F(-12715105075, 11282082432)],
            [0, 0, 0, 0],
            [0, F(131558114200, 32700410799), F(-68118460800, 10900136933), F(87487479700, 32700410799)],
            [0, F(-1754552775, 470086768), F(14199869525, 1410260304), F(-10690763975, 1880347072)],
            [0, F(127303824393, 49829197408), F(-318862633887, 49829197408), F(701980252875, 199316789632)],
            [0, F(-282668133, 205662961), F(2019193451, 616988883), F(-1453857185, 822651844)],
            [0, F(40617522, 29380423), F(-110615467, 29380423), F(69997945, 29380423)],
        ],
        dense_order=4,
    )


def _factored(scale: float, *factors_: list[float]) -> list[float]:
    """Coefficients of theta, ..., theta^4 of a product of polynomials (ascending), times a number."""
    out = np.array([scale])
    for f in factors_:
        out = np.polynomial.polynomial.polymul(out, f)
    return out[1:5].tolist()


@final
@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """Tsitouras 5(4) with its free fourth-order interpolant; the default method.

    C. Tsitouras, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption", Comput. Math. Appl. 62 (2011).
    """

    tableau = Tableau(
        a=[
            [0.161],
            [-0.008480655492356989, 0.335480655492357],
            [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
            [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
            [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
            [0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774],
        ],
        b=[0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0],
        order=5,
        error=[
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            0.015151515151515152,
        ],
        error_order=5,
        dense=[
            _factored(
                -1.0530884977290216, [0, 1], [-1.3299890189751412, 1], [0.7139816917074209, -1.4364028541716351, 1]
            ),
            _factored(0.1017, [0, 0, 1], [1.2949852507374631, -2.1966568338249754, 1]),
            _factored(2.490627285651252793, [0, 0, 1], [1.57803468208092486, -2.38535645472061657, 1]),
            _factored(-16.54810288924490272, [0, 0, 1], [-1.21712927295533244, 1], [-0.61620406037800089, 1]),
            _factored(47.37952196281928122, [0, 0, 1], [-1.203071208372362603, 1], [-0.658047292653547382, 1]),
            _factored(-34.87065786149660974, [0, 0, 1], [-1.2, 1], [-0.666666666666666667, 1]),
            _factored(2.5, [0, 0, 1], [-1, 1], [-0.6, 1]),
        ],
        dense_order=4,
    )
