"""Butcher tableaux: the coefficients of an explicit Runge-Kutta method as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dxdt.ops.times import Table

__all__ = ["Tableau"]

Number = int | float | Fraction


class Row(NamedTuple):
    """The nonzero entries of a row of coefficients."""

    stages: tuple[int, ...]
    weights: Table

    @classmethod
    def of(cls, row: Sequence[Number]) -> Row:
        """Drop the zeros."""
        index = tuple(j for j, x in enumerate(row) if float(x) != 0)
        return cls(index, Table.of(float(row[j]) for j in index))


@dataclass(frozen=True, eq=False)
class Tableau:
    """Coefficients of an explicit method with s stages.

        k_i = f(t + c_i dt, y + dt sum_{j<i} a_ij k_j),   y' = y + dt sum_i b_i k_i

    Args:
        a: rows 2..s of the strictly lower triangular matrix, row i with i entries.
        b: weights of the solution, s entries.
        order: order of ``b``.
        error: weights b - b_hat of the error estimate, s entries, or None. One further entry
            weighs f(t + dt, y'), for pairs whose estimate uses the next step's first stage.
        error_order: power of dt in the estimate (order of the lower method + 1).
        dense: row i holds the coefficients of theta, theta^2, ... in the weight b_i(theta) of the
            dense output, or None for cubic Hermite interpolation.
        dense_order: order of the dense output.
        middle: weights of y(t + dt/2), for a quartic through both ends, both slopes and the middle.
        c: nodes; by default the row sums of ``a``.
        symmetric_order: order up to which a step with -dt undoes one with dt, where that is claimed.

    Raises:
        ValueError: sizes that do not fit, an inconsistent method, nodes that are not the row sums.
    """

    a: Sequence[Sequence[Number]]
    b: Sequence[Number]
    order: int
    error: Sequence[Number] | None = None
    error_order: int | None = None
    dense: Sequence[Sequence[Number]] | None = None
    dense_order: int = 3
    middle: Sequence[Number] | None = None
    c: Sequence[Number] | None = None
    symmetric_order: int | None = None

    def __post_init__(self) -> None:
        s = len(self.b)
        if [len(row) for row in self.a] != list(range(1, s)):
            raise ValueError(
                f"Tableau.a has rows of {[len(r) for r in self.a]} entries but b has {s} weights: "
                f"give row i (of stages 2..{s}) exactly i entries"
            )
        if abs(float(sum(map(float, self.b))) - 1) > 1e-10:
            raise ValueError(
                f"Tableau.b sums to {sum(map(float, self.b)):.12g}: the weights of a consistent method sum to 1"
            )
        if self.error is not None:
            if len(self.error) not in (s, s + 1):
                raise ValueError(
                    f"Tableau.error has {len(self.error)} entries: give {s}, or {s + 1} with f(t + dt, y') last"
                )
            if self.error_order is None:
                raise ValueError("Tableau.error is given without error_order: give the power of dt in the estimate")
            if abs(sum(map(float, self.error))) > 1e-8:
                raise ValueError(
                    f"Tableau.error sums to {sum(map(float, self.error)):.3g}: differences of weights sum to 0"
                )
        if self.c is not None and not np.allclose(self._c_from_rows, [float(x) for x in self.c], atol=1e-9):
            raise ValueError("Tableau.c differs from the row sums of a: leave c out, or correct one of them")
        if self.dense is not None and len(self.dense) not in (s, s + 1):
            raise ValueError(f"Tableau.dense has {len(self.dense)} rows: give one for each of the {s} stages")
        # A compiler does not see through cached properties, but finds their values where they are kept.
        for name in ("fsal", "solution", "nodes", "nodes_and_end", "rows", "values", "columns", "powers", "halfway"):
            getattr(self, name)

    @cached_property
    def _c_from_rows(self) -> list[float]:
        return [0.0, *(float(sum(map(float, row))) for row in self.a)]

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the first of the next step (first same as last)."""
        last = [*self.a[-1], 0] if self.a else []
        return len(last) == len(self.b) and all(float(x) == float(y) for x, y in zip(last, self.b, strict=True))

    @cached_property
    def solution(self) -> int:
        """Which of the sums is the solution."""
        return self.stages - 1 - self.fsal

    @cached_property
    def nodes(self) -> Table:
        """Nodes c of stages 2..s."""
        return Table.of([float(x) for x in (self.c or self._c_from_rows)][1:])

    @cached_property
    def nodes_and_end(self) -> Table:
        """The nodes, and the end of the step."""
        return Table.of([*self.nodes.numbers, 1.0])

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the nonzero entries: of each row of ``a``, then of ``b``, then of ``error``."""
        return tuple(tuple(j for j, x in enumerate(row) if float(x) != 0) for row in self._rows())

    @cached_property
    def values(self) -> Table:
        """The nonzero entries that ``rows`` names, in that order."""
        return Table.of(float(x) for row in self._rows() for x in row if float(x) != 0)

    @cached_property
    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Column j: how stage j enters the later sums (each stage, the solution, the error), and
        what the sums begin with (1: the state, 0: nothing), ``(sums, 1, 1)``."""
        rows = self._rows()
        width = max(len(row) for row in rows)
        table = np.zeros((width, len(rows)))
        for i, row in enumerate(rows):
            table[: len(row), i] = [float(x) for x in row]
        begins = np.ones((len(rows), 1, 1))
        # The solution is added at the end, so that a step rounds it once and not once a stage.
        begins[self.solution] = 0
        if self.error is not None:
            begins[-1] = 0
        return table, begins

    @cached_property
    def powers(self) -> tuple[Row, ...] | None:
        """Weights of the stages in the coefficients of theta, theta^2, ... of the dense output."""
        return None if self.dense is None else tuple(Row.of(column) for column in zip(*self.dense, strict=True))

    @cached_property
    def halfway(self) -> Row:
        """Weights of the stages in y(t + dt/2) - y(t)."""
        return Row.of(self.middle or ())

    def _rows(self) -> list[Sequence[Number]]:
        solution = [] if self.fsal else [self.b]
        return [*self.a, *solution, *([self.error] if self.error is not None else [])]
