"""Problems whose solution is a condition on y, and how each becomes a more general one.

    fixed point      y = g(y)
    root             F(y) = 0
    least squares    min_y  |r(y)|^2 / 2
    minimum          min_y  phi(y)

A fixed point is a root of g(y) - y, a root is where |F|^2 / 2 is least, a least-squares problem is a
minimisation: a method that solves one kind solves all kinds before it.

The user's function sees y as it was given; methods see rows (see ``ops.tree``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops.autodiff import jacobian, vjp
from dxdt.ops.tree import Layout, Tree

__all__ = ["Kind", "Problem", "Tolerance", "packed"]


class Kind(IntEnum):
    """What is asked, from the most special to the most general."""

    FIXED_POINT = 0
    ROOT = 1
    LEAST_SQUARES = 2
    MINIMUM = 3

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return ("fixed points", "roots", "least-squares problems", "minima")[self]


@dataclass(frozen=True)
class Tolerance:
    """How near a row must come: rms(step / (atol + rtol |y|)) <= 1."""

    rtol: float
    atol: float

    def __call__(self, step: Float[Tensor, "R n"], y: Float[Tensor, "R n"]) -> Float[Tensor, " R"]:
        """The size of a step in units of the tolerance; infinite where it is not finite."""
        ratio = step.detach() / (y.detach().abs() * self.rtol + self.atol)
        size = torch.linalg.vector_norm(ratio, dim=-1) / ratio.shape[-1] ** 0.5
        return torch.where(torch.isfinite(size), size, float("inf"))


@dataclass(frozen=True, eq=False)
class Problem:
    """A problem on rows.

    Attributes:
        kind: what is asked.
        function: rows ``(R, n)`` to g or F ``(R, n)``, r ``(R, m)``, or phi ``(R,)``; no row reads another.
        tolerance: how near is near enough.
        origin: the kind of the problem as the user gave it.
    """

    kind: Kind
    function: Callable[[Tensor], Tensor]
    tolerance: Tolerance
    origin: Kind

    def raised(self, kind: Kind) -> Problem:
        """The same problem as one of a more general kind."""
        problem = self
        while problem.kind < kind:
            f = problem.function
            step = {
                Kind.FIXED_POINT: lambda y, f=f: f(y) - y,
                Kind.ROOT: f,
                Kind.LEAST_SQUARES: lambda y, f=f: f(y).square().sum(-1) / 2,
            }[problem.kind]
            problem = replace(problem, kind=Kind(problem.kind + 1), function=step)
        return problem

    def __call__(self, y: Float[Tensor, "R n"]) -> Tensor:
        """The value of the function."""
        return self.function(y)

    def jacobian(self, y: Float[Tensor, "R n"]) -> Float[Tensor, "R m n"]:
        """Its derivative, a matrix for each row."""
        return jacobian(self.function, y)[1]

    def slope(self, y: Float[Tensor, "R n"]) -> tuple[Float[Tensor, " R"], Float[Tensor, "R n"]]:
        """phi and its gradient."""
        value, pull = vjp(self.function, y)
        return value, pull(torch.ones_like(value))

    @property
    def condition(self) -> Callable[[Tensor], Tensor]:
        """What vanishes at the solution, ``(R, n)``: g(y) - y, F(y), J^T r(y), or the gradient of phi."""
        if self.kind <= Kind.ROOT:
            return self.raised(Kind.ROOT).function
        if self.kind is Kind.MINIMUM:
            return lambda y: self.slope(y)[1]

        def normal(y: Tensor) -> Tensor:
            value, pull = vjp(self.function, y)
            return pull(value)

        return normal


def packed(
    kind: Kind, function: Callable[..., Tree], args: tuple[Any, ...], layout: Layout, tolerance: Tolerance
) -> Problem:
    """The user's function on rows.

    Raises:
        TypeError, ValueError: at the first call, where its value does not fit (see ``Layout.check``).
    """
    what = ("g(y)", "F(y)", "r(y)", "phi(y)")[kind]

    def on_rows(y: Tensor) -> Tensor:
        value = function(layout.unpack(y), *args)
        if kind <= Kind.ROOT:
            layout.check(value, what)
            return layout.pack(value)
        if kind is Kind.MINIMUM:
            shape = (layout.rows,) if layout.per_sample else ()
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{what} is {found}: return one number{' for each sample' * layout.per_sample}")
            return value.reshape(layout.rows).to(layout.dtype)
        own = Layout.of(value, per_sample=layout.per_sample, what=what)
        if own.rows != layout.rows:
            raise ValueError(f"{what} has {own.rows} rows but y0 has {layout.rows}: return residuals of each sample")
        return own.pack(value).to(layout.dtype)

    return Problem(kind, on_rows, tolerance, kind)
