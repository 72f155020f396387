"""The Levy area of an increment, approximated given what the driver knows.

    A_ij = 1/2 int (W_i dW_j - W_j dW_i) = H_i W_j - W_i H_j + residual,        Var A_ij = h^2/4,

the residual being skew, of mean zero given (W, H), and of variance h^2/12 on average. The Ito
integrals int W_i dW_j are (W_i W_j - h 1{i = j})/2 + A_ij.

References: Davie, "KMT theory applied to approximations of SDE", 2014, https://doi.org/10.1007/978-3-319-11292-3_7;
Foster, "Numerical approximations for stochastic differential equations", thesis, Oxford, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops import random

__all__ = ["Davie", "Foster", "levy_area"]

# Above the nodes of the tree and of the increments, so that one seed serves all three.
_AREAS = 1 << 50


class Residual(Protocol):
    """The conditional variance that an approximation gives to the residual."""

    def variance(self, H: Float[Tensor, "*rows m"], h: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows m m"]:
        """Variance of each entry, for steps of length h >= 0."""
        ...


@final
@dataclass(frozen=True)
class Davie:
    """A residual of variance h^2/12 whatever H is: the right second moments, pair by pair."""

    def variance(self, H: Float[Tensor, "*rows m"], h: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows m m"]:
        """h^2/12 in every entry."""
        m = H.shape[-1]
        return (h * h / 12)[..., None, None].expand(*H.shape[:-1], m, m)


@final
@dataclass(frozen=True)
class Foster:
    """A residual of the true conditional variance, h^2/20 + h/5 (H_i^2 + H_j^2)."""

    def variance(self, H: Float[Tensor, "*rows m"], h: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows m m"]:
        """h^2/20 + h/5 (H_i^2 + H_j^2)."""
        h = h[..., None, None]
        square = H * H
        return h * h / 20 + h / 5 * (square.unsqueeze(-1) + square.unsqueeze(-2))


def levy_area(
    W: Float[Tensor, "rows m"],
    H: Float[Tensor, "rows m"],
    dt: Float[Tensor, "rows"],
    *,
    seed: random.Integers,
    row: random.Integers,
    node: random.Integers,
    kind: Residual | None = None,
) -> Float[Tensor, "rows m m"]:
    """Draw the Levy area over a step given its W and H: skew matrices of shape (rows, m, m).

    A = H W^T - W H^T + sqrt(variance) * (skew standard normals). The area of the reversed step
    (dt < 0, W negated) is the area negated.

    Args:
        W: increments.
        H: space-time Levy areas.
        dt: lengths of the steps.
        seed: the seed of the driver.
        row: absolute ids of the rows.
        node: what tells this step from others, for example its index.
        kind: `Foster()`, the default, or `Davie()`.
    """
    m = W.shape[-1]
    kind = Foster() if kind is None else kind
    dt = dt.to(W.dtype)
    mean = H.unsqueeze(-1) * W.unsqueeze(-2)
    upper = torch.triu_indices(m, m, 1, device=W.device)
    if not isinstance(row, Tensor) and not isinstance(node, Tensor):
        row = torch.as_tensor(row, device=W.device)
    draws: Any = random.normals(seed, row, node + _AREAS, upper.shape[1], dtype=W.dtype)
    scale = torch.sqrt(kind.variance(H, dt.abs())) * torch.sign(dt)[..., None, None]
    half = _place(draws, upper, m)
    return mean - mean.mT + scale * (half - half.mT)


def _place(draws: Tensor, upper: Tensor, m: int) -> Tensor:
    """Upper triangular matrices of the draws."""
    flat = draws.new_zeros((*draws.shape[:-1], m * m))
    return flat.index_copy(-1, upper[0] * m + upper[1], draws).unflatten(-1, (m, m))
