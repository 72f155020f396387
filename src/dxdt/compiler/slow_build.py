"""A first call that takes long says what it is doing, so that nobody takes it for a hang."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Timer

from dxdt.ops.code_cache import folder

__all__ = ["told_if_slow", "working_on"]

_SECONDS = 1.0
_subject: ContextVar[str | None] = ContextVar("subject", default=None)
_told: set[str] = set()


@contextmanager
def working_on(subject: str) -> Generator[None]:
    """Name what is compiled in a block, for `told_if_slow`."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


@contextmanager
def told_if_slow() -> Generator[None]:
    """Say on standard error what is compiled, once in a process, where the block takes over a second."""
    subject = _subject.get()
    if subject is None or subject in _told:
        yield
        return
    timer = Timer(_SECONDS, _tell, (subject,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell(subject: str) -> None:
    if subject not in _told:
        _told.add(subject)
        sys.stderr.write(
            f"dxdt: compiling {subject}: it is traced once in each process, and its code is kept in {folder()}\n"
        )
        sys.stderr.flush()
