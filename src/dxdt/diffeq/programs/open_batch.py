"""Which batch sizes have a program of their own, and which share one.

A program for one size is the fastest. The first sizes of a kind of solve have one each; later ones share
a program whose batch is an input. Where none can be made, every size has its own again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from dxdt.diffeq.problem.equation import Rows
from dxdt.diffeq.programs.batch import Batch
from dxdt.ops.tree import flatten

__all__ = ["Sizes"]

# Sizes of a kind that have programs of their own; sizes after which their number is worth a warning.
_FEW, _MANY = 3, 16
_KINDS = 256


@dataclass(eq=False)
class _Kind:
    """Solves that differ in their batch size only.

    Attributes:
        met: sizes that have programs of their own, and the sizes of the arguments there.
        shape: of the program that all others share, once there are some.
        reason: why there is none.
    """

    met: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    shape: Any = None
    reason: str | None = None

    def axes(self) -> tuple[tuple[int, ...], ...]:
        """For each leaf of the arguments the axes that were as long as the batch each time."""
        first = next(iter(self.met.values()))
        return tuple(
            tuple(a for a in range(len(x)) if all(held[i][a] == batch for batch, held in self.met.items()))
            for i, x in enumerate(first)
        )


class Sizes:
    """The kinds of solves that were met last."""

    def __init__(self) -> None:
        self.kinds: dict[Any, _Kind] = {}

    def chosen(self, shape: Any, equation: Rows) -> Any:
        """The shape of the program for a solve whose own shape has none yet."""
        layout = shape.layout
        batch = layout.batch
        if batch is None or batch < 2 or equation.noise is not None:
            return shape
        leaves, spec = flatten(equation.args)
        sizes = [tuple(x.shape) if isinstance(x, Tensor) else () for x in leaves]
        # Slots follow from the size of a state.
        slots = shape.slots and 1 << (shape.slots.bit_length() - 1)
        whole = replace(shape, layout=layout.resized(2), slots=slots)
        kind = self._kind((whole, spec, tuple(map(len, sizes))))
        if kind.reason is None and batch not in kind.met and len(kind.met) >= _FEW:
            if kind.shape is None:
                kind.shape = replace(whole, batch=Batch(layout.per_sample, kind.axes()))
            return kind.shape
        kind.met[batch] = sizes
        if kind.reason is not None and len(kind.met) == _MANY:
            warnings.warn(
                f"compile=True compiles anew for each of many batch sizes, because no program serves all of them "
                f"({kind.reason}): pad batches to a few sizes, or leave incomplete ones out",
                RuntimeWarning,
                stacklevel=4,
            )
        return shape

    def _kind(self, key: Any) -> _Kind:
        if key not in self.kinds:
            if len(self.kinds) >= _KINDS:
                del self.kinds[next(iter(self.kinds))]
            self.kinds[key] = _Kind()
        return self.kinds[key]

    def close(self, shape: Any, reason: str) -> None:
        """Note that a program cannot serve all sizes."""
        for kind in self.kinds.values():
            if kind.shape == shape:
                kind.reason = reason
