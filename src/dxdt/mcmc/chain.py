"""The loop that moves chains, and what is kept of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Kernel, State
from dxdt.mcmc.target import Target

__all__ = ["Chains", "march", "run_chains"]

T = TypeVar("T")
S = TypeVar("S")


def march(
    kernel: Kernel[T, S], target: T, state: S, draws: Draws, steps: int | None = None
) -> Iterator[tuple[S, Info]]:
    """Yield state and info after each of the next steps, without end where `steps` is None.

    Args:
        kernel, target: any that fit.
        state: before the first step.
        draws: of the first step; those of step k are its own, so that a run may be taken up at any step.
    """
    first, number = draws.step, 0
    while steps is None or number < steps:
        with torch.no_grad():
            state, info = kernel.step(target, state, draws.at(first + number))
        yield state, info
        number += 1


@final
@dataclass(frozen=True, eq=False)
class Chains:
    """What was kept of chains.

    Attributes:
        x: (chains, draws, *shape).
        statistics: by name (chains, draws): the mean "acceptance" of the steps since the last draw, and their
            largest "energy_error", where there are any.
        evaluations: calls of the target, all chains being one call, those of the burn-in among them.
        burn_in_evaluations: those of the burn-in.
        seconds: of the wall, for the draws alone.
        state: where the chains are.
        steps: steps taken so far, at which a run is taken up again.
    """

    x: Tensor
    statistics: dict[str, Tensor]
    evaluations: int
    burn_in_evaluations: int
    seconds: float
    state: Any = field(repr=False)
    steps: int = 0

    @property
    def evaluations_per_draw(self) -> float:
        """Calls of the target for one draw of a chain, the burn-in apart."""
        return (self.evaluations - self.burn_in_evaluations) / self.x.shape[1]


def run_chains(
    kernel: Kernel[Target, State],
    target: Target,
    x: Float[Tensor, "chains *shape"] | State,
    *,
    draws: int,
    burn_in: int = 0,
    thin: int = 1,
    seed: int = 0,
    first: int = 0,
    steps: int = 0,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Chains:
    """Run chains and keep every `thin`-th place.

    Args:
        kernel: any on (*shape); adapt it before with `warm_up`.
        target: any.
        x: where the chains begin, or the state in which a run ended.
        draws: places to keep of each chain.
        burn_in: steps before the first.
        thin: steps from one to the next.
        seed: names all random numbers.
        first: number of the first chain, so that many chains may be run in parts.
        steps: steps that were taken before, where a run is taken up again.
        keep: what to keep of a place (chains, *shape); all of it by default.

    Raises:
        ValueError: there are no chains or no draws, or the start is not finite.
    """
    state = x if isinstance(x, State) else State(x)
    _check(state.x, draws, burn_in, thin)
    numbers = Draws.of(seed, state.x, first).at(steps)
    loop = march(kernel, target, state, numbers)
    kept: list[Tensor] = []
    told: list[Info] = []
    spent = 0
    for _ in range(burn_in):
        state, info = next(loop)
        spent += info.evaluations
    burnt, begun = spent, time.perf_counter()
    for _ in range(draws):
        between: list[Info] = []
        for _ in range(thin):
            state, info = next(loop)
            between.append(info)
        told.append(replace(Info.joined(between), parts=()))
        spent += told[-1].evaluations
        kept.append(state.x if keep is None else keep(state.x))
    seconds = time.perf_counter() - begun
    _warn_lost(state.x)
    taken = steps + burn_in + draws * thin
    return Chains(torch.stack(kept, 1), statistics_of(told), spent, burnt, seconds, state, taken)


def statistics_of(told: list[Info]) -> dict[str, Tensor]:
    """Return what steps told of each chain, (chains, steps) by name."""
    found: dict[str, Tensor] = {}
    for name in ("acceptance", "energy_error"):
        values = [getattr(info, name) for info in told]
        if values and all(v is not None for v in values):
            found[name] = torch.stack(values, 1)
    return found


def _check(x: Tensor, draws: int, burn_in: int, thin: int) -> None:
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"run_chains: a start of shape {tuple(x.shape)} holds no chains; give (chains, *shape).")
    if draws < 1 or burn_in < 0 or thin < 1:
        raise ValueError(
            f"run_chains: draws={draws}, burn_in={burn_in}, thin={thin} keep nothing; "
            "give at least one draw, burn_in >= 0 and thin >= 1."
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("run_chains: the start has values that are not finite; remove or replace them.")


def _warn_lost(x: Tensor) -> None:
    lost = (~torch.isfinite(x).flatten(1).all(1)).nonzero().flatten().tolist()
    if lost:
        named = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        warnings.warn(
            f"run_chains: {len(lost)} of {len(x)} chains left the finite numbers (chains {named}); the others are "
            "unharmed. Take a smaller step, or a kernel that rejects, such as MALA().",
            stacklevel=3,
        )
