"""Fields that answer with the same buffer each time: their answers are copied before they write to it again.

Methods keep several slopes of a step. A field such as

    def f(t, y):
        buffer[0], buffer[1] = y[1], -y[0]
        return buffer

would change all of them at each evaluation.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dxdt.ops.tree import leaves, tree_map

__all__ = ["ReusedStorage"]

# Answers that are looked at: one buffer, and two that take turns, are found.
_LOOKS = 3


@dataclass(eq=False)
class ReusedStorage:
    """What is known of the storage of a field's answers in one solve.

    Attributes:
        found: whether the field answers with storage that it has answered with before.
        open: whether answers are still looked at.
    """

    found: bool = False
    open: bool = True
    _owners: list[Any] = field(default_factory=list[Any])
    _looks: int = 0

    def owned(self, value: Any) -> Any:
        """The answer, in storage of its own where the field may write to it again."""
        if self.open:
            self._look(value)
        elif not self.found:
            return value
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)

    def _look(self, value: Any) -> None:
        # A buffer lives on in the field, or the tensor of which it is a view; a new answer ends with its copy.
        owners = [x if x._base is None else x._base for x in leaves(value) if isinstance(x, Tensor)]
        self.found = any(x is known() for x in owners for known in self._owners)
        self._owners += [weakref.ref(x) for x in owners]
        self._looks += 1
        if self.found or self._looks >= _LOOKS:
            self.open, self._owners = False, []
