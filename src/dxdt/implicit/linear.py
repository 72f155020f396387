"""How the linear systems of the implicit function theorem are solved: J^T u = g on the way back, J v = w forwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.ops.autodiff import jacobian, jvp, vjp
from dxdt.ops.host import transformed
from dxdt.ops.linear import factor, gmres, identity

__all__ = ["GMRES", "Dense", "LinearSolver", "Neumann"]

Condition = Callable[[Tensor], Tensor]
Inverse = Callable[[Tensor], Tensor]


class LinearSolver(ABC):
    """A way to apply the inverse of the Jacobian of a condition F at a solution."""

    @abstractmethod
    def inverse(self, condition: Condition, y: Tensor) -> Inverse:
        """The linear map w -> J(y)^{-1} w of rows, differentiable in w any number of times."""


@final
@dataclass(frozen=True)
class Dense(LinearSolver):
    """One matrix for each row, factored once: exact; n^2 numbers and n transposed products a row.

    Where the matrix has no inverse the solution has no derivative, and the row gets zero.
    """

    def inverse(self, condition: Condition, y: Tensor) -> Inverse:
        with torch.no_grad():
            slope = jacobian(condition, y.detach())[1].detach()
            regular = factor(slope).regular
            # An identity instead, so that the zero of such a row is no product with infinity.
            system = factor(torch.where(regular[:, None, None], slope, identity(y)))
        there = lambda w: torch.where(regular[:, None], system.solve(w), 0.0)  # noqa: E731
        if transformed():
            return there
        return lambda w: _Linear.apply(there, lambda g: torch.where(regular[:, None], system.solve(g, True), 0.0), w)


@final
@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Matrix-free: products with J and J^T alone, in a Krylov space for each row (see ``dxdt.ops.linear.gmres``).

    Args:
        rtol: relative residual.
        restart: vectors that are kept.
        cycles: restarts at most; a row that does not reach the tolerance gets NaN, never a wrong gradient.
    """

    rtol: float = 1e-10
    restart: int = 40
    cycles: int = 10

    def inverse(self, condition: Condition, y: Tensor) -> Inverse:
        push, pull = _products(condition, y, "GMRES")

        def solved(product: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
            found, ok = gmres(product, w, self.rtol, self.restart, self.cycles)
            return torch.where(ok.unsqueeze(-1), found, float("nan"))

        return lambda w: _Linear.apply(lambda x: solved(push, x), lambda g: solved(pull, g), w)


@final
@dataclass(frozen=True)
class Neumann(LinearSolver):
    """The first terms of the Neumann series, for fixed points F(y) = g(y) - y with a contracting g.

        J^{-1} = (dg/dy - 1)^{-1} = -(1 + dg/dy + (dg/dy)^2 + ...)

    Not exact: the error falls like the spectral radius of dg/dy to the power of the number of terms.

    Args:
        terms: at least 1; one term is the Jacobian-free gradient.

    Raises:
        ValueError: no terms.
    """

    terms: int = 5

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"Neumann(terms={self.terms}): take at least one term")

    def inverse(self, condition: Condition, y: Tensor) -> Inverse:
        push, pull = _products(condition, y, "Neumann")

        def summed(product: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
            total = term = -w
            for _ in range(self.terms - 1):
                term = term + product(term)
                total = total + term
            return total

        return lambda w: _Linear.apply(lambda x: summed(push, x), lambda g: summed(pull, g), w)


def _products(condition: Condition, y: Tensor, name: str) -> tuple[Inverse, Inverse]:
    """v -> J v and w -> J^T w at y."""
    if transformed():
        raise RuntimeError(
            f"{name} inside a transform of torch.func has no derivative: use linear=Dense(), or torch.autograd outside"
        )
    at = y.detach()

    def push(v: Tensor) -> Tensor:
        with torch.no_grad():
            return jvp(condition, at, v)[1]

    with torch.no_grad():
        transposed = vjp(condition, at)[1]

    def pull(w: Tensor) -> Tensor:
        with torch.no_grad():
            return transposed(w)

    return push, pull


class _Linear(torch.autograd.Function):
    """A linear map that is differentiated by its transpose, which is another."""

    @staticmethod
    def forward(ctx: Any, there: Inverse, back: Inverse, w: Tensor) -> Tensor:
        ctx.maps = there, back
        return there(w)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        there, back = ctx.maps
        return None, None, _Linear.apply(back, there, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        there, back = ctx.maps
        return _Linear.apply(there, back, tangents[2])
