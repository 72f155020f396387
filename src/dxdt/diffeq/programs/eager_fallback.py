"""A solve that was to be compiled and runs eager says so, once for each field and reason."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from dxdt.compiler.explain import CannotCompile

__all__ = ["CannotCompile", "name_of", "warn_once"]

_warned: set[tuple[str, str]] = set()


def warn_once(reason: str, field: Any) -> None:
    """Say once for each field and reason that a solve runs eager; an equation without fields stands for itself."""
    told = name_of(field), reason
    if told not in _warned:
        _warned.add(told)
        warnings.warn(f"compile=True runs eager for {told[0]}: {reason}", RuntimeWarning, stacklevel=4)


def name_of(field: Any) -> str:
    """The name of a field, or of the fields of an equation."""
    if isinstance(field, tuple):
        return " and ".join(name_of(f) for f in field)
    if isinstance(field, partial):
        return name_of(field.func)
    name = getattr(field, "__qualname__", type(field).__qualname__)
    return name.replace(".<locals>", "")
