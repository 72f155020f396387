"""Settings as frozen dataclasses, and their form on disk."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def to_plain(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain values, nested ones as dictionaries."""
    return dataclasses.asdict(settings)


def from_plain(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Return a dataclass from what `to_plain` gave.

    Raises:
        ValueError: a key is unknown; the nearest known one is named.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"{kind.__name__}: there is no setting {key}; {remedy}")
        default = known[key].default
        nested = dataclasses.is_dataclass(default) and isinstance(value, dict)
        kept[key] = from_plain(type(default), value) if nested else value
    return kind(**kept)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of settings that are not equal in `old` and `new`."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
