"""A kernel in other units: its steps are taken in u = x / scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Kernel, Moving, State
from dxdt.mcmc.target import Local, Target

__all__ = ["Scaled", "ScaledTarget", "in_units"]


@final
@dataclass(frozen=True, eq=False)
class ScaledTarget:
    """The law of u = x / scale where x has the law of a target; log p is that of x, up to a constant of u.

    Args:
        target: of x.
        scale: positive, of a shape that broadcasts against x.
    """

    target: Target
    scale: Tensor

    def __call__(self, x: Tensor) -> Local:
        """Return score and log density at u = `x`."""
        local = self.target(x * self.scale)
        return Local(local.score * self.scale, local.log_prob)


def in_units(kernel: Kernel[Target, State], target: Target, state: State, scale: Tensor, draws: Draws) -> Any:
    """Return the step of a kernel on x / scale, as a step on x."""
    local = state.local
    inner = State(
        state.x / scale, None if local is None else Local(local.score * scale, local.log_prob), state.momentum
    )
    moved, info = kernel.step(ScaledTarget(target, scale), inner, draws)
    local = moved.local
    back = None if local is None else Local(local.score / scale, local.log_prob)
    return State(moved.x * scale, back, moved.momentum), info


@final
@dataclass(frozen=True, eq=False)
class Scaled(Moving):
    """A kernel that moves in u = x / scale: a diagonal metric, or units of their own for each chain.

    Args:
        kernel: on u.
        scale: positive, of a shape that broadcasts against x (chains, *shape).

    Raises:
        ValueError: the scale is not positive.
    """

    kernel: Kernel[Target, State]
    scale: Tensor

    def __post_init__(self) -> None:
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise ValueError("Scaled: the scale has entries that are not positive; give a positive one everywhere.")

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernel on u."""
        return (self.kernel,)

    def rebuilt(self, parts: Sequence[Kernel[Any, Any]]) -> Scaled:
        """Return another kernel in the same units."""
        return Scaled(parts[0], self.scale)

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        state, info = in_units(self.kernel, target, state, self.scale.to(state.x), draws)
        return state, Info(info.evaluations, info.acceptance, info.energy_error, info.calls, (info,))
