"""What x says of its own noise level: laws p(sigma | x), proportional to p_sigma(x) p(sigma).

A table holds log densities with respect to log sigma at nodes; between nodes they are taken to be linear in log sigma,
so that draws are exact for the table, and continuous.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.mcmc import Draws

__all__ = ["DensityPosterior", "LevelPosterior", "LevelTable", "Told"]


class Told(NamedTuple):
    """Levels, and what they took.

    Attributes:
        level: (chains,), float64.
        evaluations: calls of the denoiser.
        calls: calls of another network.
    """

    level: Tensor
    evaluations: int = 0
    calls: int = 0


class LevelPosterior(ABC):
    """A rule for the level given x. What it says of x may begin a search at the state's level, and nothing else."""

    @abstractmethod
    def draw(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        """Return a draw of sigma given x."""

    @abstractmethod
    def mode(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        """Return the most probable sigma given x; `draws` for measures that are random."""


@final
@dataclass(frozen=True, eq=False)
class LevelTable:
    """Log densities of log sigma at nodes.

    Attributes:
        nodes: levels, rising, (nodes,) or (chains, nodes).
        log_prob: (chains, nodes), up to a constant of each chain.
        discrete: whether sigma is one of the nodes.
        evaluations, calls: that the table took.
    """

    nodes: Tensor
    log_prob: Tensor
    discrete: bool = False
    evaluations: int = 0
    calls: int = 0

    def _told(self, level: Tensor) -> Told:
        return Told(level, self.evaluations, self.calls)

    @property
    def _rows(self) -> Tensor:
        return self.nodes.expand(self.log_prob.shape)

    def _pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        """The length in log sigma of each piece, how log p rises along it, and the mass below each node."""
        u = self._rows.log()
        length, rise = u.diff(dim=1), self.log_prob.diff(dim=1)
        # From the higher end of each piece, which never overflows.
        top = torch.maximum(self.log_prob[:, :-1], self.log_prob[:, 1:]) - self.log_prob.amax(1, keepdim=True)
        mass = length * top.exp() * _mean_exp(-rise.abs())
        return length, rise, torch.cat((mass.new_zeros(len(mass), 1), mass.cumsum(1)), 1)

    def draw(self, u: Float[Tensor, " chains"]) -> Told:
        """Return the quantiles of uniforms `u`."""
        if self.discrete:
            total = self.log_prob.softmax(1).cumsum(1)
            index = torch.searchsorted(total, (u * total[:, -1])[:, None]).clamp(max=total.shape[1] - 1)
            return self._told(self._rows.gather(1, index)[:, 0])
        length, rise, total = self._pieces()
        mark = (u * total[:, -1])[:, None]
        index = (torch.searchsorted(total, mark, right=True) - 1).clamp(0, rise.shape[1] - 1)
        below, above = total.gather(1, index), total.gather(1, index + 1)
        part = ((mark - below) / (above - below)).clamp(0, 1)
        r = rise.gather(1, index)
        # The quantile of a density exp(r v) on [0, 1], again from its higher end.
        size = r.abs().clamp(min=1e-12)
        share = torch.where(r > 0, 1 - part, part)
        down = -torch.log1p(share * torch.expm1(-size)) / size
        v = torch.where(size < 1e-9, part, torch.where(r > 0, 1 - down, down)).clamp(0, 1)
        begin = self._rows.log().gather(1, index)
        return self._told((begin + v * length.gather(1, index)).exp()[:, 0])

    def mode(self) -> Told:
        """Return the node of the largest density."""
        index = self.log_prob.argmax(1, keepdim=True)
        return self._told(self._rows.gather(1, index)[:, 0])

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of log sigma, by the rule of trapezes over the nodes."""
        u = self._rows.log()
        weight = (self.log_prob - self.log_prob.amax(1, keepdim=True)).exp()
        if not self.discrete:
            gap = torch.cat((u.diff(dim=1)[:, :1], u.diff(dim=1)), 1) + torch.cat(
                (u.diff(dim=1), u.diff(dim=1)[:, -1:]), 1
            )
            gap[:, 0], gap[:, -1] = gap[:, 0] / 2, gap[:, -1] / 2
            weight = weight * gap
        weight = weight / weight.sum(1, keepdim=True)
        mean = (weight * u).sum(1)
        return mean, (weight * (u - mean[:, None]).square()).sum(1).sqrt()


def _mean_exp(r: Tensor) -> Tensor:
    """The mean of exp(r v) over v in [0, 1]."""
    safe = torch.where(r.abs() < 1e-6, 1.0, r)
    return torch.where(r.abs() < 1e-6, 1 + 0.5 * r, torch.expm1(safe) / safe)


class TablePosterior(LevelPosterior):
    """Base of the posteriors that fill a table."""

    @abstractmethod
    def table(self, space: ProductSpace, state: LevelState, draws: Draws) -> LevelTable:
        """Return log p(sigma | x) of each chain."""

    def draw(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        return self.table(space, state, draws.part(0)).draw(draws.uniform())

    def mode(self, space: ProductSpace, state: LevelState, draws: Draws) -> Told:
        return self.table(space, state, draws.part(0)).mode()


@final
@dataclass(frozen=True)
class DensityPosterior(TablePosterior):
    """The exact posterior of a denoiser that knows its density, such as a mixture.

    Args:
        nodes: of the table, even in log sigma; the levels of the prior where these are discrete.

    Raises:
        ValueError: there are fewer than two nodes; on drawing, the denoiser knows no density.
    """

    nodes: int = 400

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ValueError(f"DensityPosterior: nodes={self.nodes} are no table; give at least 2.")

    def table(self, space: ProductSpace, state: LevelState, draws: Draws) -> LevelTable:
        """Return log p_sigma(x) + log p(sigma) at the nodes; at no evaluation of the score."""
        nodes = space.prior.nodes(self.nodes).to(state.x.device)
        at_once = getattr(space.denoiser, "log_probs", None)
        if at_once is not None and space.mu is None:
            known = at_once(state.x, nodes)
        else:
            known = torch.stack([space.log_prob(state.x, level.expand(len(state.x))) for level in nodes], 1)
        log_prob = known.double() + space.prior.log_prob(nodes)
        return LevelTable(nodes, log_prob, space.prior.levels is not None)
