"""Roots F(y) = 0: Newton's method, the chord method, bisection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from dxdt.implicit.fixed_point import error_of
from dxdt.implicit.method import RUNNING, Iterate, Method, State, Status
from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.autodiff import jacobian
from dxdt.ops.linear import Factored, factor

__all__ = ["Bisection", "Chord", "Newton"]

_SINGULAR, _NO_BRACKET = Status.SINGULAR.code, Status.NO_BRACKET.code


@final
@dataclass(frozen=True)
class Newton(Method):
    """Newton's method y <- y - J(y)^{-1} F(y), with the Jacobian at every iterate.

    Converges quadratically near a regular root; it has converged when its step is within the tolerance.
    """

    kind: ClassVar[Kind] = Kind.ROOT

    def init(self, problem: Problem, y: Tensor) -> State:
        return ()

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        value, slope = jacobian(problem.function, y)
        system = factor(slope)
        rise = system.solve(-value)
        return Iterate(y + rise, (), problem.tolerance(rise, y), _singular(system, value))


@final
@dataclass(frozen=True)
class Chord(Method):
    """Newton's method with the Jacobian of the first iterate: one factorisation, linear convergence.

    The distance that is left is estimated from the ratio of the last two steps.
    """

    kind: ClassVar[Kind] = Kind.ROOT

    def init(self, problem: Problem, y: Tensor) -> State:
        return (*factor(problem.jacobian(y)), torch.full_like(y[:, 0], float("inf")))

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        system, value = Factored(state[0], state[1]), problem(y)
        rise = system.solve(-value)
        size = problem.tolerance(rise, y)
        return Iterate(y + rise, (*system, size), error_of(size, state[2]), _singular(system, value))


def _singular(system: Factored, value: Tensor) -> Tensor:
    """Codes of rows whose Jacobian has no inverse, though the function is finite there."""
    bad = ~system.regular & torch.isfinite(value).all(-1) & ~torch.isnan(system.factors).flatten(1).any(-1)
    return torch.where(bad, _SINGULAR, RUNNING)


@final
@dataclass(frozen=True, eq=False)
class Bisection(Method):
    """Halve an interval at whose ends a function of one number has different signs.

    Needs no derivative and cannot miss: the interval always holds a change of sign.

    Args:
        low, high: the ends: numbers, or tensors that broadcast to y0.
    """

    low: Any
    high: Any

    kind: ClassVar[Kind] = Kind.ROOT

    def check(self, problem: Problem, y: Tensor) -> None:
        if y.shape[1] != 1:
            raise ValueError(
                f"Bisection was given {y.shape[1]} numbers to find at once: it finds one in each row, so give y0 "
                f"as (B,) with per_sample=True, or use Newton()"
            )

    def init(self, problem: Problem, y: Tensor) -> State:
        low, high = (torch.as_tensor(x, dtype=y.dtype, device=y.device).reshape(-1, 1) for x in (self.low, self.high))
        low, high = low.expand_as(y), high.expand_as(y)
        return low, high, problem(low).sign(), problem(high).sign()

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        low, high, below, above = state
        middle = low + (high - low) / 2
        sign = problem(middle).sign()
        # An end that is a root is one: the interval closes on it.
        left = torch.where(below == 0, True, (sign != below) & (above != 0))
        low, high = torch.where(left, low, middle), torch.where(left & (below != 0), middle, high)
        high = torch.where(below == 0, low, high)
        low, high = (torch.where(sign == 0, middle, x) for x in (low, high))
        new = low + (high - low) / 2
        failed = torch.where((below * above > 0).squeeze(-1), _NO_BRACKET, RUNNING)
        return Iterate(new, (low, high, below, above), problem.tolerance((high - low) / 2, new), failed)
