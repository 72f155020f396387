"""Warm-up: step sizes are adapted to a rate of acceptance, and units to the widths of the target.

    log h_{n+1} = m - sqrt(n) / (gamma (n + n0)) sum_{k <= n} (rate - a_k),    m = log(10 h_0)

where a_k is the mean acceptance of all chains in step k; what is used afterwards is the average of log h weighted by
n^(-kappa).

Source: Hoffman and Gelman, "The No-U-Turn sampler" (2014), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Kernel, State, Tunable
from dxdt.mcmc.scaled import Scaled
from dxdt.mcmc.target import Target

__all__ = ["DualAveraging", "WarmUp", "adapted", "warm_up"]

_GAMMA, _DELAY, _DECAY = 0.05, 10.0, 0.75


@final
@dataclass(frozen=True)
class DualAveraging:
    """The state of one step size.

    Attributes:
        start: m.
        missed: sum of (rate - acceptance).
        log_average: of the step size.
        count: steps so far.
    """

    start: float
    missed: float = 0.0
    log_average: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, step_size: float) -> DualAveraging:
        """Return the state before the first step."""
        return cls(math.log(10 * step_size), log_average=math.log(step_size))

    def after(self, rate: float, acceptance: float) -> tuple[DualAveraging, float]:
        """Return the state after a step, and the step size of the next."""
        count = self.count + 1
        missed = self.missed + rate - acceptance
        log_step = self.start - math.sqrt(count) / (_GAMMA * (count + _DELAY)) * missed
        weight = count**-_DECAY
        average = weight * log_step + (1 - weight) * self.log_average
        return DualAveraging(self.start, missed, average, count), math.exp(log_step)

    @property
    def step_size(self) -> float:
        """The step size to keep."""
        return math.exp(self.log_average)


Averages = dict[tuple[int, ...], DualAveraging]


def _leaves(kernel: Kernel[Any, Any], at: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Tunable]]:
    """The kernels inside a composition whose step size can be adapted, each by its place."""
    if isinstance(kernel, Tunable) and kernel.tunable:
        yield at, kernel
    for number, part in enumerate(kernel.parts):
        yield from _leaves(part, (*at, number))


def _replaced(kernel: Kernel[Any, Any], sizes: dict[tuple[int, ...], float], at: tuple[int, ...] = ()) -> Any:
    if at in sizes:
        assert isinstance(kernel, Tunable)
        kernel = kernel.resized(sizes[at])
    if not kernel.parts:
        return kernel
    return kernel.rebuilt([_replaced(part, sizes, (*at, n)) for n, part in enumerate(kernel.parts)])


def _at(info: Info, place: tuple[int, ...]) -> Info:
    for number in place:
        info = info.parts[number]
    return info


def adapted(kernel: Kernel[Any, Any], info: Info, averages: Averages | None = None) -> tuple[Any, Averages]:
    """Return a kernel with the step sizes of the next step of its warm-up, and their averages.

    Args:
        kernel: any composition; those of its parts that accept or reject are adapted.
        info: what happened in the step before.
        averages: from the step before, or None at the first.
    """
    averages = dict(averages or {})
    sizes: dict[tuple[int, ...], float] = {}
    for place, part in _leaves(kernel):
        acceptance = _at(info, place).acceptance
        if acceptance is None:
            continue
        before = averages.get(place) or DualAveraging.of(part.step_size)
        averages[place], sizes[place] = before.after(part.rate, float(acceptance.mean()))
    return _replaced(kernel, sizes), averages


def settled(kernel: Kernel[Any, Any], averages: Averages) -> Any:
    """Return a kernel with the averaged step sizes, which it keeps from then on."""
    return _replaced(kernel, {place: found.step_size for place, found in averages.items()})


class WarmUp(NamedTuple):
    """What a warm-up found.

    Attributes:
        kernel: with the step sizes, and in the units, that were found.
        state: of the chains at its end.
        evaluations: that it took.
    """

    kernel: Any
    state: State
    evaluations: int


@torch.no_grad()
def warm_up(
    kernel: Kernel[Target, State],
    target: Target,
    x: Float[Tensor, "chains *shape"],
    *,
    steps: int = 200,
    seed: int = 0,
    scale: bool = True,
) -> WarmUp:
    """Run chains while step sizes, and the units of each coordinate, are adapted to the target.

    Half of the steps are taken in the units of x. The standard deviations of all chains over the second half of these
    become the units of the other half, and of the kernel that is returned.

    Args:
        kernel: whose parts are adapted where they accept or reject.
        target: any.
        x: where the chains begin.
        steps: of the warm-up.
        seed: of its own random numbers.
        scale: whether units are adapted too.

    Raises:
        ValueError: there are fewer than 20 steps, or no chains.
    """
    if steps < 20 or len(x) == 0:
        raise ValueError(
            f"warm_up: {steps} steps of {len(x)} chains tell nothing of a target; give at least 20 steps and a chain."
        )
    draws = Draws.of(seed, x).part(1)
    state: Any = State(x)
    averages: Averages = {}
    evaluations, middle = 0, steps // 2
    seen: list[Tensor] = []
    for number in range(steps):
        if scale and number == middle:
            width = torch.cat(seen).std(0)
            kernel, averages = Scaled(settled(kernel, averages), torch.where(width > 0, width, 1.0)), {}
            state = replace(state, momentum=None)
        state, info = kernel.step(target, state, draws.at(number))
        evaluations += info.evaluations
        kernel, averages = adapted(kernel, info, averages)
        if scale and middle // 2 <= number < middle:
            seen.append(state.x.double())
    return WarmUp(settled(kernel, averages), state, evaluations)
