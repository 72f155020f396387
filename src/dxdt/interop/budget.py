"""How much a file may ask for: work and memory in proportion to its length."""

from __future__ import annotations

import pickle
from typing import final

__all__ = ["Budget"]

_FREE = 1 << 26  # bytes that even the shortest file may have
_TIMES = 4  # bytes of memory for each byte of the file


@final
class Budget:
    """What a reading may still spend.

    A file of a few bytes can name one thing a million times. What it copies is counted, so that no file takes more
    than a fixed multiple of the time and memory that its own length takes.

    Args:
        length: bytes of the file.
    """

    def __init__(self, length: int) -> None:
        self.left = _FREE + _TIMES * length

    def spend(self, amount: int) -> None:
        """Take `amount` bytes.

        Raises:
            pickle.UnpicklingError: the file has asked for more than files of its length need.
        """
        self.left -= amount
        if self.left < 0:
            raise pickle.UnpicklingError("what it describes is out of all proportion to its length")
