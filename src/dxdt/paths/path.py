"""What a path is: a function of time over an interval, with a derivative where it is smooth."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["Path"]


@runtime_checkable
class Path(Protocol):
    """A function X(t) on [t0, t1]."""

    @property
    def t0(self) -> Tensor | float:
        """The start of the interval."""
        ...

    @property
    def t1(self) -> Tensor | float:
        """The end of the interval."""
        ...

    def __call__(self, t: Tensor | float) -> Float[Tensor, "*batch channels"]:
        """The value X(t)."""
        ...

    def derivative(self, t: Tensor | float) -> Float[Tensor, "*batch channels"]:
        """The derivative dX/dt(t), from the right at kinks."""
        ...
