"""Where in a step a condition changes its sign: what it is at some points, and the first change between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Bracket", "Signs", "beyond_zero", "bracket"]

# Vertices that are followed towards a value nearest to zero.
_TURNS = 4


class Signs(NamedTuple):
    """What a condition is at the points of a step at which it is looked at.

    Attributes:
        values: signs ``(P, R)``, or of a boolean -1 (false) and 1 (true) at the end alone, ``(1, R)``.
        boolean: whether it is one.
        places: the points, in (0, 1], ``(P, R)``.
    """

    values: np.ndarray
    boolean: bool
    places: np.ndarray

    @classmethod
    def at_end(cls, true: np.ndarray) -> Signs:
        """Of a boolean."""
        return cls(true[None] * 2 - 1, True, np.ones((1, *true.shape)))

    @classmethod
    def along(cls, values: np.ndarray, look: Callable[[np.ndarray], np.ndarray]) -> Signs:
        """From values ``(checks + 1, ...)`` at equal distances, and ``look``, which gives them at other points."""
        checks = len(values) - 1
        places = np.broadcast_to(
            (np.arange(1, checks + 1) / checks).reshape(-1, *(1,) * (values.ndim - 1)), values[1:].shape
        )
        signs = np.sign(values[1:])
        between = beyond_zero(values, look)
        some = np.isfinite(between)
        if some.any():
            places = np.concatenate([places, np.where(some, between, 1.0)[None]])
            order = np.argsort(places, axis=0, kind="stable")
            signs = np.concatenate([signs, np.where(some, -signs[0], signs[-1])[None]])
            places, signs = (np.take_along_axis(x, order, 0) for x in (places, signs))
        return cls(signs, False, places)


def beyond_zero(values: np.ndarray, look: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A point in (0, 1) with another sign than that of all ``values`` ``(N, ...)``; NaN where none is found.

    Where the values, at equal distances, turn back before they reach zero, the lowest of the parabolas through
    three neighbours is followed to its vertex, and again from there: successive parabolic interpolation. Only what
    would come near to zero, by a tenth of how far the values move, is looked at.

    R. Brent, "Algorithms for minimization without derivatives" (1973), 5.
    """
    nowhere = np.full(values.shape[1:], np.nan)
    if len(values) < 3:
        return nowhere
    with np.errstate(all="ignore"):
        side = np.sign(values[0])
        f = values * side
        left, middle, right = f[:-2], f[1:-1], f[2:]
        bend, rise = left - 2 * middle + right, (right - left) / 2
        low = np.where((bend > 0) & (np.abs(rise) <= bend), middle - rise**2 / (2 * bend), np.inf)
        best = np.argmin(low, axis=0)[None]
        low = np.take_along_axis(low, best, 0)[0]
        open_ = (f > 0).all(0) & (low < 0.1 * np.ptp(f, axis=0))
        if not open_.any():
            return nowhere
        x = [(best[0] + k) / (len(values) - 1) for k in range(3)]
        f = [np.take_along_axis(f, best + k, 0)[0] for k in range(3)]
        for _ in range(_TURNS):
            a, b = (f[1] - f[0]) / (x[1] - x[0]), (f[2] - f[1]) / (x[2] - x[1])
            at = (x[0] + x[1]) / 2 - a * (x[2] - x[0]) / (2 * (b - a))
            at = np.where(np.isfinite(at), np.clip(at, x[0], x[2]), x[1])
            value = look(np.where(open_, at, 1.0)) * side
            found = open_ & (value < 0)
            nowhere = np.where(found, at, nowhere)
            open_ = open_ & ~found
            if not open_.any():
                break
            lower, before = value < f[1], at < x[1]
            x, f = (_nested(u, v, lower, before) for u, v in ((x, at), (f, value)))
    return nowhere


def _nested(old: list[np.ndarray], new: np.ndarray, lower: np.ndarray, before: np.ndarray) -> list[np.ndarray]:
    """The three points around the lowest of four."""
    first = np.where(lower, np.where(before, old[0], old[1]), np.where(before, new, old[0]))
    last = np.where(lower, np.where(before, old[1], old[2]), np.where(before, old[2], new))
    return [first, np.where(lower, new, old[1]), last]


class Bracket(NamedTuple):
    """Between which points of a step a condition changes its sign first.

    Attributes:
        rows: rows in which it does.
        low, high: the points, in [0, 1].
        side: sign before.
        exact: whether ``high`` is the event itself.
    """

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    side: np.ndarray
    exact: bool = False

    @classmethod
    def nowhere(cls, rows: int) -> Bracket:
        """No row changes it."""
        zero = np.zeros(rows)
        return cls(zero > 0, zero, zero + 1, zero)

    def updated(self, new: Bracket) -> Bracket:
        """``new`` for the rows in which it found a change."""
        merged = (np.where(new.rows, a, b) for a, b in zip(new[:4], self[:4], strict=True))
        return Bracket(*merged, exact=new.exact)


def bracket(direction: int, side: np.ndarray, ok: np.ndarray, inside: Signs) -> tuple[Bracket, np.ndarray]:
    """Where a condition with sign ``side`` before a step changes first in it, and its sign at the end."""
    found, low = Bracket.nowhere(len(ok))._replace(exact=inside.boolean), np.zeros(len(ok))
    for sign, high in zip(inside.values, inside.places, strict=True):
        crossed = ok & ~found.rows & _crosses(direction, side, sign, inside.boolean)
        if crossed.any():
            found = found.updated(Bracket(crossed, low, high, side, inside.boolean))._replace(rows=found.rows | crossed)
        side = np.where(ok & (sign != 0), sign, side)
        low = high
    return found, side


def _crosses(direction: int, side: np.ndarray, sign: np.ndarray, boolean: bool) -> np.ndarray:
    if boolean:
        return sign > 0
    up, down = (side < 0) & (sign >= 0), (side > 0) & (sign <= 0)
    return (up & (direction >= 0)) | (down & (direction <= 0))
