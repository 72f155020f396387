"""Kernels: Markov moves that leave a target invariant, pure and for all chains at once.

    init(target, x) -> state,    step(target, state, draws) -> (state, info)

A kernel is a value: all that changes is in the state, all randomness in `draws`. What a state knows of the target
at its place is reused, so that a Langevin step costs one evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.target import Local, Target

__all__ = ["Info", "Kernel", "State", "Tunable", "chosen", "known", "metropolis", "rows"]

T = TypeVar("T")
S = TypeVar("S")


@final
@dataclass(frozen=True, eq=False)
class State:
    """Where the chains are.

    Attributes:
        x: (chains, *shape).
        local: what is known of the target there, or None.
        momentum: of kernels that keep one, (chains, *shape), or None.
    """

    x: Tensor
    local: Local | None = None
    momentum: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class Info:
    """What happened in a step.

    Attributes:
        evaluations: calls of the target, all chains being one call.
        acceptance: probability of accepting the proposal (chains,), or None where nothing was proposed.
        energy_error: minus the logarithm of the acceptance ratio (chains,), or None.
        calls: calls of other networks, such as a classifier of noise levels.
        parts: what happened in the parts of a composition.
    """

    evaluations: int
    acceptance: Tensor | None = None
    energy_error: Tensor | None = None
    calls: int = 0
    parts: tuple[Info, ...] = ()

    @staticmethod
    def joined(parts: Sequence[Info]) -> Info:
        """Return the sum of counts, the mean acceptance and the largest energy error of parts."""
        rates = [p.acceptance for p in parts if p.acceptance is not None]
        errors = [p.energy_error for p in parts if p.energy_error is not None]
        return Info(
            sum(p.evaluations for p in parts),
            torch.stack(rates).mean(0) if rates else None,
            torch.stack(errors).amax(0) if errors else None,
            sum(p.calls for p in parts),
            tuple(parts),
        )


class Kernel(ABC, Generic[T, S]):
    """Base of the kernels on states S with a target T."""

    @abstractmethod
    def step(self, target: T, state: S, draws: Draws) -> tuple[S, Info]:
        """Return where the chains go, and what happened."""

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernels of which this one is made, in the order of `Info.parts`."""
        return ()

    def rebuilt(self, parts: Sequence[Kernel[Any, Any]]) -> Kernel[T, S]:
        """Return the same with other parts."""
        return self


class Moving(Kernel[Target, State]):
    """Base of the kernels on (*shape)."""

    def init(self, target: Target, x: Float[Tensor, "chains *shape"]) -> State:
        """Return the state of chains that begin at `x`, with what is known of the target there."""
        return State(x, target(x))


class Tunable(Moving):
    """Base of the kernels whose step size is adapted to a rate of acceptance."""

    rate: ClassVar[float]
    """The acceptance at which the kernel is most efficient."""

    step_size: float

    @property
    def tunable(self) -> bool:
        """Whether it accepts or rejects."""
        return True

    def resized(self, step_size: float) -> Self:
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)  # pyright: ignore[reportArgumentType]


def known(target: Target, state: State) -> tuple[Local, int]:
    """Return what is known of the target where the chains are, and the evaluations it took."""
    return (target(state.x), 1) if state.local is None else (state.local, 0)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Give one number for each chain (chains,) trailing axes, so that it meets `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(like.dtype)


def dot(x: Tensor, y: Tensor) -> Float[Tensor, " chains"]:
    """Return the inner product of each row in float64."""
    return (x * y).flatten(1).sum(1, dtype=torch.float64)


def chosen(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the rows of `new` where accepted (chains,), of `old` elsewhere."""
    return torch.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def metropolis(log_ratio: Float[Tensor, " chains"], draws: Draws, stream: int) -> tuple[Tensor, Tensor]:
    """Return who accepts, and with which probability min(1, exp(log_ratio)); what is not a number is rejected."""
    log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio)
    accepted = draws.uniform(stream).log() < log_ratio
    return accepted, log_ratio.clamp(max=0).exp()


def local_of(accepted: Tensor, new: Local, old: Local) -> Local:
    """Return what is known after accepting or not."""
    log_prob = None
    if new.log_prob is not None and old.log_prob is not None:
        log_prob = torch.where(accepted, new.log_prob, old.log_prob)
    return Local(chosen(accepted, new.score, old.score), log_prob)
