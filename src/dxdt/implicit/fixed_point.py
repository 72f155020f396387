"""Fixed points y = g(y): damped iteration, and its acceleration by what the last iterates tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dxdt.implicit.method import Iterate, Method, State
from dxdt.implicit.problem import Kind, Problem

__all__ = ["Anderson", "Picard", "error_of"]


def error_of(step: Tensor, before: Tensor) -> Tensor:
    """What a linearly converging iteration is still wrong by, after steps of these sizes, ``(R,)``.

    With theta the ratio of two steps the rest of the series is theta / (1 - theta) times the last one. It counts
    as no less than that step, and as infinite where steps grow.
    """
    theta = step / before
    rest = torch.where(theta < 1, theta / (1 - theta), float("inf"))
    # Before the first step there is nothing to compare with.
    return step * torch.where(torch.isfinite(before) & (before > 0), rest.clamp(min=1.0), 1.0)


@final
@dataclass(frozen=True)
class Picard(Method):
    """Fixed-point iteration y <- (1 - damping) y + damping g(y).

    Converges where the Jacobian of the map on the right has a spectral radius below one; the distance that is left
    is estimated from the ratio of the last two steps.

    Args:
        damping: in (0, 1].

    Raises:
        ValueError: another damping.
    """

    damping: float = 1.0

    kind: ClassVar[Kind] = Kind.FIXED_POINT

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ValueError(f"Picard(damping={self.damping}): give a number above 0 and at most 1")

    def init(self, problem: Problem, y: Tensor) -> State:
        return (torch.full_like(y[:, 0], float("inf")),)

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        rise = self.damping * (problem(y) - y)
        size = problem.tolerance(rise, y)
        return Iterate(y + rise, (size,), error_of(size, state[0]))


@final
@dataclass(frozen=True)
class Anderson(Method):
    """Anderson acceleration: the combination of the last iterates whose residual is least.

        y <- sum_j a_j (y_j + damping r_j),   r_j = g(y_j) - y_j,   a = argmin |sum_j a_j r_j|,   sum_j a_j = 1

    D. Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12 (1965);
    H. Walker, P. Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).

    Args:
        memory: iterates that are combined, at least 2.
        damping: in (0, 1].
        ridge: added to the squares of the differences, relative to their mean.

    Raises:
        ValueError: values outside of these ranges.
    """

    memory: int = 6
    damping: float = 1.0
    ridge: float = 1e-10

    kind: ClassVar[Kind] = Kind.FIXED_POINT

    def __post_init__(self) -> None:
        if self.memory < 2 or not 0 < self.damping <= 1 or self.ridge < 0:
            raise ValueError(
                f"Anderson(memory={self.memory}, damping={self.damping}, ridge={self.ridge}): "
                f"choose memory >= 2, 0 < damping <= 1 and ridge >= 0"
            )

    def init(self, problem: Problem, y: Tensor) -> State:
        # Differences of iterates and of residuals; zero where there are none yet, which then weigh nothing.
        empty = y.new_zeros(y.shape[0], self.memory - 1, y.shape[1])
        return y, torch.zeros_like(y), empty, empty, y.new_zeros(y.shape[0])

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        last, before, moves, changes, count = state
        residual = problem(y) - y
        some = (count > 0).reshape(-1, 1, 1)
        moves = torch.where(some, torch.cat([(y - last).unsqueeze(1), moves[:, :-1]], 1), moves)
        changes = torch.where(some, torch.cat([(residual - before).unsqueeze(1), changes[:, :-1]], 1), changes)
        weights = _least(changes, residual, self.ridge)
        new = y + self.damping * residual - (weights.unsqueeze(1) @ (moves + self.damping * changes)).squeeze(1)
        size = problem.tolerance(residual, y)
        return Iterate(new, (y, residual, moves, changes, count + 1), size)


def _least(changes: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """The weights w ``(R, m)`` for which |residual - sum_j w_j changes_j| is least."""
    gram = changes @ changes.mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    level = ridge * diagonal.mean(-1, keepdim=True)
    # Differences that are not there yet have zero rows: a one on the diagonal gives them the weight zero.
    gram = gram + torch.diag_embed(torch.where(diagonal > 0, level, 1.0))
    right = changes @ residual.unsqueeze(-1)
    found = torch.linalg.solve_ex(gram, right)[0].squeeze(-1)
    return torch.where(torch.isfinite(found), found, 0.0)
