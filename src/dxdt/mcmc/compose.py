"""Kernels made of kernels: what each part leaves invariant, the whole does."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Kernel

__all__ = ["Mixture", "Repeat", "Sequence"]

T = TypeVar("T")
S = TypeVar("S")


@final
@dataclass(frozen=True)
class Sequence(Kernel[T, S], Generic[T, S]):
    """Kernels one after the other.

    Args:
        kernels: at least one, on the same states.

    Raises:
        ValueError: there is none.
    """

    kernels: tuple[Kernel[T, S], ...]

    def __post_init__(self) -> None:
        if not self.kernels:
            raise ValueError("Sequence: no kernel was given; give at least one.")

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernels."""
        return self.kernels

    def rebuilt(self, parts: Many[Kernel[Any, Any]]) -> Sequence[T, S]:
        """Return a sequence of other kernels."""
        return Sequence(tuple(parts))

    def step(self, target: T, state: S, draws: Draws) -> tuple[S, Info]:
        found: list[Info] = []
        for number, kernel in enumerate(self.kernels):
            state, info = kernel.step(target, state, draws.part(number))
            found.append(info)
        return state, Info.joined(found)


@final
@dataclass(frozen=True)
class Repeat(Kernel[T, S], Generic[T, S]):
    """A kernel several times over.

    Args:
        kernel: any.
        times: at least one.

    Raises:
        ValueError: `times` is below one.
    """

    kernel: Kernel[T, S]
    times: int

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"Repeat: times={self.times} moves nothing; give at least one.")

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernel."""
        return (self.kernel,)

    def rebuilt(self, parts: Many[Kernel[Any, Any]]) -> Repeat[T, S]:
        """Return as many repetitions of another kernel."""
        return Repeat(parts[0], self.times)

    def step(self, target: T, state: S, draws: Draws) -> tuple[S, Info]:
        found: list[Info] = []
        for number in range(self.times):
            state, info = self.kernel.step(target, state, draws.part(number))
            found.append(info)
        # One part stands for all repetitions, as there is one kernel for them.
        whole = Info.joined(found)
        return state, Info(whole.evaluations, whole.acceptance, whole.energy_error, whole.calls, (whole,))


@final
@dataclass(frozen=True)
class Mixture(Kernel[T, S], Generic[T, S]):
    """One of several kernels in each step, drawn with given weights whatever the state.

    The choice is made once for all chains, so that they ask the target together; each chain's own law is that of
    a choice of its own.

    Args:
        kernels: at least one, on the same states.
        weights: as many positive numbers, in any unit; equal ones by default.

    Raises:
        ValueError: there are no kernels, or the weights do not fit them.
    """

    kernels: tuple[Kernel[T, S], ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weights = (1.0,) * len(self.kernels) if self.weights is None else self.weights
        fits = len(weights) == len(self.kernels) > 0 and all(0 < w < math.inf for w in weights)
        if not fits:
            raise ValueError(
                f"Mixture: weights {self.weights} do not belong to {len(self.kernels)} kernels; "
                "give a positive weight for each of at least one kernel."
            )

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernels."""
        return self.kernels

    def rebuilt(self, parts: Many[Kernel[Any, Any]]) -> Mixture[T, S]:
        """Return a mixture of other kernels with the same weights."""
        return Mixture(tuple(parts), self.weights)

    def _choice(self, u: float) -> int:
        weights = (1.0,) * len(self.kernels) if self.weights is None else self.weights
        mark, total = u * sum(weights), 0.0
        for number, weight in enumerate(weights):
            total += weight
            if mark < total:
                return number
        return len(weights) - 1

    def step(self, target: T, state: S, draws: Draws) -> tuple[S, Info]:
        number = self._choice(draws.shared())
        state, info = self.kernels[number].step(target, state, draws.part(number))
        silent = Info(0)
        parts = tuple(info if k == number else silent for k in range(len(self.kernels)))
        return state, Info(info.evaluations, info.acceptance, info.energy_error, info.calls, parts)
