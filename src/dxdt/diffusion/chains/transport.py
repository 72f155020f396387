"""Transports: how x goes from one level to another so that p_sigma becomes p_sigma'.

    Renoise    up:    x' = x + sqrt(sigma'^2 - sigma^2) z                exact, no evaluation
    Flow       any:   the probability flow dx / dsigma = E[eps | x, sigma]    exact up to the solver
    Reversal   down:  the reverse equation with noise                   exact up to the solver

Source: Xu et al., "Restart sampling for improving generative processes" (2023), for the pair of renoising and flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffeq import PID, Grid, Heun, Solver, solve
from dxdt.diffusion.chains.product_space import ProductSpace, Rescaled
from dxdt.diffusion.processes.process import along
from dxdt.diffusion.sampling.grid import Karras, TimeGrid
from dxdt.diffusion.sampling.reverse import ProbabilityFlow, ReverseSDE
from dxdt.diffusion.sampling.reverse_diffusion import ReverseDiffusion
from dxdt.mcmc import Draws
from dxdt.paths import Increments
from dxdt.paths.driver import Onward

__all__ = ["Flow", "Renoise", "Reversal", "Transport", "UpDown"]


class Transport(ABC):
    """A rule that carries x from level to level."""

    @abstractmethod
    def reaches(self, level: Tensor, new: Tensor) -> Tensor:
        """Return for which chains it can (chains,)."""

    @abstractmethod
    def carry(self, space: ProductSpace, x: Tensor, level: Tensor, new: Tensor, draws: Draws) -> tuple[Tensor, int]:
        """Return x at the new levels, unchanged where they cannot be reached, and the evaluations."""


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which chains are finite (chains,), and x with zeros in place of those that are not: solves refuse them, and one
    lost chain must not end the others."""
    finite = torch.isfinite(x).flatten(1).all(1)
    return finite, _where(finite, x, torch.zeros_like(x))


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


@final
@dataclass(frozen=True)
class Renoise(Transport):
    """Up: x' = x + sqrt(sigma'^2 - sigma^2) z. Exact, at no evaluation."""

    def reaches(self, level: Tensor, new: Tensor) -> Tensor:
        return new >= level

    def carry(self, space: ProductSpace, x: Tensor, level: Tensor, new: Tensor, draws: Draws) -> tuple[Tensor, int]:
        std = (new.square() - level.square()).clamp(min=0).sqrt()
        return x + along(std, x) * draws.normal(x), 0


@final
@dataclass(frozen=True, eq=False)
class _Upwards:
    """The probability flow on a clock that rises for every chain: s = sigma where it goes up, -sigma where down."""

    flow: Rescaled
    sign: Tensor

    @property
    def fields(self) -> tuple[Any, ...]:
        """The denoiser, searched for parameters."""
        return (self.flow.denoiser,)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        """Return dx / ds = sign E[eps | x, sigma]."""
        return along(self.sign, y) * self.flow(y, self.sign * t.double()).noise


def _grid(grid: TimeGrid, space: ProductSpace, steps: int, level: Tensor, new: Tensor, moves: Tensor) -> Tensor:
    """Levels (steps + 1, chains) from the old to the new ones, rising or falling; chains that stay get any that do."""
    level = torch.where(moves, level, new * 0.5)
    high, low = torch.maximum(level, new), torch.minimum(level, new)
    times = grid(space.clock, steps, high.cpu(), low.cpu())
    return torch.where((new > level).cpu(), times.flip(0), times)


