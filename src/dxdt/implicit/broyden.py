"""Broyden's method with a limited memory: roots from values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dxdt.implicit.method import Iterate, Method, State
from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.linear import Factored, dot, factor

__all__ = ["Broyden"]


@final
@dataclass(frozen=True)
class Broyden(Method):
    """Broyden's good method: the inverse Jacobian is a first guess and a sum of outer products.

        H <- H + (s - H f) (s^T H) / (s^T H f),   s = y' - y,  f = F(y') - F(y);      y' = y - H F(y)

    The first guess is -1, which suits F(y) = g(y) - y, for fixed points, and the inverse of the Jacobian at the
    first iterate for other roots. Products that are older than ``memory`` iterations are forgotten.

    C. Broyden, "A class of methods for solving nonlinear simultaneous equations", Math. Comp. 19 (1965).

    Args:
        memory: outer products that are kept, at least 1.
        exact: whether the first guess is the exact inverse; None decides by the problem.

    Raises:
        ValueError: no memory.
    """

    memory: int = 20
    exact: bool | None = None

    kind: ClassVar[Kind] = Kind.ROOT

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ValueError(f"Broyden(memory={self.memory}): keep at least one outer product")

    def init(self, problem: Problem, y: Tensor) -> State:
        exact = problem.origin is not Kind.FIXED_POINT if self.exact is None else self.exact
        empty = y.new_zeros(y.shape[0], self.memory, y.shape[1])
        first = tuple(factor(problem.jacobian(y))) if exact else ()
        return problem(y), empty, empty, *first

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        value, left, right, *first = state
        rise = -_times(left, right, first, value)
        new = y + rise
        after = problem(new)
        size = problem.tolerance(rise, y)
        change = _times(left, right, first, after - value)
        pulled = _transposed(left, right, first, rise)
        weight = dot(rise, change)
        # Rows that stand still, or whose update is not defined, learn nothing from this step.
        sound = weight.abs() > 1e-12 * (dot(rise, rise) * dot(change, change)).sqrt()
        u = torch.where(sound, (rise - change) / torch.where(sound, weight, 1.0), 0.0)
        v = torch.where(sound, pulled, 0.0)
        left, right = (torch.cat([x[:, 1:], w.unsqueeze(1)], 1) for x, w in ((left, u), (right, v)))
        # The step that would follow says whether the value there is small, too.
        ahead = problem.tolerance(_times(left, right, first, after), new)
        return Iterate(new, (after, left, right, *first), torch.maximum(size, ahead))


def _times(left: Tensor, right: Tensor, first: list[Tensor], x: Tensor) -> Tensor:
    """H x for H = first guess + sum_j left_j right_j^T."""
    guess = Factored(first[0], first[1]).solve(x) if first else -x
    return guess + (left.mT @ (right @ x.unsqueeze(-1))).squeeze(-1)


def _transposed(left: Tensor, right: Tensor, first: list[Tensor], x: Tensor) -> Tensor:
    """H^T x."""
    guess = Factored(first[0], first[1]).solve(x, transpose=True) if first else -x
    return guess + (right.mT @ (left @ x.unsqueeze(-1))).squeeze(-1)
