"""A classifier of noise levels, its posterior, and its loss.

Source: Kim and Ye (2023), whose classifier sees x itself; here its size is divided out, since |x| reaches hundreds
where levels are high, and told beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dxdt.diffusion.chains.level_posterior import LevelTable, TablePosterior
from dxdt.diffusion.chains.levels import DiscreteLevels
from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.diffusion.processes.process import along
from dxdt.mcmc import Draws

__all__ = ["ClassifierPosterior", "LevelClassifier"]


@final
class LevelClassifier(nn.Module):
    """A network with an answer for each of some levels.

        logits = net(x / r, log r),        r = sqrt(1 + |x|^2 / D)

    Args:
        net: called as net(scaled, log_size), or net(scaled) where `told` is false; answers (batch, levels).
        levels: of the classes, with the weights of the training examples.
        scaled: whether r is divided out; without it the network sees x, as published.
        told: whether the network is told log r, (batch,).

    Raises:
        ValueError: on calling, the network answers with another number of levels.
    """

    def __init__(self, net: nn.Module, levels: DiscreteLevels, *, scaled: bool = True, told: bool = True) -> None:
        super().__init__()
        self.net, self.levels, self.scaled, self.told = net, levels, scaled, told

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch levels"]:
        """Return log p(level | x), up to a constant."""
        size = (1 + x.flatten(1).square().mean(1)).sqrt()
        y = x / along(size, x) if self.scaled else x
        logits = self.net(y, size.log()) if self.told else self.net(y)
        if logits.shape != (len(x), len(self.levels.values)):
            raise ValueError(
                f"LevelClassifier: the network answered with shape {tuple(logits.shape)} for "
                f"{len(self.levels.values)} levels; give it one output for each."
            )
        return logits

    def loss(self, x0: Float[Tensor, "batch *shape"], generator: torch.Generator) -> Tensor:
        """Return the mean cross entropy of levels drawn for data `x0`, noised on the way.

        At its least the network answers with the exact posterior under the levels' weights.
        """
        u = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        level = self.levels.icdf(u).to(x0.device)
        label = torch.searchsorted(self.levels.levels.to(x0.device), level * (1 + 1e-9), right=True) - 1
        z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        return functional.cross_entropy(self(x0 + along(level, x0) * z), label)


@final
@dataclass(frozen=True, eq=False)
class ClassifierPosterior(TablePosterior):
    """p(sigma | x) as a classifier has it, with its own prior exchanged for the space's.

    Args:
        classifier: trained; levels that the prior leaves out are left out.

    Raises:
        ValueError: on drawing, fewer than two of its levels are inside the prior's.
    """

    classifier: LevelClassifier

    def table(self, space: ProductSpace, state: LevelState, draws: Draws) -> LevelTable:
        """Return logits less the log weights of the training, plus the log prior: one call of the classifier."""
        own, prior = self.classifier.levels, space.prior
        levels = own.levels.to(state.x.device)
        inside = (levels >= prior.low * (1 - 1e-9)) & (levels <= prior.high * (1 + 1e-9))
        if int(inside.sum()) < 2:
            raise ValueError(
                f"ClassifierPosterior: a classifier of levels {own.low:g} to {own.high:g} says nothing of those of the "
                f"prior, {prior.low:g} to {prior.high:g}; train one on these levels."
            )
        with torch.no_grad():
            logits = self.classifier(state.x).double()
        log_prob = logits - own.log_prob(levels) + prior.log_prob(levels)
        return LevelTable(levels[inside], log_prob[:, inside], True, calls=1)
