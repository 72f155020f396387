"""What a rule for step sizes is: its facts, its decision on an attempted step, and how it measures errors.

A controller is a frozen value. ``start`` gives the first step and the controller's state,
``decide`` maps an error norm to a decision; both are written against ``ops.clock``, so that the
same rule runs on host clocks and inside a compiled loop. Steps are signed: dt < 0 solves backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.times import Clock, Ticks
from dxdt.ops.tree import Layout

__all__ = ["Controller", "Decision", "Scale", "Span", "max_norm", "rms"]


class Span(NamedTuple):
    """What a controller may know of a solve: its clocks, the two ends, each ``(R,)``, and the table
    of a grid where it is not the controller's own (a compiled loop takes it as an input)."""

    clock: Clock
    t0: Ticks
    t1: Ticks
    table: Any = None


class Decision(NamedTuple):
    """What becomes of an attempted step, per row.

    Attributes:
        accept: keep it.
        dt: signed length of the next attempt.
        state: controller state.
        failed: give this row up.
        full: whether that is for want of room to remember rejected steps (see ``Revisit``), or None.
    """

    accept: Ticks
    dt: Ticks
    state: tuple[Ticks, ...]
    failed: Ticks
    full: Ticks | None = None


class Scale(NamedTuple):
    """Absolute and relative tolerance and the norm of their ratio with the error."""

    atol: Tensor | float
    rtol: Tensor | float
    norm: Callable[[Tensor], Tensor]

    def __call__(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """Norm of error / (atol + rtol max(|y0|, |y1|)) for each row, ``(R,)``."""
        scale = torch.maximum(y0.abs(), y1.abs()).mul_(self.rtol).add_(self.atol)
        if isinstance(self.atol, Tensor) or self.atol == 0:
            # An entry that is zero and stays so has no error: 0 / 0 is met by the least number there is.
            scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        return self.norm(error / scale)


def rms(ratio: Tensor) -> Tensor:
    """Root mean square over a row."""
    return torch.linalg.vector_norm(ratio, dim=-1) / (ratio.shape[-1] or 1) ** 0.5


def max_norm(ratio: Tensor) -> Tensor:
    """Largest magnitude in a row."""
    return torch.linalg.vector_norm(ratio, float("inf") if ratio.shape[-1] else 2, dim=-1)


class Controller(ABC):
    """Rule for step sizes.

    Class facts:
        adaptive: whether it needs an error estimate.
        state_size: how many clocks its state holds.
    """

    adaptive: ClassVar[bool] = False
    state_size: ClassVar[int] = 0

    @property
    def jumps(self) -> bool:
        """Whether there are times at which the field is discontinuous (see ``Clip``)."""
        return False

    @property
    def stops(self) -> bool:
        """Whether there are times at which steps end, whatever they would do (see ``Clip``)."""
        return self.jumps

    def scale(self, layout: Layout) -> Scale | None:
        """How errors are measured, or None where they are not."""
        return None

    def measure(self, layout: Layout) -> Callable[[Tensor], Tensor]:
        """The norm in which errors are measured."""
        return rms

    def check(self, t0: np.ndarray, t1: np.ndarray, dt: Ticks | None) -> None:  # noqa: B027
        """Raise ValueError if this rule cannot serve spans ``(R,)`` with the user's first step."""

    def fitted(self, t0: np.ndarray, t1: np.ndarray, eps: float) -> Controller:
        """The rule for a solve between these ends ``(R,)``, from which its own may differ by the rounding of the dtypes
        in which both were given; ``eps`` is that of the ends."""
        return self

    @abstractmethod
    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        """First step and initial state; ``dt`` is the user's or the automatic first step,
        ``order`` the power of dt in the error estimate."""

    @abstractmethod
    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        """Decision on the attempt [t, t + dt] with the given error norm (1 is the tolerance)."""

    def ends(self, span: Span, dt: Ticks | None) -> np.ndarray | None:
        """The ends of all steps, ``(N + 1, 1)`` or ``(N + 1, R)``, where they are known; rows stay at their last."""
        return None

    @property
    def length(self) -> float | None:
        """Length of all steps, where the rule prescribes one."""
        return None

    def most_steps(self, span: Span, dt: Ticks | None) -> int | None:
        """A bound on the accepted steps of a row, where there is one beforehand."""
        return None

    def split(self) -> tuple[Controller, Any]:
        """The rule that shapes a program, and what is an input of it.

        The input is a table of times ``(N, 1)`` or ``(N, R)``, or two lists ``(N,)`` and the input of a rule inside,
        or None. Solves whose rules are equal share a program; here, the rule has no inputs.
        """
        return self, None

    def land(self, span: Span, t: Ticks, dt: Ticks) -> tuple[Ticks, Ticks]:
        """Clock after the step [t, t + dt], by the bit where it meets a stop, and whether that is a jump."""
        raise NotImplementedError(
            f"{type(self).__name__} says that it has jumps or stops but not where steps land: define land"
        )
