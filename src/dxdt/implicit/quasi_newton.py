"""Minima of phi(y): quasi-Newton methods, which learn the curvature from gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dxdt.implicit.method import RUNNING, Iterate, Method, State, Status
from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.host import any_true
from dxdt.ops.linear import dot, identity

__all__ = ["BFGS", "LBFGS"]

_STALLED = Status.STALLED.code
_ARMIJO, _HALVINGS = 1e-4, 40


@final
@dataclass(frozen=True)
class BFGS(Method):
    """Broyden-Fletcher-Goldfarb-Shanno method, with a backtracking line search.

        H <- (1 - s g^T / (s g)) H (1 - g s^T / (s g)) + s s^T / (s g),   s = y' - y,  g = grad phi' - grad phi

    J. Nocedal, S. Wright, "Numerical optimization", 6.1 (2006).
    """

    kind: ClassVar[Kind] = Kind.MINIMUM

    def init(self, problem: Problem, y: Tensor) -> State:
        value, slope = problem.slope(y)
        guess = identity(y).expand(y.shape[0], -1, -1) * _first_length(slope).unsqueeze(-1)
        return value, slope, guess, torch.ones_like(y[:, 0]), torch.zeros_like(y[:, 0])

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        value, slope, inverse, fresh, flat = state
        way = -(inverse @ slope.unsqueeze(-1)).squeeze(-1)
        new, after, ahead, failed = _searched(problem, y, value, slope, way)
        move, turn = new - y, ahead - slope
        curve = dot(move, turn)
        sound = curve > 1e-12 * (dot(move, move) * dot(turn, turn)).sqrt()
        rho = torch.where(sound, 1 / torch.where(sound, curve, 1.0), 0.0).unsqueeze(-1)
        # Before the first update the guess is only a length: that of the curvature just seen is better.
        length = (curve / torch.where(sound, dot(turn, turn), 1.0)).unsqueeze(-1)
        first = sound.unsqueeze(-1) & (fresh > 0).reshape(-1, 1, 1)
        inverse = torch.where(first, identity(y) * length, inverse)
        outer = torch.eye(y.shape[1], dtype=y.dtype, device=y.device) - rho * move.unsqueeze(-1) * turn.unsqueeze(-2)
        updated = outer @ inverse @ outer.mT + rho * move.unsqueeze(-1) * move.unsqueeze(-2)
        inverse = torch.where(sound.unsqueeze(-1), updated, inverse)
        size = torch.maximum(problem.tolerance(way, y), problem.tolerance(move, y))
        fresh = torch.where(sound.squeeze(-1), 0.0, fresh)
        size, failed, flat = _ended(problem, y, value, after, slope, size, failed, flat)
        return Iterate(new, (after, ahead, inverse, fresh, flat), size, failed)


@final
@dataclass(frozen=True)
class LBFGS(Method):
    """BFGS with a limited memory: the last moves and turns of the gradient instead of a matrix.

    D. Liu, J. Nocedal, "On the limited memory BFGS method for large scale optimization", Math. Program. 45 (1989).

    Args:
        memory: pairs that are kept, at least 1.

    Raises:
        ValueError: no memory.
    """

    memory: int = 10

    kind: ClassVar[Kind] = Kind.MINIMUM

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ValueError(f"LBFGS(memory={self.memory}): keep at least one pair")

    def init(self, problem: Problem, y: Tensor) -> State:
        value, slope = problem.slope(y)
        empty = y.new_zeros(y.shape[0], self.memory, y.shape[1])
        return value, slope, empty, empty, _first_length(slope), torch.zeros_like(y[:, 0])

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        value, slope, moves, turns, length, flat = state
        way = _two_loops(slope, moves, turns, length)
        new, after, ahead, failed = _searched(problem, y, value, slope, way)
        move, turn = new - y, ahead - slope
        curve = dot(move, turn)
        sound = curve > 1e-12 * (dot(move, move) * dot(turn, turn)).sqrt()
        keep = sound.unsqueeze(-1)
        moves, turns = (
            torch.where(keep, torch.cat([x[:, 1:], last.unsqueeze(1)], 1), x)
            for x, last in ((moves, move), (turns, turn))
        )
        length = torch.where(sound, curve / torch.where(sound, dot(turn, turn), 1.0), length)
        size = torch.maximum(problem.tolerance(way, y), problem.tolerance(move, y))
        size, failed, flat = _ended(problem, y, value, after, slope, size, failed, flat)
        return Iterate(new, (after, ahead, moves, turns, length, flat), size, failed)


def _first_length(slope: Tensor) -> Tensor:
    """A first step of length at most one, ``(R, 1)``."""
    return 1 / torch.linalg.vector_norm(slope, dim=-1, keepdim=True).clamp(min=1.0)


def _two_loops(slope: Tensor, moves: Tensor, turns: Tensor, length: Tensor) -> Tensor:
    """-H grad phi; pairs that are not there yet are zero and weigh nothing."""
    way, weights = -slope, []
    pairs = list(zip(moves.unbind(1), turns.unbind(1), strict=True))
    for move, turn in reversed(pairs):
        curve = dot(move, turn)
        rho = torch.where(curve > 0, 1 / torch.where(curve > 0, curve, 1.0), 0.0)
        weights.append((rho, rho * dot(move, way)))
        way = way - weights[-1][1] * turn
    way = length * way
    for (move, turn), (rho, a) in zip(pairs, reversed(weights), strict=True):
        way = way + move * (a - rho * dot(turn, way))
    return way


def _searched(
    problem: Problem, y: Tensor, value: Tensor, slope: Tensor, way: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first of y + way, y + way / 2, ... at which phi is low enough: place, value, gradient, and who found none.

    Low enough is phi(y) + 1e-4 <grad phi, step>, up to rounding of phi.
    """
    descent = dot(slope, way)
    way = torch.where(descent < 0, way, -slope)
    descent = torch.minimum(descent, -dot(slope, slope)).where(descent >= 0, descent)
    part = torch.ones_like(descent)
    slack = 4 * torch.finfo(y.dtype).eps * value.abs().unsqueeze(-1)
    phi: Callable[[Tensor], Tensor] = problem.function
    seeking = torch.ones_like(part, dtype=torch.bool)
    for _ in range(_HALVINGS):
        reached = phi(y + part * way).unsqueeze(-1)
        seeking = seeking & ~(reached <= value.unsqueeze(-1) + _ARMIJO * part * descent + slack)
        if not any_true(seeking):
            break
        part = torch.where(seeking, part / 2, part)
    new = torch.where(seeking, y, y + part * way)
    after, ahead = problem.slope(new)
    return new, after, ahead, seeking.squeeze(-1)


def _ended(
    problem: Problem, y: Tensor, value: Tensor, after: Tensor, slope: Tensor, size: Tensor, failed: Tensor, flat: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, codes and the steps in a row that phi does not show, because it is flat to rounding.

    The third such step ends a row: gradients tell no more there. Where no step leads down before that, the
    gradient is wrong.
    """
    eps = torch.finfo(y.dtype).eps
    flat = torch.where(value - after > 2 * eps * value.abs(), 0.0, flat + 1)
    small = problem.tolerance(slope * _first_length(slope), y) <= 1 / problem.tolerance.rtol**0.5
    ended = (flat >= 3) | (failed & small)
    size = torch.where(ended, size.clamp(max=1.0), torch.where(failed, float("inf"), size))
    return size, torch.where(failed & ~ended, _STALLED, RUNNING), flat
