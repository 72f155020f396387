"""The default of ``solve(..., compile=...)`` inside a block of code."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["compiling", "is_compiling"]

_default: ContextVar[bool] = ContextVar("dxdt.compiling", default=False)


@contextmanager
def compiling(on: bool = True) -> Generator[None]:
    """Solves inside the block run compiled (or not) where they do not say otherwise themselves.

    It holds for this thread and task, also for solves that other parts of the library make.
    """
    token = _default.set(on)
    try:
        yield
    finally:
        _default.reset(token)


def is_compiling() -> bool:
    """The default at this place."""
    return _default.get()
