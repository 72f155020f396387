"""Butcher tableaux of implicit Runge-Kutta methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from dxdt.ops.times import Table

__all__ = ["ImplicitTableau"]

Number = int | float | Fraction


@dataclass(frozen=True, eq=False)
class ImplicitTableau:
    """Coefficients of an implicit method with s stages.

        k_i = f(t + c_i dt, y + dt sum_j a_ij k_j),   y' = y + dt sum_i b_i k_i,   c_i = sum_j a_ij

    Args:
        a: the matrix, s rows of s entries; zeros at the end of a row may be left out.
        b: weights of the solution, s entries.
        order: order of ``b``.
        error: weights b - b_hat of the error estimate, s entries, or s + 1 with that of f(t, y) first; None for none.
        error_order: power of dt in the estimate.
        smooth: number g by which the estimate is multiplied with (1 - g dt df/dy)^{-1}, which keeps what is fast
            and dead out of it; 0 for none.

    Raises:
        ValueError: sizes that do not fit, or an inconsistent method.
    """

    a: Sequence[Sequence[Number]]
    b: Sequence[Number]
    order: int
    error: Sequence[Number] | None = None
    error_order: int | None = None
    smooth: float = 0.0

    def __post_init__(self) -> None:
        s = len(self.b)
        if len(self.a) != s or any(len(row) > s for row in self.a):
            raise ValueError(
                f"ImplicitTableau.a has rows of {[len(r) for r in self.a]} entries but b has {s} weights: "
                f"give {s} rows of at most {s}"
            )
        if abs(float(sum(map(float, self.b))) - 1) > 1e-10:
            raise ValueError("ImplicitTableau.b does not sum to 1, so the method is not consistent: correct it")
        if (self.error is None) != (self.error_order is None):
            raise ValueError("ImplicitTableau has one of error and error_order: give both or none")
        if self.error is not None and (len(self.error) not in (s, s + 1) or abs(sum(map(float, self.error))) > 1e-8):
            raise ValueError(f"ImplicitTableau.error does not have {s} or {s + 1} entries that sum to 0: correct it")
        # A compiler does not see through cached properties, but finds their values where they are kept.
        for name in ("matrix", "nodes", "stiffly_accurate", "diagonal"):
            getattr(self, name)

    @cached_property
    def matrix(self) -> tuple[tuple[float, ...], ...]:
        """The matrix with all its entries."""
        s = len(self.b)
        return tuple(tuple(float(x) for x in (*row, *([0] * (s - len(row))))) for row in self.a)

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @cached_property
    def nodes(self) -> Table:
        """The nodes c."""
        return Table.of(sum(row) for row in self.matrix)

    @cached_property
    def diagonal(self) -> bool:
        """Whether each stage follows from those before it."""
        return bool(np.all(np.triu(np.array(self.matrix), 1) == 0))

    @cached_property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the solution."""
        return all(x == float(y) for x, y in zip(self.matrix[-1], self.b, strict=True))