@final
@dataclass(frozen=True)
class Flow(Transport):
    """Any way: `steps` steps of a solver along the probability flow, each chain from its own level to its own.

    Args:
        steps: of the solver, or None for one that chooses them by `rtol` and `atol`.
        solver: of ordinary equations; exponential ones go down only, all chains at once.
        grid: where the steps lie in sigma, read backwards on the way up.
        rtol, atol: tolerances, where `steps` is None.

    Raises:
        ValueError: `steps` is below one; on moving, an exponential solver is to go up.
    """

    steps: int | None = 4
    solver: Solver = Heun()  # noqa: RUF009
    grid: TimeGrid = Karras()  # noqa: RUF009
    rtol: float = 1e-4
    atol: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"Flow: steps={self.steps} goes nowhere; give at least 1.")

    def reaches(self, level: Tensor, new: Tensor) -> Tensor:
        return torch.ones_like(level, dtype=torch.bool)

    def carry(self, space: ProductSpace, x: Tensor, level: Tensor, new: Tensor, draws: Draws) -> tuple[Tensor, int]:
        finite, y = whole(x)
        moves = (new != level) & finite
        if not bool(moves.any()):
            return x, 0
        times = _grid(self.grid, space, self.steps or 1, level, new, moves)
        flow = space.under()
        if self.solver.facts.semilinear:
            if bool((new > level).any()):
                raise ValueError(
                    f"Flow: {type(self.solver).__name__} follows the flow down only, and a level rises; "
                    "give solver=Heun(), or Renoise() for the way up."
                )
            equation: Any = ProbabilityFlow(flow)
        else:
            sign = torch.where(new > level, 1.0, -1.0).to(torch.float64)
            equation, times = _Upwards(flow, sign), torch.where((new > level).cpu(), times, -times)
        solved = _solved(equation, y, times, self.solver, None if self.steps else PID(self.rtol, self.atol))
        return _where(moves, solved.y1, x), solved.stats.evaluations


def _solved(equation: Any, x: Tensor, times: Tensor, solver: Solver, controller: Any, **options: Any) -> Any:
    """A solve on known or chosen steps; a clock for each chain, also where all are alike: one that fails ends alone."""
    if controller is None:
        options |= {"controller": Grid(times.numpy()), "max_steps": len(times) - 1}
    else:
        options["controller"] = controller
    return solve(equation, x, (times[0], times[-1]), solver=solver, per_sample=True, throw=False, **options)


@final
@dataclass(frozen=True)
class Reversal(Transport):
    """Down: `steps` steps of a solver of the reverse equation with noise.

    Args:
        steps: of the solver.
        solver: `ReverseDiffusion()`, `Ancestral()`, `Exponential()`, or any of stochastic equations.
        grid: where the steps lie in sigma.
        tau: share of noise, above 0 up to 1.

    Raises:
        ValueError: `steps` is below one, or tau is not in (0, 1].
    """

    steps: int = 1
    solver: Solver = ReverseDiffusion()  # noqa: RUF009
    grid: TimeGrid = Karras()  # noqa: RUF009
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.tau <= 1:
            raise ValueError(
                f"Reversal: steps={self.steps} and tau={self.tau} are no way down; give at least one step and a tau "
                "above 0 up to 1, or take Flow()."
            )

    def reaches(self, level: Tensor, new: Tensor) -> Tensor:
        return new <= level

    def carry(self, space: ProductSpace, x: Tensor, level: Tensor, new: Tensor, draws: Draws) -> tuple[Tensor, int]:
        finite, y = whole(x)
        moves = (new < level) & finite
        if not bool(moves.any()):
            return x, 0
        # A chain that does not go down makes the way of one that does, and is put back.
        end = torch.where(moves, new, 0.5 * level)
        times = _grid(self.grid, space, self.steps, level, end, torch.ones_like(moves))
        driver = Onward(Increments(draws.named(0)), int(draws.rows[0]))
        solved = _solved(ReverseSDE(space.under(), self.tau), y, times, self.solver, None, driver=driver)
        return _where(moves, solved.y1, x), solved.stats.evaluations


@final
@dataclass(frozen=True)
class UpDown(Transport):
    """One transport for chains that go up, another for those that go down.

    Args:
        up, down: of the two.
    """

    up: Transport = Renoise()  # noqa: RUF009
    down: Transport = Flow(1)  # noqa: RUF009

    def reaches(self, level: Tensor, new: Tensor) -> Tensor:
        return torch.where(new >= level, self.up.reaches(level, new), self.down.reaches(level, new))

    def carry(self, space: ProductSpace, x: Tensor, level: Tensor, new: Tensor, draws: Draws) -> tuple[Tensor, int]:
        rises = new >= level
        up, first = self.up.carry(space, x, level, torch.where(rises, new, level), draws.part(0))
        down, second = self.down.carry(space, x, level, torch.where(rises, level, new), draws.part(1))
        return _where(rises, up, down), first + second
