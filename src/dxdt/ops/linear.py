"""Linear systems of rows: one small dense matrix for each row, or a product that stands for it.

    A_r x_r = b_r,      A (R, n, n),  x and b (R, n)

No row reads another: a singular or infinite matrix spoils its own row only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops.host import any_true

__all__ = ["Factored", "dot", "factor", "gmres", "identity"]

Product = Callable[[Tensor], Tensor]
"""A linear map of rows ``(R, n)``."""


class Factored(NamedTuple):
    """P A = L U for each row, by Gaussian elimination with partial pivoting.

    Attributes:
        factors: L (unit diagonal, not stored) and U in one matrix, ``(R, n, n)``.
        pivots: interchanges of rows, ``(R, n)``.
    """

    factors: Tensor
    pivots: Tensor

    def solve(self, b: Float[Tensor, "R n"], transpose: bool = False) -> Float[Tensor, "R n"]:
        """x with A x = b, or A^T x = b; not finite in the rows where A is singular."""
        return torch.linalg.lu_solve(self.factors, self.pivots, b.unsqueeze(-1), adjoint=transpose).squeeze(-1)

    @property
    def regular(self) -> Tensor:
        """Rows whose matrix could be inverted, ``(R,)``."""
        pivots = self.factors.diagonal(dim1=-2, dim2=-1)
        return (torch.isfinite(pivots) & (pivots != 0)).all(-1)


def factor(a: Float[Tensor, "R n n"]) -> Factored:
    """Factor the matrix of each row; a singular one is no error (see ``Factored.regular``)."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(a)
    return Factored(factors, pivots)


def identity(like: Float[Tensor, "R n"]) -> Float[Tensor, "n n"]:
    """The identity of the size, dtype and device of rows."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def dot(a: Float[Tensor, "R n"], b: Float[Tensor, "R n"]) -> Float[Tensor, "R 1"]:
    """Inner product of each row."""
    return (a * b).sum(-1, keepdim=True)


def gmres(
    product: Product, b: Float[Tensor, "R n"], rtol: float = 1e-10, restart: int = 40, cycles: int = 10
) -> tuple[Float[Tensor, "R n"], Tensor]:
    """x with A x = b by restarted GMRES, from products A v alone.

    Each row has a Krylov space of its own, and goes on until ``|A x - b| <= rtol |b|``.

    Y. Saad, M. Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems",
    SIAM J. Sci. Stat. Comput. 7 (1986).

    Args:
        product: v to A v for rows.
        b: right sides.
        rtol: relative size of the residual.
        restart: products between two restarts.
        cycles: restarts at most.

    Returns:
        x, and which rows reached the tolerance ``(R,)``.
    """
    goal = rtol * torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    x, residual = torch.zeros_like(b), b
    wanting = torch.linalg.vector_norm(residual, dim=-1, keepdim=True) > goal
    for _ in range(cycles):
        if not any_true(wanting):
            break
        x = torch.where(wanting, x + _cycle(product, residual, goal, min(restart, b.shape[-1])), x)
        residual = b - product(x)
        wanting = torch.linalg.vector_norm(residual, dim=-1, keepdim=True) > goal
    # A comparison with NaN is false: what is not finite has not converged.
    return x, (torch.linalg.vector_norm(residual, dim=-1) <= goal.squeeze(-1))


def _cycle(product: Product, residual: Tensor, goal: Tensor, most: int) -> Tensor:
    """The correction from one Krylov space: Arnoldi, with Givens rotations on the way."""
    size = torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
    basis = [_divided(residual, size)]
    rotations: list[tuple[Tensor, Tensor]] = []
    columns: list[list[Tensor]] = []
    right = [size]
    for j in range(most):
        w = product(basis[j])
        column = [torch.zeros_like(size)] * (j + 1)
        for _ in range(2):  # twice, because rounding leaves something of the basis in w
            for i, v in enumerate(basis):
                h = dot(v, w)
                w, column[i] = w - h * v, column[i] + h
        length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        basis.append(_divided(w, length))
        column.append(length)
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = torch.hypot(column[j], column[j + 1])
        c, s = _divided(column[j], radius, 1.0), _divided(column[j + 1], radius)
        rotations.append((c, s))
        column[j] = radius
        columns.append(column)
        right[j : j + 2] = [c * right[j], -s * right[j]]
        if not any_true(right[j + 1].abs() > goal):
            break
    return _back_substituted(columns, right, basis)


def _back_substituted(columns: list[list[Tensor]], right: list[Tensor], basis: list[Tensor]) -> Tensor:
    weights: list[Tensor] = []
    for i in reversed(range(len(columns))):
        rest = right[i]
        for weight, column in zip(reversed(weights), columns[i + 1 :], strict=True):
            rest = rest - column[i] * weight
        weights.append(_divided(rest, columns[i][i]))
    total = torch.zeros_like(basis[0])
    for weight, v in zip(reversed(weights), basis[: len(columns)], strict=True):
        total = total + weight * v
    return total


def _divided(a: Tensor, b: Tensor, otherwise: float = 0.0) -> Tensor:
    """a / b, and a given number where b is zero."""
    zero = b == 0
    return torch.where(zero, otherwise, a / torch.where(zero, 1.0, b))
