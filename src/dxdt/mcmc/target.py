"""Targets: what a kernel asks of the law that it leaves invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Density", "Local", "Score", "Target"]


class Local(NamedTuple):
    """What is known of a law at the places of all chains.

    Attributes:
        score: grad log p(x), (chains, *shape).
        log_prob: log p(x) up to a constant, (chains,), or None where only the score is known.
    """

    score: Tensor
    log_prob: Tensor | None


class Target(Protocol):
    """A law on (*shape), asked at the places of all chains at once; chains do not see each other."""

    def __call__(self, x: Float[Tensor, "chains *shape"]) -> Local:
        """Return score and, where it is known, log density at `x`: one evaluation."""
        ...


def _check(name: str, what: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(
            f"{name}: {what} of shape {tuple(value.shape)} does not belong to these chains; return {tuple(shape)}."
        )


@final
@dataclass(frozen=True, eq=False)
class Density:
    """A target given by its log density; the score is its derivative by autograd.

    Args:
        log_prob: from (chains, *shape) to (chains,), up to a constant, differentiable, row by row.

    Raises:
        ValueError: on calling, if the answer has another shape.
    """

    log_prob: Callable[[Tensor], Tensor]

    def __call__(self, x: Float[Tensor, "chains *shape"]) -> Local:
        """Return log p and its gradient at `x`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.log_prob(x)
            _check("Density", "a log density", value, x.shape[:1])
            (score,) = torch.autograd.grad(value.sum(), x)
        return Local(score, value.detach())


@final
@dataclass(frozen=True, eq=False)
class Score:
    """A target given by its score, and by its log density where that is known without a derivative.

    Args:
        score: grad log p, (chains, *shape) to the same shape.
        log_prob: log p up to a constant, (chains,), or None.

    Raises:
        ValueError: on calling, if an answer has another shape.
    """

    score: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Float[Tensor, "chains *shape"]) -> Local:
        """Return the score at `x`, with log p where it is known."""
        score = self.score(x)
        _check("Score", "a score", score, x.shape)
        if self.log_prob is None:
            return Local(score, None)
        value = self.log_prob(x)
        _check("Score", "a log density", value, x.shape[:1])
        return Local(score, value)
