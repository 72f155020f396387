"""A solution as a path: piecewise polynomials of the accepted steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq.problem.span import rounding
from dxdt.ops.tree import Layout, Tree, tree_map

__all__ = ["DensePath"]


@dataclass(frozen=True, eq=False)
class DensePath:
    """Dense output of a solve, a ``Path`` on the span that was reached.

    Between accepted steps n and n + 1, with theta = (t - t_n) / dt_n in [0, 1],

        y(t) = y_n + sum_j c_{n,j} theta^(j+1)

    Attributes:
        layout: how the state lies in rows.
        starts: times at which steps begin, ``(N, R)`` float64, in the direction of time.
        lengths: signed lengths, ``(N, R)``; zero where a row did not step.
        ends: times at which steps end, ``(N, R)``: before start + length where an event cut one.
        values: values at the starts, ``(N, R, n)``.
        coefficients: ``(N, degree, R, n)``.
    """

    layout: Layout
    starts: Tensor
    lengths: Tensor
    ends: Tensor
    values: Tensor
    coefficients: Tensor

    @property
    def t0(self) -> Tensor:
        """Where the path begins, ``()`` or ``(B,)``."""
        return self._shape(self.starts[0])

    @property
    def t1(self) -> Tensor:
        """Where the path ends, ``()`` or ``(B,)``."""
        return self._shape(self.ends[-1])

    def __call__(self, t: Any) -> Tree:
        """Values at times ``()``, ``(T,)``, or ``(T, B)`` with one column for each sample.

        Returns:
            The state at each time, with a leading axis T where several times are given.

        Raises:
            ValueError: a time outside the path.
        """
        return self._evaluate(t, derivative=False)

    def derivative(self, t: Any) -> Tree:
        """Time derivative of the path at the times (shapes as in ``__call__``)."""
        return self._evaluate(t, derivative=True)

    def _shape(self, ends: Tensor) -> Tensor:
        return ends if self.layout.per_sample else ends[0]

    def _evaluate(self, t: Any, derivative: bool) -> Tree:
        eps = rounding(t)
        t = torch.as_tensor(t, dtype=torch.float64, device=self.values.device)
        many = t.dim() > 0
        times = t if many else t.unsqueeze(0)
        times = times if times.dim() == 2 else times[:, None]
        times = times.expand(-1, self.layout.rows)
        step, theta, length = self._locate(times, eps)
        row = torch.arange(self.layout.rows, device=t.device).expand_as(step)
        values, terms = self.values[step, row], self.coefficients[step, :, row].movedim(2, 0)
        theta = theta.to(values.dtype).unsqueeze(-1)
        if derivative:
            rows = sum((j + 1) * c * theta**j for j, c in enumerate(terms))
            rows = rows / length.to(values.dtype).unsqueeze(-1)
        else:
            rows = values + sum(c * theta ** (j + 1) for j, c in enumerate(terms))
        tree = self.layout.unpack(rows)  # pyright: ignore[reportArgumentType]
        return tree if many else _first(tree)

    def _locate(self, times: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        starts, ends = self.starts, self.ends
        sign = torch.where(ends[-1] < starts[0], -1.0, 1.0).to(torch.float64)
        slack = 1e-9 * (ends[-1] - starts[0]).abs() + 4 * eps * torch.maximum(ends[-1].abs(), starts[0].abs())
        place = times.detach() * sign
        if ((place < starts[0] * sign - slack) | (place > ends[-1] * sign + slack)).any():
            raise ValueError(
                f"path asked at times outside [{float(starts[0].min())}, {float(ends[-1].max())}]: "
                f"ask inside the span that the solve reached"
            )
        found = torch.searchsorted((ends * sign).T.contiguous(), place.T.contiguous()).T
        step = found.clamp(max=starts.shape[0] - 1)
        length = self.lengths.gather(0, step)
        empty = length == 0
        length = torch.where(empty, 1.0, length)
        theta = torch.where(empty, 0.0, (times - self.starts.gather(0, step)) / length)
        return step, theta, length


def _first(tree: Tree) -> Tree:
    return tree_map(lambda leaf: leaf[0], tree)
