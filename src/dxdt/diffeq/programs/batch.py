"""The batch as an input of a program: tensors whose axes of its length are left open.

A joint solve has one row of B D numbers. Seen as ``(B, D)`` the batch is an axis of its own, so that the
compiler knows how all sizes follow from it; inside the program the rows are formed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dxdt.compiler.open_sizes import leave_open
from dxdt.ops.tree import Layout, flatten

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """What a program knows of its batch, which is an input.

    Attributes:
        per_sample: whether each item is a row, or all lie in one.
        axes: for each leaf of the arguments the axes that are as long as the batch.
    """

    per_sample: bool
    axes: tuple[tuple[int, ...], ...]

    def rows(self, x: Tensor, layout: Layout, axis: int = 0) -> Tensor:
        """Numbers of rows ``(*, R, ...)``, with R at ``axis``, as an input whose batch is open."""
        if self.per_sample:
            return _open(x, (axis,)) if x.shape[axis] == layout.rows else x
        if x.dim() <= axis + 1 or x.shape[-1] != layout.size:
            return x
        batch = layout.batch
        assert batch is not None
        return _open(x.reshape(*x.shape[:-1], batch, layout.size // batch), (x.dim() - 1,))

    def closed(self, x: Tensor, axis: int = 0) -> Tensor:
        """The rows of such an input."""
        return x if self.per_sample or x.dim() <= axis + 2 else x.flatten(-2)

    def row(self, x: Tensor, layout: Layout) -> Tensor:
        """Numbers ``(n,)`` that all rows share, or one number."""
        return x if self.per_sample or not x.dim() else self.rows(x, layout, -1)

    def args(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the field, those of its axes open that are as long as the batch."""
        if not any(self.axes):
            return args
        leaves, spec = flatten(args)
        return spec.unflatten([_open(x, axes) if axes else x for x, axes in zip(leaves, self.axes, strict=True)])

    def shared(self, shared: tuple[Tensor, ...], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Likewise those among the arguments that a gradient is wanted for, followed by parameters."""
        if not any(self.axes):
            return shared
        leaves = flatten(args)[0]
        open_ = [axes for x, axes in zip(leaves, self.axes, strict=True) if _differentiable(x)]
        rest = [()] * (len(shared) - len(open_))
        return tuple(_open(x, axes) if axes else x for x, axes in zip(shared, [*open_, *rest], strict=True))


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _open(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    # Another object, because the mark would stay on the user's.
    marked, x = getattr(x, "_dynamo_dynamic_indices", ()), x.detach()
    for axis in (*marked, *axes):
        leave_open(x, axis)
    return x
