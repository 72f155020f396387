"""States as rows: any pytree of tensors seen as one real matrix ``(rows, size)``.

Joint solves have one row that holds every element; per-sample solves have one row for each index
of axis 0. Complex leaves are seen as pairs of reals, leaves of different precision are promoted to
the widest, and half-precision leaves are kept in float32 between steps, because a small increment
added to a half-precision state is lost; the field always sees the leaves as the user gave them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Layout", "Tree", "flatten", "leaves", "tree_map"]

Tree: TypeAlias = Any
"""A nested structure (tuple, list, dict, dataclass registered with torch) whose leaves are tensors."""

flatten = pytree.tree_flatten
leaves = pytree.tree_leaves
tree_map = pytree.tree_map


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


@dataclass(frozen=True)
class Layout:
    """How a tree of tensors lies in rows.

    Attributes:
        spec: structure of the tree.
        shapes: shape of each leaf, without the batch axis when ``per_sample``.
        dtypes: dtype of each leaf.
        rows: number of rows R.
        size: real numbers in a row n.
        per_sample: whether axis 0 of every leaf is the batch.
        dtype: dtype of the rows (the widest real dtype of the leaves, at least float32).
        time_dtype: dtype in which the field sees time: that of the rows, or a wider one.
        device: device of every leaf.
        single: whether the state is one real tensor that rows can alias.
        aliased: whether the user's tensor is its own rows.
        whole: shape of the first leaf as the user gave it.
        bare: whether the tree is a tensor by itself.
    """

    spec: pytree.TreeSpec
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    rows: int
    size: int
    per_sample: bool
    dtype: torch.dtype
    time_dtype: torch.dtype
    device: torch.device
    single: bool = field(init=False, repr=False)
    aliased: bool = field(init=False, repr=False)
    whole: tuple[int, ...] = field(init=False, repr=False)
    bare: bool = field(init=False, repr=False)
    _reals: tuple[torch.dtype, ...] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Plain attributes, because a compiler does not see through cached properties.
        single = len(self.shapes) == 1 and self.dtypes[0] == self.dtype
        whole, bare = self.full_shape(0), self.spec.is_leaf()
        object.__setattr__(self, "single", single)
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "bare", bare)
        object.__setattr__(self, "_reals", tuple(_real(d) for d in self.dtypes))
        object.__setattr__(self, "aliased", single and bare and whole == (self.rows, self.size))
        object.__setattr__(self, "_hash", 0)

    def __hash__(self) -> int:
        # Formed when it is asked for: a program makes layouts whose sizes are open.
        if not self._hash:
            told = self.shapes, self.dtypes, self.rows, self.per_sample, self.device
            object.__setattr__(self, "_hash", hash(told))
        return self._hash

    @classmethod
    def of(cls, tree: Tree, *, per_sample: bool, what: str = "y0") -> Layout:
        """The layout of a state.

        Raises:
            TypeError: a leaf is not a real or complex floating-point tensor.
            ValueError: no leaves, several devices, or batch axes of different length.
        """
        if isinstance(tree, Tensor):
            return _of_tensor(tree.shape, tree.dtype, tree.device, per_sample, what)
        flat, spec = flatten(tree)
        return cls._of(flat, spec, per_sample, what)

    @classmethod
    def _of(cls, flat: list[Any], spec: pytree.TreeSpec, per_sample: bool, what: str) -> Layout:
        _check_leaves(flat, per_sample, what)
        batch = flat[0].shape[0] if per_sample else 1
        shapes = tuple(tuple(x.shape[1:] if per_sample else x.shape) for x in flat)
        dtypes = tuple(x.dtype for x in flat)
        wide = dtypes[0] if len(dtypes) == 1 else _promote(dtypes)
        size = sum(prod(s) * (2 if d.is_complex else 1) for s, d in zip(shapes, dtypes, strict=True))
        dtype = torch.promote_types(_real(wide), torch.float32)
        return cls(spec, shapes, dtypes, batch, size, per_sample, dtype, dtype, flat[0].device)

    def full_shape(self, i: int) -> tuple[int, ...]:
        """Shape of leaf ``i`` as the user gave it."""
        return (self.rows, *self.shapes[i]) if self.per_sample else self.shapes[i]

    @property
    def batch(self) -> int | None:
        """Length of the first axis that all leaves share, or None where there is none."""
        if self.per_sample:
            return self.rows
        first = {s[0] if s else None for s in self.shapes}
        return first.pop() if len(first) == 1 else None

    def resized(self, batch: int) -> Layout:
        """The same layout with another batch."""
        if self.per_sample:
            return Layout(
                self.spec, self.shapes, self.dtypes, batch, self.size, True, self.dtype, self.time_dtype, self.device
            )
        shapes = tuple([(batch, *s[1:]) for s in self.shapes])
        size = self.size // self.shapes[0][0] * batch
        return Layout(self.spec, shapes, self.dtypes, 1, size, False, self.dtype, self.time_dtype, self.device)

    def pack(self, tree: Tree) -> Tensor:
        """Rows ``(R, n)`` of a tree with this layout."""
        if self.single:
            leaf = tree if isinstance(tree, Tensor) else leaves(tree)[0]
            if leaf.dtype is not self.dtype:
                leaf = leaf.to(self.dtype)
            return leaf if self.whole == (self.rows, self.size) else leaf.reshape(self.rows, self.size)
        parts = []
        for x, dtype, shape in zip(leaves(tree), self.dtypes, self.shapes, strict=True):
            # Not view_as_real, whose derivative refuses memory that begins at an odd place.
            x = torch.stack([x.to(dtype).real, x.to(dtype).imag], -1) if dtype.is_complex else x
            width = prod(shape) * (2 if dtype.is_complex else 1)
            parts.append(x.reshape(self.rows, width).to(self.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def unpack(self, rows: Tensor) -> Tree:
        """The tree that lies in rows ``(*lead, R, n)``; leading axes stay in front of each leaf."""
        if self.single:
            if rows.dim() > 2:
                leaf = rows.reshape(*rows.shape[:-2], *self.whole)
            else:
                leaf = rows if self.whole == (self.rows, self.size) else rows.reshape(self.whole)
            return leaf if self.bare else self.spec.unflatten([leaf])
        lead = rows.shape[:-2]
        out, start = [], 0
        for i, dtype in enumerate(self.dtypes):
            shape = self.full_shape(i)
            width = prod(self.shapes[i]) * (2 if dtype.is_complex else 1)
            part = rows[..., start : start + width].to(self._reals[i])
            if dtype.is_complex:
                # Not view_as_complex, which refuses memory that begins at an odd place.
                part = torch.complex(*part.reshape(*lead, *shape, 2).unbind(-1))
            out.append(part.reshape((*lead, *shape)))
            start += width
        return self.spec.unflatten(out)

    def spread(self, tree: Tree, what: str) -> Tensor | float:
        """Numbers given once, or per leaf, as one row ``(n,)`` (a float stays a float).

        Raises:
            ValueError: the structure is not that of the state.
        """
        if isinstance(tree, (int, float)):
            return float(tree)
        given, spec = flatten(tree)
        if len(given) == 1 and spec.is_leaf():
            given = given * len(self.shapes)
        if len(given) != len(self.shapes):
            raise ValueError(
                f"{what} has {len(given)} leaves but the state has {len(self.shapes)}: "
                f"give one number, or one for each leaf of y0"
            )
        parts = []
        for i, value in enumerate(given):
            value = torch.as_tensor(value, dtype=self.dtype, device=self.device).detach()
            width = prod(self.shapes[i])
            try:
                part = value.expand(self.shapes[i]).reshape(width)
            except RuntimeError as error:
                raise ValueError(
                    f"{what} of shape {tuple(value.shape)} does not fit a leaf of shape "
                    f"{self.shapes[i]}: give a number or a tensor that broadcasts to the leaf"
                ) from error
            parts.append(part.repeat_interleave(2) if self.dtypes[i].is_complex else part)
        return torch.cat(parts)

    def _kept(self, i: int) -> torch.dtype:
        """The dtype in which the values of a leaf may come: its own, or a wider one to which times have moved them."""
        own = self.dtypes[i]
        wide = torch.promote_types(own, torch.float32) if own.itemsize == 2 else own
        return wide if self.time_dtype is self.dtype else torch.promote_types(wide, self.time_dtype)

    def check(self, tree: Tree, what: str) -> None:
        """Raise if a tree does not have this layout.

        Raises:
            TypeError: another structure, or leaves that are not tensors.
            ValueError: another shape or device.
        """
        flat, spec = flatten(tree)
        if spec != self.spec:
            given, own = (" ".join(str(s).split()) for s in (spec, self.spec))
            raise TypeError(
                f"{what} has structure {given} but the state has {own}: return one value for each leaf of y0"
            )
        for i, x in enumerate(flat):
            if not isinstance(x, Tensor):
                raise TypeError(f"{what} has a leaf of type {type(x).__name__}: return tensors")
            if tuple(x.shape) != self.full_shape(i):
                raise ValueError(
                    f"{what} has shape {tuple(x.shape)} but the state has {self.full_shape(i)}: "
                    f"return the time derivative of each entry of y"
                )
            if x.device != self.device:
                raise ValueError(f"{what} is on {x.device} but the state is on {self.device}: move one of them")
            if x.dtype.is_complex != self.dtypes[i].is_complex and x.dtype.is_complex:
                raise TypeError(f"{what} is {x.dtype} but the state is {self.dtypes[i]}: make y0 complex")
            if not (x.dtype.is_floating_point or x.dtype.is_complex):
                raise TypeError(f"{what} is {x.dtype}: return floating-point tensors")
            if torch.promote_types(x.dtype, self._kept(i)) != self._kept(i):
                raise TypeError(
                    f"{what} is {x.dtype} but the state is {self.dtypes[i]}, so every step would lose precision: "
                    f"give y0 in {x.dtype}, or return {self.dtypes[i]}"
                )


@lru_cache(maxsize=256)
def _of_tensor(shape: torch.Size, dtype: torch.dtype, device: torch.device, per_sample: bool, what: str) -> Layout:
    """One layout for all states that are tensors of a kind."""
    like = torch.empty(shape, dtype=dtype, device="meta")
    return replace(Layout._of([like], flatten(like)[1], per_sample, what), device=device)


def _promote(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    wide = dtypes[0]
    for dtype in dtypes[1:]:
        wide = torch.promote_types(wide, dtype)
    return wide


def _check_leaves(flat: list[Any], per_sample: bool, what: str) -> None:
    if not flat:
        raise ValueError(f"{what} has no tensors: give a tensor or a tree of tensors")
    for x in flat:
        if not isinstance(x, Tensor):
            raise TypeError(f"{what} has a leaf of type {type(x).__name__}: give tensors")
        if not (x.dtype.is_floating_point or x.dtype.is_complex):
            raise TypeError(f"{what} is {x.dtype}: convert it to a floating-point dtype, such as {what}.float()")
    devices = {x.device for x in flat}
    if len(devices) > 1:
        raise ValueError(f"{what} lies on several devices {sorted(map(str, devices))}: move all leaves to one")
    if not per_sample:
        return
    if any(x.dim() == 0 for x in flat):
        raise ValueError(
            f"{what} has a leaf without a batch axis: with per_sample=True axis 0 of every leaf is the batch"
        )
    sizes = {x.shape[0] for x in flat}
    if len(sizes) > 1:
        raise ValueError(
            f"{what} has batch sizes {sorted(sizes)}: with per_sample=True axis 0 of every leaf is the batch"
        )
