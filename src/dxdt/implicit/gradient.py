"""How a solution is differentiated in what its function depends on.

With F(y, p) = 0 at the solution the implicit function theorem says

    dy/dp = -(dF/dy)^{-1} dF/dp.

Here the solution is found without a graph, and then tied to it by steps of the chord method whose values are zero,

    y <- y - J^{-1} (F(y, p) - F(y, p) as a constant),      J = dF/dy at the solution, a constant,

so that its value stays what the method found, and whatever p is, an argument, a parameter of a module, a captured
tensor, gets its derivative from ordinary automatic differentiation: backwards, forwards, in transforms. Each such
step makes one more order of derivatives right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from dxdt.implicit.iterate import Found, iterate
from dxdt.implicit.linear import Dense, LinearSolver
from dxdt.implicit.method import Method, Status
from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.host import any_true, transformed

__all__ = ["Gradient", "Implicit", "JacobianFree", "Phantom", "Truncated", "Unrolled", "tie"]


_NOT_FINITE = Status.NOT_FINITE.code


class Gradient(ABC):
    """A rule for differentiating a solution."""

    def check(self, origin: Problem) -> None:  # noqa: B027
        """Raise ValueError if this rule does not serve such a problem."""

    @abstractmethod
    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        """Solve: ``origin`` is the user's problem, ``problem`` the same as the method takes it."""


def _found(problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
    """The solution as a constant."""
    with torch.no_grad():
        found = iterate(problem, method, y.detach(), max_steps)
    return found._replace(y=found.y.detach())


def tie(condition: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], y: Tensor, orders: int) -> Tensor:
    """y with the derivatives that F(y, p) = constant implies, up to ``orders``; the value is that of y."""
    for i in range(orders):
        value = condition(y)
        correction = inverse(value - value.detach())
        y = y - correction
        if i < orders - 1:
            y = _Again.apply(y) if _plain(y) else y
    return y


def _plain(y: Tensor) -> bool:
    return torch.is_grad_enabled() and y.requires_grad and not transformed()


class _Again(torch.autograd.Function):
    """The identity, without a cotangent where no derivative of it will be wanted.

    The first derivative in a later step cancels that of an earlier one: dy - J^{-1} J dy = 0. What remains are
    derivatives of derivatives, of which there are none before a backward pass was recorded.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.recorded = False
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.recorded = ctx.recorded or torch.is_grad_enabled()
        return grads[0] if ctx.recorded else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])


@final
@dataclass(frozen=True)
class Implicit(Gradient):
    """The implicit function theorem: exact at the solution, memory of a few evaluations.

    Args:
        linear: how its linear systems are solved: ``Dense()``, ``GMRES()``, or ``Neumann()``.
        orders: orders of derivatives that are right; each costs one recorded evaluation.

    Raises:
        ValueError: no order.
    """

    linear: LinearSolver = field(default_factory=Dense)
    orders: int = 2

    def __post_init__(self) -> None:
        if self.orders < 1:
            raise ValueError(f"Implicit(orders={self.orders}): ask for at least one order of derivatives")

    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        found = _found(problem, method, y, max_steps)
        # Rows that left the domain have nothing to differentiate: where they began, zero times a derivative is zero.
        lost = (found.status == _NOT_FINITE).unsqueeze(-1)
        condition, at = origin.condition, torch.where(lost, y.detach(), found.y)
        bounds = getattr(method, "bounds", None)
        if bounds is not None:
            low, high = bounds(at)
            held = (at <= low) | (at >= high)
            if any_true(held):
                # Where a bound holds an unknown, the bound says where it is.
                inner, bound = condition, torch.where(at <= low, low, high)
                condition = lambda z: torch.where(held, z - bound, inner(z))  # noqa: E731
        tied = tie(condition, self.linear.inverse(condition, at), at, self.orders)
        return found._replace(y=torch.where(lost, found.y, tied))


@final
@dataclass(frozen=True)
class Unrolled(Gradient):
    """Automatic differentiation through all iterations: memory grows with their number."""

    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        return iterate(problem, method, y, max_steps)


@final
@dataclass(frozen=True)
class Truncated(Gradient):
    """Automatic differentiation through some more iterations after the solution was found without a graph.

    Args:
        steps: iterations that are differentiated, at least 1.

    Raises:
        ValueError: no steps.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Truncated(steps={self.steps}): differentiate at least one iteration")

    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        found = _found(problem, method, y, max_steps)
        z = found.y
        state = method.init(problem, z)
        for _ in range(self.steps):
            new = method.step(problem, z, state)
            finite = torch.isfinite(new.y).all(-1)
            if not any_true(finite):
                break
            z, state = torch.where(finite.unsqueeze(-1), new.y, z), new.state
        return found._replace(y=z)


@final
@dataclass(frozen=True)
class Phantom(Gradient):
    """Some damped steps z <- (1 - damping) z + damping g(z) after the fixed point was found without a graph.

    The gradient is that of a few unrolled steps, not the exact one; it is cheap, and regularises.

    Z. Geng et al., "On training implicit models", NeurIPS 2021.

    Args:
        steps: at least 1.
        damping: in (0, 1].

    Raises:
        ValueError: values outside of these ranges.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.damping <= 1:
            raise ValueError(
                f"Phantom(steps={self.steps}, damping={self.damping}): choose steps >= 1, 0 < damping <= 1"
            )

    def check(self, origin: Problem) -> None:
        _fixed_points_only("Phantom", origin)

    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        found = _found(problem, method, y, max_steps)
        z = found.y
        for _ in range(self.steps):
            z = z + self.damping * (origin(z) - z)
        return found._replace(y=z)


@final
@dataclass(frozen=True)
class JacobianFree(Gradient):
    """One step z = g(z*): the inverse of 1 - dg/dy is replaced by 1.

    S. W. Fung et al., "JFB: Jacobian-free backpropagation for implicit networks", AAAI 2022.
    """

    def check(self, origin: Problem) -> None:
        _fixed_points_only("JacobianFree", origin)

    def run(self, origin: Problem, problem: Problem, method: Method, y: Tensor, max_steps: int) -> Found:
        found = _found(problem, method, y, max_steps)
        return found._replace(y=origin(found.y))


def _fixed_points_only(name: str, origin: Problem) -> None:
    if origin.kind is not Kind.FIXED_POINT:
        raise ValueError(f"{name} is made for fixed points but was given {origin.kind.words}: use Implicit()")
