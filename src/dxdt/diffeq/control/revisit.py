"""A controller that steps exactly to where rejected steps had ended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller, Decision, Scale, Span
from dxdt.ops.times import Ticks
from dxdt.ops.tree import Layout

__all__ = ["Revisit"]


@final
@dataclass(frozen=True, eq=False)
class Revisit(Controller):
    """Adaptive steps along a random path: no step goes past the end of a rejected one.

    A rejected step has seen the path at its end, and was rejected for what it saw. Where noise
    does not commute, steps that then skip that time forget it, and the solution converges to
    another one. The ends of rejected steps are kept on a stack and met exactly, the nearest first.

    J. Gaines, T. Lyons, "Variable step size control in the numerical solution of stochastic
    differential equations", SIAM J. Appl. Math. 57 (1997).

    Args:
        controller: an adaptive rule.
        depth: ends to keep for a row; a row that needs more fails with ``Status.REVISITS``.

    Raises:
        ValueError: the rule is not adaptive, or depth below one.
    """

    controller: Controller
    depth: int = 32

    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.controller.adaptive:
            raise ValueError(
                f"Revisit was given {type(self.controller).__name__}, which never rejects a step: leave Revisit out"
            )
        if self.depth < 1:
            raise ValueError(f"Revisit(depth={self.depth}): give at least 1")

    @property
    def state_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stack, the step that was wanted, and the state of the rule."""
        return 2 + self.controller.state_size

    @property
    def jumps(self) -> bool:
        """Whether the inner rule knows of discontinuities."""
        return self.controller.jumps

    @property
    def stops(self) -> bool:
        """Whether the inner rule has times at which steps end."""
        return self.controller.stops

    @property
    def length(self) -> float | None:
        return self.controller.length

    def split(self) -> tuple[Controller, Any]:
        inner, table = self.controller.split()
        return _revisit(inner, self.depth), table

    def scale(self, layout: Layout) -> Scale | None:
        return self.controller.scale(layout)

    def check(self, t0: np.ndarray, t1: np.ndarray, dt: Ticks | None) -> None:
        self.controller.check(t0, t1, dt)

    def land(self, span: Span, t: Ticks, dt: Ticks) -> tuple[Ticks, Ticks]:
        return self.controller.land(span, t, dt)

    def start(self, span: Span, dt: Ticks | None, order: float | None) -> tuple[Ticks, tuple[Ticks, ...]]:
        dt, state = self.controller.start(span, dt, order)
        never = span.clock.full(span.t0, np.inf)
        ends = torch.stack([never] * self.depth) if isinstance(never, Tensor) else np.stack([never] * self.depth)
        return dt, (ends, dt, *state)

    def decide(self, span: Span, error: Ticks, t: Ticks, dt: Ticks, state: tuple[Ticks, ...]) -> Decision:
        clock, (ends, wanted, *inner) = span.clock, state
        decision = self.controller.decide(span, error, t, dt, tuple(inner))
        accept = decision.accept
        sign = clock.where(span.t1 < span.t0, -1.0, 1.0)
        here, slack = (t + dt) * sign, 1e-12 * (abs(t) + abs(dt))
        met = accept & (here >= ends[0] - slack)
        new = ~accept & (here < ends[0] - slack)
        full = new & clock.isfinite(ends[-1])
        popped, pushed = _shifted(ends[1:], 0 * here + np.inf, last=True), _shifted(ends[:-1], here)
        ends = _where(met, popped, _where(new, pushed, ends))
        clipped = accept & (abs(dt) < abs(wanted) * (1 - 1e-9)) & (abs(wanted) > abs(decision.dt))
        step = clock.where(clipped, wanted, decision.dt)
        gap = ends[0] - clock.where(accept, t + dt, t) * sign
        following = clock.where(abs(step) >= gap * (1 - 1e-9), sign * gap, step)
        state = (ends, step, *decision.state)
        return Decision(accept, following, state, decision.failed | full, full)


def _shifted(rest: Ticks, entry: Ticks, last: bool = False) -> Ticks:
    """``entry`` above the entries of ``rest``, or below them."""
    if isinstance(rest, Tensor):
        return torch.cat((rest, entry.unsqueeze(0)) if last else (entry.unsqueeze(0), rest))
    entry = np.asarray(entry)[None]
    return np.concatenate((rest, entry) if last else (entry, rest))


def _where(mask: Ticks, a: Any, b: Any) -> Any:
    return torch.where(mask, a, b) if isinstance(mask, Tensor) else np.where(mask, a, b)


@lru_cache(maxsize=256)
def _revisit(inner: Controller, depth: int) -> Revisit:
    return Revisit(inner, depth)
