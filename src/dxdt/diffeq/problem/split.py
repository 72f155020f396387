"""An equation whose field is a sum of a stiff term and one that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dxdt.diffeq.problem.equation import Field, Rows
from dxdt.ops.tree import Tree, tree_map

__all__ = ["SplitODE", "term"]


@dataclass(frozen=True)
class SplitODE:
    """Ordinary differential equation dy/dt = stiff(t, y, *args) + other(t, y, *args).

    Additive methods (``KenCarp3()``, ``KenCarp4()``, ``KenCarp5()``) treat the stiff term implicitly and the other
    explicitly; all others solve the sum.

    Args:
        stiff: function or module; its value has the structure, shapes and dtypes of ``y``.
        other: likewise, the term whose time scales the steps can follow.
    """

    stiff: Field
    other: Field

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The time derivative."""
        return tree_map(lambda a, b: a + b, self.stiff(t, y, *args), self.other(t, y, *args))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The user's callables, searched for parameters."""
        return (self.stiff, self.other)


def term(eq: Rows, field: Field, t: Tensor, y: Tensor) -> Tensor:
    """One of the terms of an equation as rows ``(R, n)``."""
    layout, meter = eq.layout, eq.meter
    value = field(eq.seen(t), layout.unpack(y), *eq.args)
    layout.check(value, "a term's value")
    if meter is not None:
        meter.evaluations += 1
    return eq.unmuted(layout.pack(value))
