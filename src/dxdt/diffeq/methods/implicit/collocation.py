"""Collocation methods: all stages of a step are one system of equations.

    k_i = f(t + c_i dt, y + dt sum_j a_ij k_j),   a_ij = int_0^{c_i} l_j,   b_j = int_0^1 l_j,

with l_j the Lagrange polynomials of the nodes c. The estimate compares with the quadrature of order s
that uses f(t, y),

    error = (1 - g dt df/dy)^{-1} dt (sum_i (b_i - b_hat_i) k_i - g f(t, y)),

where g is the real eigenvalue of the matrix a, or the root of its determinant for two stages.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", IV.5 and IV.8 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.implicit.dirk import marked, weighted_sum
from dxdt.diffeq.methods.implicit.newton import StageNewton, slopes_of, step_size, tied, wants_gradient
from dxdt.diffeq.methods.implicit.tableau import ImplicitTableau
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.linear import Factored, factor, identity
from dxdt.ops.times import END, START, Ticks, factors, moments

__all__ = ["Collocation", "GaussLegendre4", "GaussLegendre6", "RadauIIA3", "RadauIIA5", "collocation"]


def collocation(nodes: list[float], order: int) -> ImplicitTableau:
    """The tableau of the collocation method with these nodes, and the estimate that goes with it."""
    s = len(nodes)
    powers = np.vander(np.array(nodes), s + 1, increasing=True)
    # Integrals of monomials, in terms of their values at the nodes.
    inverse = np.linalg.inv(powers[:, :s])
    a = (powers[:, 1:] / np.arange(1, s + 1)) @ inverse
    b = (1 / np.arange(1, s + 1)) @ inverse
    eigenvalues = np.linalg.eigvals(a)
    real = eigenvalues[np.abs(eigenvalues.imag) < 1e-12].real
    g = float(real[0]) if len(real) else float(np.linalg.det(a) ** (1 / s))
    lower = (1 / np.arange(1, s + 1) - g * (np.arange(s) == 0)) @ inverse
    if nodes[-1] == 1:  # the last stage is the solution, to the last bit
        a[-1] = b
    return ImplicitTableau(a.tolist(), b.tolist(), order, [-g, *(b - lower).tolist()], s + 1, g)


@dataclass(frozen=True)
class Collocation(Solver):
    """Base of the collocation methods; a method is a subclass that gives ``tableau``.

    Args:
        newton: how the equations of the stages are solved.
    """

    newton: StageNewton = StageNewton()  # noqa: RUF009

    tableau: ClassVar[ImplicitTableau]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        tableau = cls.tableau
        order, stages = tableau.order, tableau.stages
        dense, degree = (min(3, order), 3) if tableau.stiffly_accurate else (stages, stages)
        cls.facts = Facts(order, stages, dense, tableau.error_order, degree=degree, implicit=True)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        (start,) = moments(t, t * 0, START, eq.layout)
        return (eq.drift(start, y),)

    def slope(self, state: State) -> Tensor | None:
        return state[0]

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        tableau = self.tableau
        times = moments(t, dt, tableau.nodes, eq.layout)
        (start,) = moments(t, dt, START, eq.layout)
        stages = _Stages(tableau, eq, step_size(dt, 1.0, y), times)
        fixed = y.detach()
        slope = slopes_of(eq.drift, start, y)
        with torch.no_grad():
            system = factor(stages.matrix([slope] * len(times)))

        def renewed(k: Tensor) -> Any:
            with torch.no_grad():
                return factor(stages.matrix(stages.slopes(fixed, k))).solve

        size = stages.size
        guess = state[0].repeat(1, len(times))
        found = self.newton.solve(
            eq, guess, size, y, index, None, lambda k: stages.residual(fixed, k, size), system.solve, renewed
        )
        k = found.k
        if wants_gradient(t, dt, y, *state):
            (h,) = factors(END, dt, y)
            matrix = stages.matrix(stages.slopes(fixed, k))
            k = tied(lambda k: stages.residual(y, k, h), matrix, k)
        slopes = list(k.unflatten(-1, (len(times), -1)).unbind(-2))
        new = weighted_sum(y, tableau.b, dt, slopes)
        end = slopes[-1]
        if not tableau.stiffly_accurate:
            (after,) = moments(t, dt, END, eq.layout)
            end = eq.drift(after, new)
        error = None
        if tableau.error is not None:
            error = weighted_sum(None, tableau.error, dt, [x.detach() for x in (state[0], *slopes)])
            error = _smooth(slope, step_size(dt, tableau.smooth, y)).solve(error)
        new, error = marked(found.ok, new, error)
        return Step(new, error, (end,), (state[0], end) if tableau.stiffly_accurate else tuple(slopes))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        if self.tableau.stiffly_accurate:
            return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))
        # A slope f(t, y) at an end multiplies the error of y by the stiffness; those of the stages do not.
        weights = torch.as_tensor(_integrals(self.tableau), dtype=y.dtype, device=y.device)
        return torch.einsum("ki,irn->krn", weights, torch.stack(step.data)) * h


@dataclass(frozen=True, eq=False)
class _Stages:
    """The system of the stages of one step, whose unknowns are all slopes side by side, ``(R, s n)``."""

    tableau: ImplicitTableau
    eq: Rows
    size: Any
    times: Any

    def states(self, y: Tensor, k: Tensor, h: Any) -> list[Tensor]:
        """The states of the stages."""
        a = torch.as_tensor(self.tableau.matrix, dtype=k.dtype, device=k.device)
        slopes = k.unflatten(-1, (len(self.times), -1))
        moved = torch.einsum("ij,rjn->irn", a, slopes)
        return [y + h * x for x in moved.unbind(0)]

    def residual(self, y: Tensor, k: Tensor, h: Any) -> Tensor:
        """k - f at the states that k leads to."""
        values = [self.eq.drift(t, z) for t, z in zip(self.times, self.states(y, k, h), strict=True)]
        return k - torch.cat(values, -1)

    def slopes(self, y: Tensor, k: Tensor) -> list[Tensor]:
        """df/dy at each stage."""
        states = self.states(y, k.detach(), self.size)
        return [slopes_of(self.eq.drift, t, z) for t, z in zip(self.times, states, strict=True)]

    def matrix(self, slopes: list[Tensor]) -> Tensor:
        """1 - dt a_ij (df/dy)_i, ``(R, s n, s n)``."""
        a = torch.as_tensor(self.tableau.matrix, dtype=slopes[0].dtype, device=slopes[0].device)
        blocks = torch.einsum("ij,irpq->ripjq", a, torch.stack(slopes)).flatten(3).flatten(1, 2)
        size = self.size.unsqueeze(-1) if isinstance(self.size, Tensor) else self.size
        return identity(blocks.diagonal(dim1=-2, dim2=-1)) - size * blocks


def _integrals(tableau: ImplicitTableau) -> np.ndarray:
    """Coefficients ``(s, s)`` of theta, theta^2, ... in the integrals from 0 to theta of the Lagrange polynomials."""
    nodes = np.array([sum(row) for row in tableau.matrix])
    s = len(nodes)
    return np.linalg.inv(np.vander(nodes, s, increasing=True)) / np.arange(1, s + 1)[:, None]


def _smooth(slope: Tensor, size: Any) -> Factored:
    size = size.unsqueeze(-1) if isinstance(size, Tensor) else size
    with torch.no_grad():
        return factor(identity(slope.diagonal(dim1=-2, dim2=-1)) - size * slope)


@final
class RadauIIA3(Collocation):
    """Radau IIA method of two stages and order 3, L-stable and stiffly accurate."""

    tableau = collocation([1 / 3, 1.0], 3)


@final
class RadauIIA5(Collocation):
    """Radau IIA method of three stages and order 5, L-stable and stiffly accurate."""

    tableau = collocation([(4 - sqrt(6)) / 10, (4 + sqrt(6)) / 10, 1.0], 5)


@final
class GaussLegendre4(Collocation):
    """Gauss method of two stages and order 4, A-stable, symmetric and symplectic."""

    tableau = collocation([0.5 - sqrt(3) / 6, 0.5 + sqrt(3) / 6], 4)


@final
class GaussLegendre6(Collocation):
    """Gauss method of three stages and order 6, A-stable, symmetric and symplectic."""

    tableau = collocation([0.5 - sqrt(15) / 10, 0.5, 0.5 + sqrt(15) / 10], 6)
