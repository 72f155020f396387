"""How a product of matrices is computed, by its sizes and by how its factors lie."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from dxdt.compiler.native.buffers import View

__all__ = ["Form", "Kind", "form_of", "strides_of"]

# A product along rows: at most so many rows, at least so many entries of the matrix.
_FEW, _LARGE = 2, 1 << 15
# Rows whose left factors are gathered where the inner axis is long, or its elements are far from each other (bytes).
_ROWS, _LONG, _FAR = 4, 256, 1024
# Rows that repay gathering the right factors, and the distance in bytes between their rows.
_MANY, _PAGE = 32, 4096


class Kind(Enum):
    """Functions of ``product_text``, and what they read the right factor from."""

    DOTS = "a sum for each row"
    ROWS = "sums along both rows"
    ADDITIONS = "rows of the right factor added up"
    TILES = "tiles"
    PANELS = "tiles of gathered rows, over packed columns"
    DIRECT = "tiles of gathered rows, over columns as they lie"
    GATHERED = "tiles of gathered rows, over gathered columns"


class Form(NamedTuple):
    """A kind of product, and the columns of its tiles."""

    kind: Kind
    width: int

    @property
    def packs(self) -> bool:
        """Whether columns that do not lie as tiles read them are packed before."""
        return self.kind in (Kind.TILES, Kind.PANELS, Kind.DIRECT)


def strides_of(a: View, b: View) -> tuple[int, int, int, int]:
    """Strides of both factors; an axis of one element has that of dense rows."""
    (m, k), n = a.shape, b.shape[1]
    (ars, acs), (brs, bcs) = a.strides, b.strides
    return ars if m > 1 else k, acs if k > 1 else 1, brs if k > 1 else n, bcs if n > 1 else 1


def form_of(a: View, b: View, size: int) -> Form:
    """The form of a product of two matrices with elements of so many bytes."""
    (m, k), n = a.shape, b.shape[1]
    _, acs, brs, bcs = strides_of(a, b)
    lanes = 64 // size
    width = lanes * (4 if m < _ROWS and n > 2 * lanes else 2 if n > lanes else 1)
    if n == 1:
        along = acs == 1 and (brs == 1 or k == 1)
        return Form(Kind.ROWS if along else Kind.DOTS, width)
    if m <= _FEW and acs == 1 and brs == 1 and bcs != 1 and k * n >= _LARGE:
        return Form(Kind.ROWS, width)
    if m < _ROWS and bcs == 1 and k * n >= _LARGE:
        return Form(Kind.ADDITIONS, width)
    far = k >= 16 and acs * size >= _FAR
    if m < _ROWS or not (far or k >= _LONG):
        return Form(Kind.TILES, width)
    if bcs != 1:
        return Form(Kind.PANELS, width)
    return Form(Kind.GATHERED if m >= _MANY and brs * size >= _PAGE else Kind.DIRECT, width)
