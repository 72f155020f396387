"""Kinds of noise: how the diffusion g of an equation multiplies an increment of its path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dxdt.ops.tree import Layout, Tree, leaves, tree_map

__all__ = ["Additive", "Commutative", "Diagonal", "General", "Noise", "Scalar", "Sum"]


class Noise(ABC):
    """Structure of g(t, y) dW = sum_j g_j dW_j.

    Class facts:
        additive: whether g may depend on t only.
        commutative: whether the order in which the components of W move does not matter,
            (D g_i) g_j = (D g_j) g_i for all i, j.
        elementwise: whether (D g) g, one derivative, holds every (D g_j) g_j apart.
    """

    additive: ClassVar[bool] = False
    commutative: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

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

    @abstractmethod
    def added(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        """y + g w, in one operation where there is one."""

    @abstractmethod
    def strength(self, g: Tensor) -> Tensor:
        """Deviation of g W in unit time, ``(R, n)``, for g in rows: sqrt(sum_j g_ij^2)."""

    @abstractmethod
    def columns(self, value: Tree) -> Sequence[Tree]:
        """Directions v whose (D g) v hold all (D g_j) g_j, for g as a tree or in rows."""

    @abstractmethod
    def along(self, tangents: Sequence[Tree]) -> Tree:
        """sum_j (D g_j) g_j, from the derivatives of g along ``columns``."""


class _Vector(Noise):
    """g has the structure of y."""

    elementwise: ClassVar[bool] = True

    def check(self, value: Tree, layout: Layout) -> None:
        layout.check(value, "the diffusion's value")

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        return layout.pack(value)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return g * w

    def added(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return torch.addcmul(y, g, w)

    def strength(self, g: Tensor) -> Tensor:
        return g.abs()

    def columns(self, value: Tree) -> Sequence[Tree]:
        return (value,)

    def along(self, tangents: Sequence[Tree]) -> Tree:
        return tangents[0]


@final
@dataclass(frozen=True)
class Diagonal(_Vector):
    """Every component of y has its own noise: g has the structure of y, and component i of g
    depends on component i of y only (which methods of order one and more rely on)."""

    commutative: ClassVar[bool] = True

    def size(self, layout: Layout) -> int:
        return layout.size


@final
@dataclass(frozen=True)
class Scalar(_Vector):
    """One noise for all components: g has the structure of y, W is one number a row."""

    commutative: ClassVar[bool] = True

    def size(self, layout: Layout) -> int:
        return 1


class _Matrix(Noise):
    """g is a matrix ``(*y.shape, m)``."""

    m: int

    def size(self, layout: Layout) -> int:
        return self.m

    def check(self, value: Tree, layout: Layout) -> None:
        _check_matrix(value, layout, self.m)

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        return _matrix(value, layout, self.m)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return (g @ w.unsqueeze(-1)).squeeze(-1)

    def added(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return torch.baddbmm(y.unsqueeze(-1), g, w.unsqueeze(-1)).squeeze(-1)

    def strength(self, g: Tensor) -> Tensor:
        return torch.linalg.vector_norm(g, dim=-1)

    def columns(self, value: Tree) -> Sequence[Tree]:
        return tuple(tree_map(lambda leaf, j=j: leaf[..., j], value) for j in range(self.m))

    def along(self, tangents: Sequence[Tree]) -> Tree:
        own = [tree_map(lambda leaf, j=j: leaf[..., j], dg) for j, dg in enumerate(tangents)]
        return tree_map(lambda *parts: sum(parts[1:], parts[0]), *own)


@final
@dataclass(frozen=True)
class General(_Matrix):
    """Any g: a matrix ``(*y.shape, m)`` that maps m noises to the state.

    Args:
        m: components of W.
    """

    m: int


@final
@dataclass(frozen=True)
class Commutative(_Matrix):
    """A matrix ``(*y.shape, m)`` whose columns commute, (D g_i) g_j = (D g_j) g_i: methods of
    order one keep their order without Levy areas.

    Args:
        m: components of W.
    """

    m: int

    commutative: ClassVar[bool] = True


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
        return layout.pack(value) if self.m is None else _matrix(value, layout, self.m)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        return g * w if self.m is None else (g @ w.unsqueeze(-1)).squeeze(-1)

    def added(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        if self.m is None:
            return torch.addcmul(y, g, w)
        return torch.baddbmm(y.unsqueeze(-1), g, w.unsqueeze(-1)).squeeze(-1)

    def strength(self, g: Tensor) -> Tensor:
        return g.abs() if self.m is None else torch.linalg.vector_norm(g, dim=-1)

    def columns(self, value: Tree) -> Sequence[Tree]:
        return ()

    def along(self, tangents: Sequence[Tree]) -> Tree:
        raise ValueError("additive noise has no derivative: there is nothing to add")


@final
class Sum(Noise):
    """Several noises at once, each with a W of its own: g is a tuple of one value for each.

    Args:
        parts: kinds of noise.

    Raises:
        TypeError: a part is not a noise, or is a sum itself.
    """

    def __init__(self, *parts: Noise) -> None:
        if not parts or not all(isinstance(p, Noise) and not isinstance(p, Sum) for p in parts):
            raise TypeError("Sum takes noises, such as Sum(Diagonal(), General(2))")
        self.parts = parts

    @property
    def additive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every part is."""
        return all(p.additive for p in self.parts)

    @property
    def commutative(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether no part depends on the state: others need not commute with each other."""
        return self.additive

    def __repr__(self) -> str:
        return f"Sum({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def size(self, layout: Layout) -> int:
        return sum(p.size(layout) for p in self.parts)

    def check(self, value: Tree, layout: Layout) -> None:
        if not isinstance(value, tuple) or len(value) != len(self.parts):
            raise TypeError(
                f"the diffusion's value is not a tuple of {len(self.parts)}: return one value for each part of {self!r}"
            )
        for part, v in zip(self.parts, value, strict=True):
            part.check(v, layout)

    def rows(self, value: Tree, layout: Layout) -> Tensor:
        """The parts side by side, ``(R, n)`` or ``(R, n m)`` each."""
        each = [p.rows(v, layout).flatten(1) for p, v in zip(self.parts, value, strict=True)]
        return torch.cat(each, -1)

    def product(self, g: Tensor, w: Tensor) -> Tensor:
        first, *rest = zip(self.parts, self._split(g), self._shares(g, w), strict=True)
        total = first[0].product(*first[1:])
        for part, own, share in rest:
            total = part.added(total, own, share)
        return total

    def added(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        for part, own, share in zip(self.parts, self._split(g), self._shares(g, w), strict=True):
            y = part.added(y, own, share)
        return y

    def strength(self, g: Tensor) -> Tensor:
        each = [p.strength(own) for p, own in zip(self.parts, self._split(g), strict=True)]
        return torch.linalg.vector_norm(torch.stack(each), dim=0)

    def columns(self, value: Tree) -> Sequence[Tree]:
        each = self._split(value) if isinstance(value, Tensor) else value
        return [v for p, own in zip(self.parts, each, strict=True) for v in p.columns(own)]

    def along(self, tangents: Sequence[Tree]) -> Tree:
        rest = [self._split(dg) if isinstance(dg, Tensor) else dg for dg in tangents]
        found = []
        for i, part in enumerate(self.parts):
            count = 0 if part.additive else _width(part)
            own, rest = rest[:count], rest[count:]
            if own:
                found.append(part.along([dg[i] for dg in own]))
        return tree_map(lambda *terms: sum(terms[1:], terms[0]), *found)

    def _split(self, g: Tensor) -> list[Tensor]:
        """The parts of g in rows."""
        widths = [_width(p) for p in self.parts]
        n = g.shape[-1] // sum(widths)
        each = zip(self.parts, widths, g.split([n * m for m in widths], -1), strict=True)
        return [x.unflatten(-1, (n, m)) if _is_matrix(p) else x for p, m, x in each]

    def _shares(self, g: Tensor, w: Tensor) -> Sequence[Tensor]:
        """Each part's components of W."""
        n = g.shape[-1] // sum(_width(p) for p in self.parts)
        return w.split([_components(p, n) for p in self.parts], -1)


def _is_matrix(part: Noise) -> bool:
    return getattr(part, "m", None) is not None


def _width(part: Noise) -> int:
    """Numbers of g for each number of the state."""
    return getattr(part, "m", None) or 1


def _components(part: Noise, n: int) -> int:
    """Components of W for a state of n numbers."""
    return _width(part) if _is_matrix(part) or isinstance(part, Scalar) else n


def _check_matrix(value: Tree, layout: Layout, m: int) -> None:
    flat = leaves(value)
    if len(layout.shapes) != 1 or len(flat) != 1:
        raise ValueError("matrix noise is for states of one tensor: use Diagonal noise for trees")
    want = (*layout.full_shape(0), m)
    if tuple(flat[0].shape) != want:
        raise ValueError(
            f"the diffusion's value has shape {tuple(flat[0].shape)} but matrix noise of {m} "
            f"components needs {want}: return one column for each component of the noise"
        )


def _matrix(value: Tree, layout: Layout, m: int) -> Tensor:
    return leaves(value)[0].to(layout.dtype).reshape(layout.rows, layout.size, m)
