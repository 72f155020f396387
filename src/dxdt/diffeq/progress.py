"""Progress of a long solve."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Protocol, TextIO

__all__ = ["Progress", "TextProgress", "is_live", "meter_of"]


class Progress(Protocol):
    """What a progress meter must offer."""

    def update(self, fraction: float) -> None:
        """Show that this fraction of the span is done."""

    def close(self) -> None:
        """The solve has ended."""


@dataclass
class TextProgress:
    """A one-line bar with percentage and time left.

    Args:
        stream: where to write (standard error by default).
        every: seconds between two updates.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 0.2
    _began: float = field(default_factory=time.monotonic)
    _shown: float = 0.0
    _fraction: float = 0.0

    def update(self, fraction: float) -> None:
        self._fraction = fraction
        if not self._live:
            return
        now = time.monotonic()
        if now - self._shown >= self.every:
            self._shown = now
            self._write(now)

    def close(self) -> None:
        self._write(time.monotonic())
        self.stream.write("\n")

    @property
    def _live(self) -> bool:
        """Whether a line may be written over: files get the last one alone."""
        return is_live(self.stream)

    def _write(self, now: float) -> None:
        passed, done = now - self._began, self._fraction
        left = f"{passed * (1 - done) / done:.0f} s left" if 0 < done < 1 else f"{passed:.1f} s"
        bar = "#" * round(30 * done)
        back = "\r" if self._live else ""
        self.stream.write(f"{back}solving [{bar:<30}] {100 * done:5.1f} %  {left}   ")
        self.stream.flush()


def is_live(stream: TextIO) -> bool:
    """Whether a stream is a terminal, or the output of a notebook, where lines are written over."""
    return stream.isatty() or "ipykernel" in sys.modules


def meter_of(progress: bool | Progress) -> Progress:
    """The meter that ``progress`` asks for."""
    return TextProgress() if isinstance(progress, bool) else progress
