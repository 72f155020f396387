"""Under which conditions a solve was made, so that its steps are formed again under the same.

A step is formed again long after it was taken: loops have moved on to other values, networks were set to train,
buffers were written to, autocast was left. What a field read in its solve is what its steps read on the way back:
names stand for what they stood for, and small tensors and arrays have the values that they had. Where that cannot be
had, because something large was written to, the way back ends with an error that names it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dxdt.diffeq.gradients.gradient import Inputs
from dxdt.diffeq.loop.plan import Plan
from dxdt.ops.ambient import Ambient
from dxdt.ops.snapshot import Snapshot, Written

__all__ = ["Conditions"]


@dataclass(eq=False)
class Conditions:
    """What held while a solve was made.

    Attributes:
        snapshot: what its fields, arguments and events reach, as it was.
        ambient: torch's state.
    """

    snapshot: Snapshot
    ambient: Ambient

    @classmethod
    def of(cls, plan: Plan, inputs: Inputs) -> Conditions:
        """Those of a solve that is to be made now."""
        equation = plan.equation
        events = () if plan.watch is None else plan.watch.events
        maps = [f for e in events for f in (e.condition, e.reset)]
        return cls.now((*equation.equation.fields, *maps, inputs.args), equation.layout.device)

    @classmethod
    def now(cls, roots: tuple[Any, ...], device: torch.device) -> Conditions:
        """Those of a solve on a device whose fields, arguments and events are the ``roots``."""
        return cls(Snapshot.of(roots), Ambient.now(device.type))

    def settle(self) -> None:
        """The solve has been made: what it changed by itself is no condition of it."""
        self.snapshot.settle()

    @contextmanager
    def held(self) -> Generator[None]:
        """A block under these conditions.

        Raises:
            RuntimeError: something was written to that is too large to be kept.
        """
        try:
            with self.ambient.held(), self.snapshot.held():
                yield
        except Written as error:
            raise RuntimeError(
                f"the field's {error} was written to after its solve, so steps cannot be formed again for the "
                f"backward pass: write into a copy, call backward before, or use gradient=dxdt.Direct()"
            ) from None
