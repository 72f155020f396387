"""Which states to keep when there is room for few: indices only, no tensors.

Forward, the number of steps N is unknown, and every state is offered. While N < (c + 1)(c + 2)/2 for
c slots, the states kept are such that each other one is formed again exactly once: counted from the
last, gap j between checkpoints holds at most j + 2 states, because j slots are free when its turn
comes; the earliest checkpoint that can go without breaking this gives way to the newest state (in the
spirit of P. Stumm, A. Walther, "New algorithms for optimal online checkpointing", SIAM J. Sci. Comput.
32, 2010). Beyond, a checkpoint that a later one of higher level makes dispensable gives way, else the
newest moves on and rises by one level (Q. Wang, P. Moin, G. Iaccarino, "Minimal repetition dynamic
checkpointing algorithm for unsteady adjoint calculation", SIAM J. Sci. Comput. 31, 2009).

Backward, the states between two checkpoints are formed again with the slots that are free, placed as
in the optimal schedule for a known number (A. Griewank, "Achieving logarithmic growth of temporal and
spatial complexity in reverse automatic differentiation", Optim. Methods Softw. 1, 1992).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb

__all__ = ["OnlineSlots", "least_recomputations", "split"]


@dataclass
class OnlineSlots:
    """Checkpoints of a forward pass of unknown length.

    Args:
        slots: how many states there is room for, the first included.
    """

    slots: int
    kept: list[int] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"Checkpointed(slots={self.slots}): keep at least one state")

    def offer(self, index: int) -> int | None:
        """Take the state ``index``; returns the index that gives way, ``index`` itself if it is not
        taken, or None if there was room."""
        if len(self.kept) < self.slots:
            self.kept.append(index)
            self.levels.append(0)
            return None
        if self.slots == 1:
            return index
        level = 0
        if 2 * (index + 1) < (self.slots + 1) * (self.slots + 2):
            place = self._mergeable(index)
            if place is None:
                return index
        else:
            place = self._dispensable()
            if place is None:
                place = len(self.kept) - 1
                level = self.levels[-1] + 1
        self.levels.pop(place)
        gone = self.kept.pop(place)
        self.kept.append(index)
        self.levels.append(level)
        return gone

    def _mergeable(self, index: int) -> int | None:
        """Earliest checkpoint without which the two gaps around it are still short enough."""
        ends = [*self.kept[1:], index]
        for place in range(1, self.slots):
            from_last = self.slots - place
            if ends[place] - self.kept[place - 1] <= from_last + 2:
                return place
        return None

    def _dispensable(self) -> int | None:
        """Newest checkpoint after the start whose level is below that of a later one."""
        highest = -1
        for place in range(len(self.kept) - 1, 0, -1):
            if self.levels[place] < highest:
                return place
            highest = max(highest, self.levels[place])
        return None


def _repetitions(steps: int, slots: int) -> int:
    """Least r with C(slots + r, slots) >= steps."""
    r = 0
    while comb(slots + r, slots) < steps:
        r += 1
    return r


def split(steps: int, slots: int) -> int:
    """Where to put the next checkpoint: after how many of ``steps`` to reverse, with ``slots``
    states of room, the start of the steps included."""
    r = _repetitions(steps, slots)
    return max(1, comb(slots + r - 2, slots), steps - comb(slots + r - 1, slots - 1))


def least_recomputations(steps: int, slots: int) -> int:
    """Fewest steps taken again to reverse ``steps`` from their start, with ``slots`` states of room.

    r N - C(c + r, c + 1),    C(c + r - 1, c) < N <= C(c + r, c)      (Griewank 1992)
    """
    r = _repetitions(steps, slots)
    return r * steps - comb(slots + r, slots + 1)
