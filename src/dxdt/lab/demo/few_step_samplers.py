"""Samplers of a few evaluations: ours, and those of diffusers on the same denoiser and initial noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from dxdt.diffeq import Solver, Status
from dxdt.diffusion import Denoiser, DenoiserLike, Process, Samples, draw, prior_noise
from dxdt.ops.optional import require

__all__ = ["Foreign", "InPieces", "Ours", "Sampler"]


class Sampler(Protocol):
    """Draws samples with at most a number of evaluations of the denoiser."""

    def __call__(self, denoiser: DenoiserLike, shape: Sequence[int], budget: int, seed: int) -> Samples:
        """Return samples, their first noise named by the seed alone."""
        ...


@functools.cache
def steps_within(process: Process, solver: Solver | None, tau: float, budget: int) -> int:
    """Return the largest number of steps that ask the denoiser `budget` times at most, found by counting.

    Raises:
        ValueError: there is none.
    """
    blank = Denoiser(lambda x, t: x, process)
    for steps in range(budget, 0, -1):
        if draw(blank, (1, 1), steps=steps, solver=solver, tau=tau).evaluations <= budget:
            return steps
    raise ValueError(f"{solver} takes more than {budget} evaluations for any number of steps; allow more.")


@final
@dataclass(frozen=True)
class Ours:
    """`dxdt.diffusion.draw`, with everything by default but what is named here.

    Args:
        solver: of the reverse equation; None for the default.
        tau: 0 for the probability flow, 1 for the reverse SDE.
    """

    solver: Solver | None = None
    tau: float = 0.0

    def __call__(self, denoiser: DenoiserLike, shape: Sequence[int], budget: int, seed: int) -> Samples:
        """Return samples."""
        steps = steps_within(denoiser.process, self.solver, self.tau, budget)
        return draw(denoiser, shape, steps=steps, solver=self.solver, tau=self.tau, seed=seed)


@final
@dataclass(frozen=True)
class Foreign:
    """A scheduler of diffusers with its own defaults, told the noise at the level it stands at.

    It names levels by whole timesteps, to which its noise levels correspond only nearly; the denoiser is
    therefore asked at the level sigma = c / a itself.

    Args:
        name: of its class, such as "UniPCMultistepScheduler".
        order: of the solver.
        betas: of the process's table.
        options: of the class.

    Raises:
        ImportError: diffusers is not installed.
    """

    name: str
    order: int
    betas: Callable[[], Tensor]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, denoiser: DenoiserLike, shape: Sequence[int], budget: int, seed: int) -> Samples:
        """Return samples; every step is one evaluation, and the last lands on the data."""
        betas = self.betas().double().numpy()
        kind = getattr(require("diffusers", "interop"), self.name)
        scheduler = kind(len(betas), trained_betas=betas, solver_order=self.order, **dict(self.options))
        scheduler.set_timesteps(budget)
        process = denoiser.process
        x = prior_noise(shape, seed)
        for sigma, told in zip(scheduler.sigmas[:-1].double(), scheduler.timesteps, strict=True):
            t = process.time(-sigma.log()).clamp(max=process.t1)
            x = scheduler.step(denoiser(x, t.expand(len(x))).noise, told, x).prev_sample
        return Samples(x, len(scheduler.timesteps), [Status.SUCCESS] * len(x))


@final
class InPieces(torch.nn.Module):
    """A network asked for a few samples at a time, whose values stay in the processor's cache.

    Args:
        net: called as net(x, t).
        piece: samples at once.
        half: multiply in bfloat16, twice as fast on processors that have it; sums are in float32.
    """

    def __init__(self, net: Callable[[Tensor, Tensor], Tensor], piece: int, half: bool) -> None:
        super().__init__()
        self.net, self.piece, self.brief = net, piece, half

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return net(x, t)."""
        times = t.expand(len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.brief):
            parts = [self.net(*both) for both in zip(x.split(self.piece), times.split(self.piece), strict=True)]
        return torch.cat(parts).to(x.dtype)
