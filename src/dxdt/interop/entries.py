"""Entries of configurations: each is read as what it should be, or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

__all__ = ["Flag", "Kind", "Maybe", "Number", "Row", "Text", "Whole", "read_entries"]

_MOST = 1 << 24
_LONGEST_ROW = 1 << 20


class Kind(Protocol):
    """What an entry should be."""

    @property
    def words(self) -> str:
        """Say it."""
        ...

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        ...

    def read(self, value: Any) -> Any:
        """Return a value that fits, in one type."""
        ...


@final
@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int = 1
    high: int = _MOST

    @property
    def words(self) -> str:
        """Say it."""
        return f"a whole number from {self.low} to {self.high}"

    def fits(self, value: Any) -> bool:
        """Whether a value is that; 3.0 is."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and value == int(value)

    def read(self, value: Any) -> int:
        """Return it as an int."""
        return int(value)


@final
@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`."""

    low: float = -1e30
    high: float = 1e30

    @property
    def words(self) -> str:
        """Say it."""
        return f"a number from {self.low:g} to {self.high:g}"

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and math.isfinite(value)

    def read(self, value: Any) -> float:
        """Return it as a float."""
        return float(value)


@final
@dataclass(frozen=True)
class Flag:
    """True or false."""

    words: str = "true or false"

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        return isinstance(value, bool)

    def read(self, value: Any) -> bool:
        """Return it."""
        return value


@final
@dataclass(frozen=True)
class Text:
    """A text, one of those that are known where they are named."""

    known: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Say it."""
        return f"one of {', '.join(self.known)}" if self.known else "a text"

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        return isinstance(value, str) and (not self.known or value in self.known)

    def read(self, value: Any) -> str:
        """Return it."""
        return value


@final
@dataclass(frozen=True)
class Maybe:
    """Something, or nothing."""

    kind: Kind

    @property
    def words(self) -> str:
        """Say it."""
        return f"{self.kind.words}, or null"

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        return value is None or self.kind.fits(value)

    def read(self, value: Any) -> Any:
        """Return it, or None."""
        return None if value is None else self.kind.read(value)


@final
@dataclass(frozen=True)
class Row:
    """A list of at least so many things of one kind."""

    kind: Kind
    least: int = 1

    @property
    def words(self) -> str:
        """Say it."""
        return f"a list of {self.least} or more, each {self.kind.words}"

    def fits(self, value: Any) -> bool:
        """Whether a value is that."""
        row = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return row and self.least <= len(value) <= _LONGEST_ROW and all(self.kind.fits(v) for v in value)

    def read(self, value: Any) -> tuple[Any, ...]:
        """Return it as a tuple."""
        return tuple(self.kind.read(v) for v in value)


def read_entries(
    kinds: Mapping[str, Kind], said: Mapping[str, Any], where: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entries that `kinds` names, from `said` or else from `defaults`.

    Raises:
        ValueError: one is missing, or is not what it should be.
    """
    found: dict[str, Any] = {}
    for key, kind in kinds.items():
        if key not in said and key not in defaults:
            raise ValueError(f"{where}: {key} is missing; fetch the file again.")
        value = said[key] if key in said else defaults[key]
        if not kind.fits(value):
            raise ValueError(
                f"{where}: {key}={shortened(value)} is not {kind.words}; fetch the file again, or mend it."
            )
        found[key] = kind.read(value)
    return found


def shortened(value: Any) -> str:
    """Return a value as it is shown in messages."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of very many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
