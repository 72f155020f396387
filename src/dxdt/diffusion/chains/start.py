"""Where chains begin, and which of the places that they visit become samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dxdt.diffusion.chains.integrator import Integrator
from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.mcmc import Draws

__all__ = ["Last", "LowestLevel", "Chosen", "Selection", "Start", "StartFromData", "StartFromNoise"]


class Chosen(NamedTuple):
    """Where a sample starts: x (chains, *shape) and its level (chains,)."""

    x: Tensor
    level: Tensor


class Selection(ABC):
    """Which of the places that a chain visited becomes a sample."""

    @abstractmethod
    def __call__(self, best: Chosen, new: LevelState) -> Chosen:
        """Return the choice after one more sweep; `best` is that before, at first the place of the last sample."""


@final
@dataclass(frozen=True)
class Last(Selection):
    """The last: unbiased where the chain is."""

    def __call__(self, best: Chosen, new: LevelState) -> Chosen:
        return Chosen(new.x, new.level)


@final
@dataclass(frozen=True)
class LowestLevel(Selection):
    """The one of the lowest level, that of the last sample among them, as published.

    Biased: x that seem less noisy are nearer to the modes' edges (in two dimensions samples are 10 % too wide), and a
    place may become a sample twice.
    """

    def __call__(self, best: Chosen, new: LevelState) -> Chosen:
        lower = new.level < best.level
        wide = lower.reshape(-1, *(1,) * (new.x.ndim - 1))
        return Chosen(torch.where(wide, new.x, best.x), torch.where(lower, new.level, best.level))


class Start(ABC):
    """Where chains begin."""

    @abstractmethod
    def __call__(self, space: ProductSpace, chains: int, draws: Draws) -> tuple[LevelState, int]:
        """Return the state, and the evaluations it took."""


@final
@dataclass(frozen=True)
class StartFromNoise(Start):
    """Data from noise by an integrator, then noised to a level.

    Args:
        shape: of a datum.
        level: of the noise; what is right for the kernel.
        integrator: from the highest level of the prior; published is `kar2(20)`.
        dtype, device: of the chains.
    """

    shape: tuple[int, ...]
    level: float
    integrator: Integrator = Integrator(steps=18)  # noqa: RUF009
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    def __call__(self, space: ProductSpace, chains: int, draws: Draws) -> tuple[LevelState, int]:
        like = torch.empty(chains, *self.shape, dtype=self.dtype, device=self.device)
        high = torch.full((chains,), space.prior.high, dtype=torch.float64, device=like.device)
        noise = space.prior.high * draws.part(0).normal(like)
        x0, evaluations = self.integrator(space, noise, high, seed=draws.named(1), first=int(draws.rows[0]))
        x0 = torch.where(torch.isfinite(x0), x0, 0.0)
        return space.start(x0 + self.level * draws.part(2).normal(like), self.level), evaluations


@final
@dataclass(frozen=True, eq=False)
class StartFromData(Start):
    """Given data, noised to a level; chains beyond the last datum begin from the first again.

    Args:
        data: (count, *shape).
        level: of the noise.
    """

    data: Tensor
    level: float

    def __call__(self, space: ProductSpace, chains: int, draws: Draws) -> tuple[LevelState, int]:
        x0 = self.data[draws.rows.to(self.data.device) % len(self.data)]
        return space.start(x0 + self.level * draws.part(2).normal(x0), self.level), 0
