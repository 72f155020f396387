"""Noise of a compiled solve on known steps: drawn for a run of steps at once, before they are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from dxdt.compiler.explain import CannotCompile
from dxdt.compiler.open_sizes import leave_open
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.diffeq.programs.pullback import room

__all__ = ["Ahead", "redrawn"]

# Normals of one run: bounded in memory.
_NUMBERS = 1 << 22
# Attempts of the first run of a solve with events, and the fewest of a later one.
_FEW, _FEWEST = 16, 2


@dataclass
class Ahead:
    """The random path of a solve, run by run.

    Attributes:
        path: the bound path, or None.
        left: a bound on the steps that are still to be taken, or None where the path draws inside
            the loop.
        most: steps in a run.
        taken: steps before the present run.
        room: attempts of the next run of a solve with events: twice what was kept of the last, since what
            an event strikes from the records was in vain.
        attempts: of each row before the present run.
    """

    path: Any
    left: int | None
    most: int
    taken: int = 0
    room: int | None = None
    attempts: Tensor | int = 0

    @classmethod
    def of(cls, plan: Plan, dt: Any, slots: int) -> Ahead:
        """For a solve whose records have ``slots`` slots, 0 without records."""
        path, watch = plan.equation.noise, plan.watch
        if path is None or getattr(path, "ahead", None) is None:
            return cls(path, None, slots, room=_FEW if watch is not None else None)
        if watch is not None and watch.goes_on:
            raise CannotCompile(f"events with a reset have no compiled form with {type(path).__name__}: use Brownian")
        numbers = plan.equation.layout.rows * plan.equation.stochastic.noise_size(plan.equation.layout)
        most = max(2, _NUMBERS // max(1, numbers))
        return cls(path, _steps(plan, dt), min(most, slots) if slots else most)

    def run(self, device: torch.device) -> tuple[Any, Tensor | None]:
        """The path over the next run, and the attempts that one call may make, ``()``, or None for
        any number."""
        if self.left is None:
            most = self.most if self.room is None else min(self.room, self.most)
            return self.path, torch.tensor(most, device=device) if most else None
        steps = min(self.most, max(self.left, 2))
        drawn = self.path.ahead(self.taken, room(steps, device))
        self.left, self.taken = self.left - steps, self.taken + steps
        _any_length(drawn)
        return drawn, torch.tensor(steps, device=device)

    def follow(self, carry: Carry) -> None:
        """See what was kept of the last run."""
        if self.room is None:
            return
        kept = carry.attempts - self.attempts
        ran = kept[kept > 0].to(torch.float64)
        if len(ran):
            self.room = max(_FEWEST, 2 * ceil(float(ran.mean())))
        self.attempts = carry.attempts.clone()


def _any_length(drawn: Any) -> None:
    """Let programs serve runs of any length."""
    inner = getattr(drawn, "inner", None)
    if inner is not None:
        return _any_length(inner)
    for x in (drawn.z, drawn.y):
        if x is not None:
            leave_open(x, 0)
    return None


def _steps(plan: Plan, dt: Any) -> int:
    """A bound on the steps of a row."""
    count = plan.controller.most_steps(plan.span, dt)
    if count is None:
        raise CannotCompile(f"noise of known steps has no compiled form under {type(plan.controller).__name__}")
    return min(count, plan.max_steps)


def redrawn(path: Any, noise: Any) -> Callable[[], Any]:
    """What draws the noise of a run again; ``noise`` itself is let go."""
    if noise is path:
        return lambda: path
    cells = noise
    while hasattr(cells, "inner"):
        cells = cells.inner
    first, steps = int(cells.first), len(cells.z)

    def draw() -> Any:
        drawn = path.ahead(first, steps)
        _any_length(drawn)
        return drawn

    return draw
