"""Kinds of noise: how the diffusion g of an equation multiplies an increment of its random path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dxdt.ops.tree import Layout, Tree, leaves

__all__ = ["Additive", "Diagonal", "General", "Noise", "Scalar"]


class Noise(ABC):
    """Structure of g(t, y) dW.

    Class facts:
        additive: whether g may depend on t only.
        commutative: whether the order in which the components of W move does not matter.
    """

    additive: ClassVar[bool] = False
    commutative: ClassVar[bool] = False

    @abstractmethod
    def size(self, layout: Layout) -> int:
        """Components of W in a row."""

    @abstractmethod
    def check(self, value: Tree, layout: Layout) -> None:
        """Raise if a value of g does not have this structure."""

    @abstractmethod
    def rows(self, value: Tree, layout: Layout) -> Tensor:
        """A value of g in rows: ``(R, n)``, or ``(R, n, m)`` for a matrix."""

    @abstractmethod
    def product(self, g: Tensor, w: Tensor) -> Tensor:
        """g w as rows ``(R, n)``, for g in rows and w ``(R, m)``."""


@final
@dataclass(frozen=True)
class Diagonal(Noise):
    """Every component of y has its own noise: g has the structure of y, and component i of g
    depends on component i of y only (which methods of order one and more rely on)."""

    commutative: ClassVar[bool] = True

    def size(self, layout: Layout) -> int:
        return layout.size

    def check(self, value: Tree, layout: Layout) -> None:
        layout.check(value, "the diffusion's value")

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        return layout.pack(value)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return g * w


@final
@dataclass(frozen=True)
class Scalar(Noise):
    """One noise for all components: g has the structure of y, W is one number a row."""

    commutative: ClassVar[bool] = True

    def size(self, layout: Layout) -> int:
        return 1

    def check(self, value: Tree, layout: Layout) -> None:
        layout.check(value, "the diffusion's value")

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        return layout.pack(value)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return g * w


def _check_matrix(value: Tree, layout: Layout, m: int) -> None:
    flat = leaves(value)
    if len(layout.shapes) != 1 or len(flat) != 1:
        raise ValueError("matrix noise is for states of one tensor: use Diagonal noise for trees")
    want = (*layout.full_shape(0), m)
    if tuple(flat[0].shape) != want:
        raise ValueError(
            f"the diffusion's value has shape {tuple(flat[0].shape)} but matrix noise of {m} components needs {want}: "
            f"return one column for each component of the noise"
        )


@final
@dataclass(frozen=True)
class Additive(Noise):
    """g depends on t only; its value is a matrix ``(*y.shape, m)``, or like y with ``m=None``.

    Args:
        m: components of W, or None where every component of y has its own.
    """

    m: int | None = None
    additive: ClassVar[bool] = True
    commutative: ClassVar[bool] = True

    def size(self, layout: Layout) -> int:
        return layout.size if self.m is None else self.m

    def check(self, value: Tree, layout: Layout) -> None:
        if self.m is None:
            layout.check(value, "the diffusion's value")
        else:
            _check_matrix(value, layout, self.m)

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        if self.m is None:
            return layout.pack(value)
        return leaves(value)[0].to(layout.dtype).reshape(layout.rows, layout.size, self.m)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return g * w if g.dim() == 2 else (g @ w.unsqueeze(-1)).squeeze(-1)


@final
@dataclass(frozen=True)
class General(Noise):
    """Any g: a matrix ``(*y.shape, m)`` that maps m noises to the state.

    Args:
        m: components of W.
    """

    m: int

    def size(self, layout: Layout) -> int:
        return self.m

    def check(self, value: Tree, layout: Layout) -> None:
        _check_matrix(value, layout, self.m)

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        return leaves(value)[0].to(layout.dtype).reshape(layout.rows, layout.size, self.m)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return (g @ w.unsqueeze(-1)).squeeze(-1)
