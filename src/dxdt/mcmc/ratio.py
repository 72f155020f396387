"""How the logarithm of a ratio of densities is known: from the densities, or from the score alone.

    log p(y) - log p(x) = int_0^1 score(x + u (y - x)) . (y - x) du

Source: Sjoberg, Lindqvist, Schon, "MCMC-correction of score-based diffusion models for model composition" (2023).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dxdt.mcmc.kernel import dot
from dxdt.mcmc.target import Local, Target

__all__ = ["Energy", "LineIntegral", "Ratio"]


class Ratio(ABC):
    """A rule for log p(end) - log p(start)."""

    @abstractmethod
    def __call__(self, target: Target, places: Sequence[tuple[Tensor, Local]]) -> tuple[Float[Tensor, " chains"], int]:
        """Return the logarithm of the ratio along a path of places, and the evaluations it took."""


@final
@dataclass(frozen=True)
class Energy(Ratio):
    """The difference of the log densities at both ends.

    Raises:
        ValueError: on calling, if the target knows its score only.
    """

    def __call__(self, target: Target, places: Sequence[tuple[Tensor, Local]]) -> tuple[Float[Tensor, " chains"], int]:
        """Return log p(end) - log p(start), at no evaluation."""
        start, end = places[0][1].log_prob, places[-1][1].log_prob
        if start is None or end is None:
            raise ValueError(
                "Energy: the target gives a score but no log density; give ratio=LineIntegral(), which integrates "
                "the score along the proposal, or a target with log_prob."
            )
        return end.double() - start.double(), 0


@cache
def _lobatto(inner: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Inner nodes in (0, 1), and the weights of all nodes with both ends, by Gauss and Lobatto."""
    n = inner + 2
    legendre = np.polynomial.Legendre.basis(n - 1)
    inside = np.sort(legendre.deriv().roots().real)
    nodes = np.concatenate(([-1.0], inside, [1.0]))
    weights = 2 / (n * (n - 1) * legendre(nodes) ** 2)
    return tuple(0.5 * (1 + inside)), tuple(0.5 * weights)


@final
@dataclass(frozen=True)
class LineIntegral(Ratio):
    """The integral of the score along the straight pieces of a proposal, by the rule of Gauss and Lobatto.

    Without inner nodes it is the trapezoid, whose scores are known already: no evaluation, an error of the third
    order in the step, and none where the target is normal. One inner node makes it Simpson's rule.

    Args:
        inner: nodes inside each piece, an evaluation each.

    Raises:
        ValueError: `inner` is negative.
    """

    inner: int = 0

    def __post_init__(self) -> None:
        if self.inner < 0:
            raise ValueError(f"LineIntegral: inner={self.inner} nodes are no rule; give 0 (trapezoid) or more.")

    def __call__(self, target: Target, places: Sequence[tuple[Tensor, Local]]) -> tuple[Float[Tensor, " chains"], int]:
        """Return the sum of the integrals over the pieces, and the evaluations inside them."""
        nodes, weights = _lobatto(self.inner)
        total, evaluations = 0.0, 0
        for (x, here), (y, there) in zip(places[:-1], places[1:], strict=True):
            way = y - x
            pull = weights[0] * here.score + weights[-1] * there.score
            for u, w in zip(nodes, weights[1:-1], strict=True):
                pull = pull + w * target(x + u * way).score
                evaluations += 1
            total = total + dot(pull, way)
        assert isinstance(total, Tensor)
        return total, evaluations
