"""Rosenbrock methods: one Newton iteration a stage, with the Jacobian as a part of the method.

    (1 - g dt J) u_i = g dt f(t + c_i dt, y + sum_j a_ij u_j) + g sum_j C_ij u_j + g d_i dt^2 df/dt,     J = df/dy

    y' = y + sum_i m_i u_i,      error = sum_i e_i u_i

There is nothing to iterate, and no stage to fail: a step is a formula, with one factorisation. Its order needs the
exact Jacobian, and its derivative those of the Jacobian.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", IV.7 (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.implicit.newton import wants_gradient
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.autodiff import jacobian, jvp
from dxdt.ops.linear import factor, identity
from dxdt.ops.times import END, START, Table, Ticks, factors, moments

__all__ = ["Rodas5P", "Rosenbrock", "RosenbrockTableau"]


@dataclass(frozen=True, eq=False)
class RosenbrockTableau:
    """Coefficients of a Rosenbrock method with s stages, in the form without products of the Jacobian.

    Args:
        g: number on the diagonal.
        a: rows 2..s of a_ij.
        c: rows 2..s of C_ij.
        d: weights of the time derivative, s entries.
        nodes: c_i, s entries.
        m: weights of the solution.
        error: weights of the estimate.
        order, error_order: of the solution, power of dt in the estimate.
        dense: rows H of weights of the stages in the dense output, see ``Rosenbrock.dense``.
        dense_order: order of the dense output.
    """

    g: float
    a: Sequence[Sequence[float]]
    c: Sequence[Sequence[float]]
    d: Sequence[float]
    nodes: Sequence[float]
    m: Sequence[float]
    error: Sequence[float]
    order: int
    error_order: int
    dense: Sequence[Sequence[float]]
    dense_order: int


@dataclass(frozen=True)
class Rosenbrock(Solver):
    """Base of the Rosenbrock methods; a method is a subclass that gives ``tableau``."""

    tableau: ClassVar[RosenbrockTableau]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        tableau = cls.tableau
        cls.facts = Facts(
            order=tableau.order,
            stages=len(tableau.m) + 1,
            dense_order=tableau.dense_order,
            error_order=tableau.error_order,
            degree=len(tableau.dense) + 1,
            implicit=True,
        )

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        tableau = self.tableau
        times = moments(t, dt, Table.of(tableau.nodes), eq.layout)
        (start,) = moments(t, dt, START, eq.layout)
        value, late = jvp(lambda s: eq.drift(s, y), start, torch.ones_like(start))
        with torch.set_grad_enabled(wants_gradient(t, dt, y, value)):
            slope = jacobian(lambda z: eq.drift(start, z), y)[1]
        if eq.muted is not None:
            # A row whose field counts as zero may have none: its derivatives count as zero, too.
            slope, late = torch.where(eq.muted.unsqueeze(-1), 0.0, slope), torch.where(eq.muted, 0.0, late)
        (h,) = factors(END, dt, y)
        g = tableau.g * h
        system = factor(identity(y) - (g.unsqueeze(-1) if isinstance(g, Tensor) else g) * slope)
        stages: list[Tensor] = []
        for i, time in enumerate(times):
            if i > 0:
                value = eq.drift(time, _weighted(y, tableau.a[i - 1], stages))
            right = value * g
            if i > 0:
                right = right + tableau.g * _weighted(None, tableau.c[i - 1], stages)
            if tableau.d[i]:
                right = right + (tableau.d[i] * tableau.g) * (h * (h * late))
            stages.append(system.solve(right))
        new = _weighted(y, tableau.m, stages)
        error = _weighted(None, tableau.error, [u.detach() for u in stages])
        return Step(new, error, (), tuple(stages))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        """The polynomial y + theta (y' - y) + theta (1 - theta) sum_j (H u)_j theta^j."""
        parts = [_weighted(None, row, step.data) for row in self.tableau.dense]
        rise = step.y - y
        below = [torch.zeros_like(y), *parts]
        return torch.stack(
            [(rise if j == 0 else 0) + p - q for j, (p, q) in enumerate(zip([*parts, 0], below, strict=True))]
        )


def _weighted(y: Tensor | None, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    total: Any = None
    for w, u in zip(weights, stages, strict=False):
        if w:
            total = u * w if total is None else torch.add(total, u, alpha=w)
    return total if y is None else y + total


_M = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)


@final
class Rodas5P(Rosenbrock):
    """Steinebach's method of order 5 with an estimate of order 4, of eight stages, L-stable and stiffly accurate.

    Made to keep its order on parabolic problems; the first choice for small stiff systems.

    G. Steinebach, "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia
    Differential Equations package", BIT 63 (2023).
    """

    tableau = RosenbrockTableau(
        g=0.21193756319429014,
        a=(
            (3.0,),
            (2.849394379747939, 0.45842242204463923),
            (-6.954028509809101, 2.489845061869568, -10.358996098473584),
            (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
            _M,
            (*_M, 1.0),
            (*_M, 1.0, 1.0),
        ),
        c=(
            (-14.155112264123755,),
            (-17.97296035885952, -2.859693295451294),
            (147.12150275711716, -1.41221402718213, 71.68940251302358),
            (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
            (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
            (
                *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
                *(34.28646028294783, -19.097331116725623, -28.087943162872662),
            ),
            (
                *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
                *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
            ),
        ),
        d=(
            0.21193756319429014,
            -0.42387512638858027,
            -0.3384627126235924,
            1.8046452872882734,
            2.325825639765069,
            0,
            0,
            0,
        ),
        nodes=(0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1, 1, 1),
        m=(*_M, 1, 1, 1),
        error=(0, 0, 0, 0, 0, 0, 0, 1),
        order=5,
        error_order=5,
        dense=(
            (
                *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
                *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
            ),
            (
                *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
                *(20.176138334709044, 15.98066362424651, -6.789040303419874, -6.710236069923372),
            ),
            (
                *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
                *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
            ),
        ),
        dense_order=4,
    )
