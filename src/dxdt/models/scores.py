"""Energy score and energy distance: how well samples fit values whose law is not known.

    ES(X, y) = E|X - y| - 1/2 E|X - X'|,        D(X, Y) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

The score is smallest, on average over y, where X has the law of y, and only there: minimised over a
model that is sampled, it fits a law without a density and without a second network.

Sources: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102
(2007); Szekely and Rizzo, "Energy statistics", J. Stat. Plan. Inference 143 (2013).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["energy_distance", "energy_score"]


def energy_score(samples: Float[Tensor, "k *batch n"], value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Unbiased energy score of each value under k >= 2 samples of its predictive law.

    Its expectation over samples and values is strictly proper for laws with a finite mean.

    Raises:
        ValueError: fewer than two samples, or shapes that differ.
    """
    k = samples.shape[0]
    if k < 2 or samples.shape[1:] != value.shape:
        raise ValueError(
            f"energy_score: samples of shape {tuple(samples.shape)} for values of shape {tuple(value.shape)}; "
            "give at least two samples along a first axis of their own"
        )
    first, second = torch.triu_indices(k, k, 1, device=samples.device)
    apart = _norm(samples[first] - samples[second]).mean(0)
    return _norm(samples - value).mean(0) - 0.5 * apart


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Energy distance of two samples, unbiased: zero on average where their laws agree, else above.

    Raises:
        ValueError: fewer than two points in either, or lengths that differ.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"energy_distance: shapes {tuple(x.shape)} and {tuple(y.shape)} are not two samples of one length; "
            "give (n, d) and (m, d) with at least two points each"
        )

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return 2 * torch.cdist(x, y).mean() - within(x) - within(y)


def _norm(x: Tensor) -> Tensor:
    # The root has no derivative at zero, where samples of a law without spread lie.
    square = x.square().sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
