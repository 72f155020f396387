"""Noise levels from the score alone: no classifier.

The heat equation dp / d(sigma^2) = Laplacian(p) / 2 gives, exactly,

    d log p_sigma(x) / d log sigma = sigma^2 (div s + |s|^2) = |eps|^2 - sigma div eps,        eps = E[eps | x, sigma],

whose integral is the log posterior up to the prior. Without the divergence the root of |eps|^2 = D is left: the level
at which the residual is as long as noise should be.

Source: Kadkhodaie and Simoncelli, "Stochastic solutions for linear inverse problems using the prior implicit in a
denoiser" (2021), for the residual as a measure of the level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.chains.level_posterior import LevelPosterior, LevelTable, TablePosterior, Told
from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.mcmc import Draws
from dxdt.ops.autodiff import Exact, Trace, value_and_traces

__all__ = ["DataPosterior", "ResidualPosterior", "ScorePosterior", "level_slope"]


@final
@dataclass(frozen=True, eq=False)
class _Probes:
    """Random signs for each chain and step, named by `draws`."""

    draws: Draws
    count: int

    def directions(self, y: Tensor) -> Tensor:
        return torch.stack([self.draws.sign(y, number) for number in range(self.count)])

    def combine(self, products: Tensor) -> Tensor:
        return products.transpose(0, 1)


def _trace(probes: int, draws: Draws) -> Trace:
    return _Probes(draws, probes) if probes else Exact()


def _noise_and_divergence(space: ProductSpace, x: Tensor, level: Tensor, trace: Trace) -> tuple[Tensor, Tensor, int]:
    """|eps|^2 and sigma div eps (chains,), and the evaluations: a product with the derivative counts as one."""
    directions = trace.directions(x)
    eps, products = value_and_traces(lambda y: space.answer(y, level).noise, x, directions)
    divergence = trace.combine(products).double().mean(-1)
    return eps.double().square().flatten(1).sum(1), level.double() * divergence, 1 + len(directions)


def level_slope(
    space: ProductSpace, x: Float[Tensor, "chains *shape"], level: Float[Tensor, " chains"], trace: Trace
) -> Float[Tensor, " chains"]:
    """Return d log p_sigma(x) / d log sigma, float64: one evaluation, and one product with its derivative a probe."""
    square, divergence, _ = _noise_and_divergence(space, x, level, trace)
    return square - divergence


@final
@dataclass(frozen=True)
class ScorePosterior(TablePosterior):
    """p(sigma | x) by integrating the slope of log p_sigma(x) along a table of levels.

    A first table covers the levels of the prior; a second, finer one lies around each chain's mode, where the posterior
    is as narrow as 1 / sqrt(2 D).

    Args:
        nodes: of the first table.
        fine: nodes around the mode, within a spacing of the first table on either side; 0 for none.
        probes: random directions of the divergence, fresh ones for each chain and step; 0 for the exact one.

    Raises:
        ValueError: there are fewer than two nodes, or a negative number of fine ones.
    """

    nodes: int = 32
    fine: int = 16
    probes: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.fine < 0 or self.probes < 0:
            raise ValueError(
                f"ScorePosterior: nodes={self.nodes}, fine={self.fine}, probes={self.probes} are no table; give at "
                "least 2 nodes, and 0 or more of the others."
            )

    def table(self, space: ProductSpace, state: LevelState, draws: Draws) -> LevelTable:
        """Return the integral over both tables: an evaluation a node, and as many products as probes."""
        x, prior, trace = state.x, space.prior, _trace(self.probes, draws)

        def slopes_at(levels: Tensor) -> Tensor:
            return torch.stack([level_slope(space, x, column, trace) for column in levels.unbind(1)], 1)

        nodes = prior.nodes(self.nodes).to(x.device).expand(len(x), -1)
        slopes = slopes_at(nodes)
        if self.fine and prior.levels is None:
            first = _integrated(nodes.log(), slopes) + prior.log_prob(nodes)
            gap = math.log(prior.high / prior.low) / (self.nodes - 1)
            mode = nodes.gather(1, first.argmax(1, keepdim=True)).log()
            # Inside the spacing, and off the nodes of the first table.
            steps = torch.linspace(-1, 1, self.fine + 2, dtype=torch.float64, device=x.device)[1:-1]
            near = (mode + gap * steps).clamp(math.log(prior.low), math.log(prior.high)).exp()
            slopes = torch.cat((slopes, slopes_at(near)), 1)
            nodes, order = torch.cat((nodes, near), 1).sort(1)
            slopes = slopes.gather(1, order)
        log_prob = _integrated(nodes.log(), slopes) + prior.log_prob(nodes)
        evaluations = nodes.shape[1] * (1 + (self.probes or x[0].numel()))
        return LevelTable(nodes, log_prob, prior.levels is not None, evaluations)


def _integrated(u: Tensor, slopes: Tensor) -> Tensor:
    area = 0.5 * (slopes[:, 1:] + slopes[:, :-1]) * u.diff(dim=1)
    return torch.cat((area.new_zeros(len(area), 1), area.cumsum(1)), 1)


@final
@dataclass(frozen=True)
class ResidualPosterior(LevelPosterior):
    """The level at which the residual is as long as noise should be, a fixed point sought from the state's level.

        sigma = |x - E[x_0 | x, sigma]| / sqrt(D - tr J),        J = d E[x_0 | x, sigma] / dx

    where the slope of log p_sigma(x) is zero. Draws are normal in log sigma with the variance 1 / (2 (D - tr J)).

    Args:
        iterations: evaluations.
        probes: random directions of D - tr J, a product with the derivative each; 0 for the exact one. None leaves tr J
            out, which makes levels too low by tr J / (2 D): in chains this adds up sweep by sweep.

    Raises:
        ValueError: there is no iteration.
    """

    iterations: int = 1
    probes: int | None = 1

    def __post_init__(self) -> None:
        if self.iterations < 1 or (self.probes or 0) < 0:
            raise ValueError(
                f"ResidualPosterior: iterations={self.iterations} and probes={self.probes} find nothing; give at least "
                "one iteration, and 0 or more probes."
            )

    def _found(self, space: ProductSpace, state: LevelState, draws: Draws) -> tuple[Tensor, Tensor, int]:
        """The fixed point, the effective dimension there, and the evaluations."""
        x, level, evaluations = state.x, state.level, 0
        size = torch.full_like(level, float(x[0].numel()))
        for number in range(self.iterations):
            if self.probes is None:
                square, asked = space.answer(x, level).noise.double().flatten(1).square().sum(1), 1
            else:
                trace = _trace(self.probes, draws.part(number))
                square, free, asked = _noise_and_divergence(space, x, level, trace)
                size = free.clamp(min=1.0)
            evaluations += asked
            level = (level * (square / size).sqrt()).clamp(space.prior.low, space.prior.high)
        return level, size, evaluations

    def mode(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        level, _, evaluations = self._found(space, state, draws)
        return Told(level, evaluations)

    def draw(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        level, size, evaluations = self._found(space, state, draws)
        level = level * (torch.special.ndtri(draws.uniform()) / (2 * size).sqrt()).exp()
        return Told(level.clamp(space.prior.low, space.prior.high), evaluations)


@final
@dataclass(frozen=True, eq=False)
class DataPosterior(LevelPosterior):
    """The law of sigma given x and its clean data x_0.

        r^2 / sigma^2 ~ chi-squared with D degrees of freedom,    r = |x - x_0|,

    cut off at the ends of the prior, where p(sigma) is even in log sigma.

    Args:
        data: x_0, shaped like x.
        power: k of a prior proportional to sigma^-k; the degrees of freedom are D + k - 1.

    Raises:
        ValueError: on drawing, the data have another shape.
    """

    data: Tensor
    power: float = 1.0

    def _half(self, space: ProductSpace, state: LevelState) -> tuple[Tensor, Tensor, Tensor]:
        """Half the degrees of freedom, and r^2 / (2 sigma^2) at the ends of the prior."""
        if self.data.shape != state.x.shape:
            raise ValueError(
                f"DataPosterior: data of shape {tuple(self.data.shape)} do not belong to chains of shape "
                f"{tuple(state.x.shape)}; give clean data for each chain."
            )
        half = 0.5 * (state.x - self.data).double().flatten(1).square().sum(1)
        freedom = torch.full_like(half, 0.5 * (state.x[0].numel() + self.power - 1))
        return freedom, half / space.prior.high**2, half / space.prior.low**2

    def mode(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        freedom, _, _ = self._half(space, state)
        half = 0.5 * (state.x - self.data).double().flatten(1).square().sum(1)
        return Told((half / freedom).sqrt().clamp(space.prior.low, space.prior.high))

    def draw(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        freedom, least, most = self._half(space, state)
        below, above = (torch.special.gammainc(freedom, v) for v in (least, most))
        mark = below + draws.uniform() * (above - below)
        low, high = least.log(), most.log()
        # The distribution function rises in log v: halve the interval until float64 ends it.
        for _ in range(60):
            middle = 0.5 * (low + high)
            left = torch.special.gammainc(freedom, middle.exp()) < mark
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        ratio = (least.log() - 0.5 * (low + high)) / 2
        return Told((space.prior.high * ratio.exp()).clamp(space.prior.low, space.prior.high))
