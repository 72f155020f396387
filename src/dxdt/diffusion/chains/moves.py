"""Moves in the product space: kernels that leave p(x, sigma), or p(x | sigma), invariant.

DLG, restarts, predictor and corrector, churn and walk-jump are compositions of these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from dxdt.diffusion.chains.level_posterior import LevelPosterior
from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.diffusion.chains.transport import Transport
from dxdt.diffusion.processes.process import along
from dxdt.mcmc import Draws, Info, Kernel, Local, State, in_units

__all__ = [
    "DiffusiveGibbs",
    "FromPrior",
    "LevelGibbs",
    "LevelKernel",
    "LevelRule",
    "LevelWalk",
    "SwapLevels",
    "ToLevel",
    "WithinLevel",
]

LevelKernel: TypeAlias = Kernel[ProductSpace, LevelState]
"""A kernel of the product space."""


@final
@dataclass(frozen=True)
class WithinLevel(Kernel[ProductSpace, LevelState]):
    """A kernel on x, at the level of each chain: Langevin, MALA, HMC, ...

    Args:
        kernel: on x.
        relative: whether its steps are in units of sigma: a step size h then is h sigma^2, and one kernel serves all
            levels. DLG as published takes absolute ones.
    """

    kernel: Kernel[Any, State]
    relative: bool = True

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernel on x."""
        return (self.kernel,)

    def rebuilt(self, parts: Sequence[Kernel[Any, Any]]) -> WithinLevel:
        """Return another kernel at the level."""
        return WithinLevel(parts[0], self.relative)

    def step(self, target: ProductSpace, state: LevelState, draws: Draws) -> tuple[LevelState, Info]:
        here = State(state.x, state.local, state.momentum)
        law = target.at(state.level)
        if self.relative:
            new, info = in_units(self.kernel, law, here, along(state.level, state.x), draws)
        else:
            new, info = self.kernel.step(law, here, draws)
        moved = LevelState(new.x, state.level, new.local, new.momentum)
        return moved, replace(info, parts=(info,))


@final
@dataclass(frozen=True)
class LevelGibbs(Kernel[ProductSpace, LevelState]):
    """A new level given x.

    Args:
        posterior: of the level.
        draw: whether the level is drawn, which leaves p(x, sigma) invariant; else it is the most probable, as in DLG,
            which collapses where there are few dimensions.
    """

    posterior: LevelPosterior
    draw: bool = True

    def step(self, target: ProductSpace, state: LevelState, draws: Draws) -> tuple[LevelState, Info]:
        told = self.posterior.draw(target, state, draws) if self.draw else self.posterior.mode(target, state, draws)
        # A chain that is lost says nothing of its level.
        level = torch.where(torch.isfinite(told.level), told.level, state.level)
        new = LevelState(state.x, level, None, state.momentum)
        return new, Info(told.evaluations, calls=told.calls)


class LevelRule(ABC):
    """Where a move goes."""

    @abstractmethod
    def __call__(self, space: ProductSpace, level: Tensor, draws: Draws) -> Tensor:
        """Return a new level for each chain, whatever x is."""


@final
@dataclass(frozen=True)
class _Fixed(LevelRule):
    level: float

    def __call__(self, space: ProductSpace, level: Tensor, draws: Draws) -> Tensor:
        if not space.prior.low * (1 - 1e-9) <= self.level <= space.prior.high * (1 + 1e-9):
            raise ValueError(
                f"ToLevel: level {self.level:g} is not inside the prior's, {space.prior.low:g} to "
                f"{space.prior.high:g}; choose one between."
            )
        return torch.full_like(level, self.level)


@final
@dataclass(frozen=True)
class FromPrior(LevelRule):
    """A level drawn from the prior, independent of the old one."""

    def __call__(self, space: ProductSpace, level: Tensor, draws: Draws) -> Tensor:
        return space.prior.icdf(draws.uniform(1))


@final
@dataclass(frozen=True)
class LevelWalk(LevelRule):
    """A step of a random walk on the quantiles of the prior, reflected at both ends: every prior stays as it is.

    Args:
        width: standard deviation of a step, as a share of the prior; under `LogUniform` a step of `width` times the
            range of log sigma.

    Raises:
        ValueError: the width is not positive.
    """

    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"LevelWalk: width={self.width} stays where it is; give a positive number.")

    def __call__(self, space: ProductSpace, level: Tensor, draws: Draws) -> Tensor:
        z = torch.special.ndtri(draws.uniform(1))
        u = (space.prior.cdf(level) + self.width * z).remainder(2)
        return space.prior.icdf(torch.where(u > 1, 2 - u, u).clamp(1e-12, 1 - 1e-12))


