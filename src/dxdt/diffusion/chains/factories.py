"""Samplers of the literature as compositions of moves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from dxdt.diffeq import Heun, Solver
from dxdt.diffusion.chains.level_posterior import LevelPosterior
from dxdt.diffusion.chains.moves import LevelGibbs, LevelKernel, ToLevel, WithinLevel
from dxdt.diffusion.chains.transport import Flow, Renoise, Reversal
from dxdt.diffusion.processes.exploding import EDM
from dxdt.diffusion.sampling.grid import Karras
from dxdt.mcmc import MALA, Ratio, Sequence, UnadjustedLangevin, UnderdampedLangevin

__all__ = ["dlg", "dlg_exact", "edm_churn", "predictor_corrector", "restart", "walk_jump"]


def dlg(step_size: float, posterior: LevelPosterior) -> LevelKernel:
    """Return denoising Langevin Gibbs as published: one evaluation a sweep.

        x <- x + h / 2 s(x, sigma) + sqrt(h) z,    sigma <- the most probable level of x

    The step is absolute, and nothing is accepted or rejected: with v = sigma^2 a sweep maps v to v + h^2 / (4 v), so
    sigma never rests below sqrt(h), and rises like (n h^2 / 2)^(1/4).

    Args:
        step_size: h, in squared units of the data.
        posterior: published as a classifier.

    Source: Kim and Ye, "Denoising MCMC for accelerating diffusion-based generative models" (2023).
    """
    return Sequence((WithinLevel(UnadjustedLangevin(step_size), relative=False), LevelGibbs(posterior, draw=False)))


def dlg_exact(step_size: float, posterior: LevelPosterior, ratio: Ratio | None = None) -> LevelKernel:
    """Return denoising Langevin Gibbs without its drift: the level is drawn, and the step is one of two.

    Without a ratio the Langevin step of size h sigma^2 has the noise that keeps sigma where it is in directions of
    noise alone, and what bias is left is of the order of 1 / D; with one it is accepted or rejected, and all is exact.

    Args:
        step_size: h in units of sigma^2; 0.4 D^(-1/3) accepts nearly all.
        posterior: of the level.
        ratio: `LineIntegral()` for networks, `Energy()` where the density is known, or None.
    """
    step = UnadjustedLangevin(step_size, curvature=1.0) if ratio is None else MALA(step_size, ratio)
    return Sequence((WithinLevel(step), LevelGibbs(posterior)))


def restart(low: float, high: float, steps: int = 2, solver: Solver = Heun()) -> LevelKernel:  # noqa: B008
    """Return the restart kernel: noise is added up to `high`, and the flow goes back to `low`.

    Args:
        low, high: the levels between which it moves.
        steps: of the flow.
        solver: of the flow.

    Source: Xu et al., "Restart sampling for improving generative processes" (2023), there within one sample.
    """
    return Sequence((ToLevel(high, Renoise()), ToLevel(low, Flow(steps, solver))))


def walk_jump(step_size: float = 0.5, friction: float = 1.0, ratio: Ratio | None = None) -> LevelKernel:
    """Return the walk of walk-jump sampling: underdamped Langevin at one level; the jump is the final denoising.

    Args:
        step_size: in units of sigma.
        friction: per unit of the same time.
        ratio: to accept or reject with, or None.

    Source: Saremi and Hyvarinen, "Neural empirical Bayes" (2019), there with the splitting of Sachs.
    """
    return WithinLevel(UnderdampedLangevin(step_size, friction, ratio))


def _levels(low: float, high: float, steps: int) -> list[float]:
    """Levels from high to low on the grid of Karras."""
    ends = (torch.tensor(v, dtype=torch.float64) for v in (high, low))
    return Karras()(EDM(min(low, 0.5 * high), high), steps, *ends).tolist()


def predictor_corrector(
    low: float, high: float, steps: int = 4, step_size: float = 0.1, moves: int = 1, ratio: Ratio | None = None
) -> LevelKernel:
    """Return predictor and corrector as a chain: noise up to `high`, then steps down, each followed by Langevin moves.

    Args:
        low, high: the levels between which it moves.
        steps: of the predictor, `ReverseDiffusion()`.
        step_size: of the corrector, in units of sigma^2.
        moves: of the corrector at each level.
        ratio: to accept or reject them with, or None.

    Source: Song et al., "Score-based generative modeling through stochastic differential equations" (2021), appendix G.
    """
    corrector = WithinLevel(UnadjustedLangevin(step_size, 1.0) if ratio is None else MALA(step_size, ratio))

    def parts() -> Iterator[LevelKernel]:
        yield ToLevel(high, Renoise())
        for level in _levels(low, high, steps)[1:]:
            yield ToLevel(level, Reversal(1))
            yield from [corrector] * moves

    return Sequence(tuple(parts()))


def edm_churn(
    low: float,
    high: float,
    steps: int = 4,
    gamma: float = math.sqrt(2) - 1,
    solver: Solver = Heun(),  # noqa: B008
) -> LevelKernel:
    """Return the stochastic sampler of EDM as a chain: noise up to `high`, then steps down, each from raised noise.

    Args:
        low, high: the levels between which it moves.
        steps: down.
        gamma: relative rise of the noise before each of them, as far as `high`.
        solver: of each, one step of the flow.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), algorithm 2.
    """

    def parts() -> Iterator[LevelKernel]:
        levels = _levels(low, high, steps)
        yield ToLevel(high, Renoise())
        for start, end in zip(levels[:-1], levels[1:], strict=True):
            if gamma > 0 and start < high:
                yield ToLevel(min((1 + gamma) * start, high), Renoise())
            yield ToLevel(end, Flow(1, solver))

    return Sequence(tuple(parts()))
