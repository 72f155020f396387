"""Values of a traced program: places in memory and strided views of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch

__all__ = ["TYPES", "Buffer", "Panels", "Put", "Unsupported", "View", "contiguous", "literal"]

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
}
"""Names of the dtypes that have native code."""


class Unsupported(Exception):
    """A program has something that native code is not written for; the message names it."""


def contiguous(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Strides of a dense tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))


@dataclass(eq=False, repr=False)
class Buffer:
    """A place for one tensor.

    Attributes:
        name: of the variable.
        dtype: of the elements.
        numel: how many, or None for a tensor whose length is known at run time only.
        work: what computes it, or None for what is given.
        fixed: whether a loop leaves it as it is, so that it may be computed before it.
        kept: whether its elements are read from memory, and not from a register of the loop that forms them.
        place: the section and the block that form it.
        declared: whether its array is part of the text.
        home: the buffer whose memory and name it takes, when that is read no more; or None.
    """

    name: str
    dtype: torch.dtype
    numel: int | None
    work: Work | None = None
    fixed: bool = True
    kept: bool = False
    place: tuple[Any, int] | None = None
    declared: bool = False
    home: Buffer | None = None

    @property
    def scalar(self) -> bool:
        """Whether it is a variable, not an array."""
        return self.numel == 1

    @property
    def type(self) -> str:
        """The C++ type of an element."""
        return TYPES[self.dtype]


@dataclass(frozen=True)
class View:
    """Elements of a buffer.

    Attributes:
        buffer: where they lie.
        shape, strides: as of a tensor; sizes of given tensors may be names known at run time.
        offset: of the first element, a number or an expression.
        index: a variable (int64) that times ``step`` is added to the offset, or None.
    """

    buffer: Buffer
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    offset: int = 0
    index: View | None = None
    step: Any = 0

    @classmethod
    def of(cls, buffer: Buffer, shape: Sequence[Any]) -> View:
        """All of a dense buffer."""
        return cls(buffer, tuple(shape), contiguous(shape))

    @property
    def numel(self) -> int:
        """How many elements."""
        return prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it is the buffer from first to last element in order."""
        if self.buffer.scalar and self.numel == 1:
            return True
        dense = contiguous(self.shape)
        same = all(a == b for a, b, n in zip(self.strides, dense, self.shape, strict=True) if n != 1)
        return same and self.offset == 0 and self.index is None and self.numel == self.buffer.numel

    @property
    def turned(self) -> View:
        """A matrix with its axes exchanged."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def seen(self, operation: Callable[[torch.Tensor], Any]) -> list[View]:
        """The views that an operation on tensors makes of this one."""
        like = torch.empty_strided(self.shape, self.strides, device="meta", dtype=self.buffer.dtype)
        outs = operation(like)
        outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
        return [
            View(
                self.buffer,
                tuple(o.shape),
                tuple(o.stride()),
                self.offset + int(o.storage_offset()),
                self.index,
                self.step,
            )
            for o in outs
        ]

    def spread(self, shape: Sequence[int]) -> View:
        """The same broadcast to a shape."""
        lead = len(shape) - len(self.shape)
        strides = [0] * lead
        for size, stride, wide in zip(self.shape, self.strides, shape[lead:], strict=True):
            strides.append(0 if size == 1 and wide != 1 else stride)
        return View(self.buffer, tuple(shape), tuple(strides), self.offset, self.index, self.step)


class Put(NamedTuple):
    """A value that is written into a given tensor at the end of a turn."""

    target: View
    value: View


Panels: TypeAlias = dict[tuple[View, int], View]
"""Matrices as products read them, by matrix and width."""


@dataclass(eq=False, repr=False)
class Work:
    """What computes a buffer.

    Attributes:
        kind: "point", "store", "sum" (any reduction), "pack" or "product".
        shape: over which its elements run.
        operands: the views it reads.
        text: from the operands' expressions to the expression of one element (points).
        detail: what else its kind needs.
        stores: what is put where, for a buffer that is put together.
    """

    kind: str
    shape: tuple[int, ...]
    operands: tuple[View, ...]
    text: Callable[..., str] = lambda *x: x[0]
    detail: dict[str, Any] = field(default_factory=dict)
    stores: list[tuple[View, View]] = field(default_factory=list)


def literal(value: Any, kind: str) -> str:
    """A Python number in C++."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"({kind}){value}" if abs(value) < 2**31 else f"({kind}){value}LL"
    value = float(value)
    if value != value:
        return f"({kind})NAN"
    if value in (float("inf"), float("-inf")):
        return f"({kind}){'-' if value < 0 else ''}INFINITY"
    return f"({kind}){value!r}"