@final
@dataclass(frozen=True)
class ToLevel(Kernel[ProductSpace, LevelState]):
    """A move to another level, chosen whatever x is, by a transport.

    Where the rule leaves the prior of levels invariant and the transport is exact, so is p(x, sigma): nothing has to
    be accepted. To a fixed level the law of x given the level stays exact.

    Args:
        level: a level, or a rule: `FromPrior()`, `LevelWalk(width)`.
        by: the transport; chains whose level it cannot reach stay where they are.

    Raises:
        ValueError: the level is not positive.
    """

    level: float | LevelRule
    by: Transport

    def __post_init__(self) -> None:
        if not isinstance(self.level, LevelRule) and not self.level > 0:
            raise ValueError(f"ToLevel: level={self.level} is no noise level; give a positive number.")

    def step(self, target: ProductSpace, state: LevelState, draws: Draws) -> tuple[LevelState, Info]:
        rule = self.level if isinstance(self.level, LevelRule) else _Fixed(float(self.level))
        new = rule(target, state.level, draws.part(0))
        new = torch.where(self.by.reaches(state.level, new), new, state.level)
        x, evaluations = self.by.carry(target, state.x, state.level, new, draws.part(1))
        return LevelState(x, new, None, state.momentum), Info(evaluations)


@final
@dataclass(frozen=True)
class SwapLevels(Kernel[ProductSpace, LevelState]):
    """Replica exchange: chains stand on ladders of `rungs` levels each, and neighbours on a ladder exchange places.

    With a transport x is carried to the level of its partner, which needs no acceptance; without it the places
    themselves are exchanged with probability min(1, p_s(y) p_t(x) / (p_s(x) p_t(y))), from the denoiser's density.

    Args:
        rungs: of a ladder; chains k rungs .. (k + 1) rungs - 1 form one.
        by: a transport that goes both ways, such as `Flow(4)` or `UpDown()`, or None.

    Raises:
        ValueError: there are fewer than two rungs; on moving, the chains do not fill the ladders.
    """

    rungs: int
    by: Transport | None = None

    def __post_init__(self) -> None:
        if self.rungs < 2:
            raise ValueError(f"SwapLevels: rungs={self.rungs} leave nobody to swap with; give at least 2.")

    def _partners(self, chains: int, odd: bool, device: torch.device) -> Tensor:
        """For each chain the number of its partner, its own where it has none."""
        if chains % self.rungs:
            raise ValueError(
                f"SwapLevels: {chains} chains do not fill ladders of {self.rungs} rungs; give a multiple of them."
            )
        place = torch.arange(chains, device=device) % self.rungs
        step = torch.where((place - int(odd)) % 2 == 0, 1, -1)
        alone = (place + step < 0) | (place + step >= self.rungs)
        return torch.arange(chains, device=device) + torch.where(alone, 0, step)

    def step(self, target: ProductSpace, state: LevelState, draws: Draws) -> tuple[LevelState, Info]:
        x, level = state.x, state.level
        partner = self._partners(len(x), draws.shared() < 0.5, x.device)
        if self.by is not None:
            carried, evaluations = self.by.carry(target, x, level, level[partner], draws.part(0))
            return LevelState(carried[partner], level, None, None), Info(evaluations)
        gain = target.log_prob(x, level[partner]) - target.log_prob(x, level)
        ratio = (gain + gain[partner]).double()
        # Both partners must decide alike: the lower number draws for both.
        lower = torch.minimum(torch.arange(len(x), device=x.device), partner)
        accepted = draws.uniform()[lower].log() < ratio
        rate = torch.where(ratio.isnan(), 0.0, ratio.clamp(max=0).exp())
        moved = torch.where(accepted.reshape(-1, *(1,) * (x.ndim - 1)), x[partner], x)
        return LevelState(moved, level, None, None), Info(0, acceptance=rate)


@final
@dataclass(frozen=True)
class DiffusiveGibbs(Kernel[ProductSpace, LevelState]):
    """Diffusive Gibbs at a low level: noise is added, y = x + sqrt(high^2 - sigma^2) z, then x is moved given y.

    The law of x given y has the score s(x, sigma) + (y - x) / (high^2 - sigma^2); a kernel that is exact for it makes
    the whole exact.

    Args:
        high: level of y, or a rule for it.
        kernel: on x given y, with steps in units of sigma.

    Source: Chen et al., "Diffusive Gibbs sampling" (2024).
    """

    high: float | LevelRule
    kernel: Kernel[Any, State]

    @property
    def parts(self) -> tuple[Kernel[Any, Any], ...]:
        """The kernel on x given y."""
        return (self.kernel,)

    def rebuilt(self, parts: Sequence[Kernel[Any, Any]]) -> DiffusiveGibbs:
        """Return the same with another kernel."""
        return DiffusiveGibbs(self.high, parts[0])

    def step(self, target: ProductSpace, state: LevelState, draws: Draws) -> tuple[LevelState, Info]:
        x, level = state.x, state.level
        rule = self.high if isinstance(self.high, LevelRule) else _Fixed(float(self.high))
        gap = rule(target, level, draws.part(0)).square() - level.square()
        if not bool((gap > 0).all()):
            raise ValueError("DiffusiveGibbs: a chain is not below the level of its noise; start it lower.")
        variance = along(gap, x)
        y = x + variance.sqrt() * draws.part(1).normal(x)
        law = target.at(level)

        def given(x: Tensor) -> Local:
            local = law(x)
            score = local.score + (y - x) / variance
            if local.log_prob is None:
                return Local(score, None)
            pull = (y - x).double().square().flatten(1).sum(1) / (2 * gap)
            return Local(score, local.log_prob - pull)

        new, info = in_units(self.kernel, given, State(x), along(level, x), draws.part(2))
        return LevelState(new.x, level, None, None), replace(info, parts=(info,))
