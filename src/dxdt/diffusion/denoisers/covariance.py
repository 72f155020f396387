"""What a denoiser knows about its own error: the covariance of x_0 given x_t.

    Cov[x_0 | x_t] = (c^2 / a) dD/dx(x_t)

for the exact denoiser D(x) = E[x_0 | x_t = x], by differentiating Tweedie's formula once more.

Source: Efron, "Tweedie's formula and selection bias" (2011), scaled; Meng et al., "Estimating
high order gradients of the data distribution by denoising" (2021).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops.autodiff import Exact, jvp

__all__ = ["covariance_product", "posterior_covariance"]


def covariance_product(
    denoiser: Any,
    x: Float[Tensor, "batch *shape"],
    t: Tensor,
    v: Float[Tensor, "batch *shape"],
    mu: Tensor | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Return Cov[x_0 | x_t = x] v for every sample, by one forward derivative of the denoiser.

    Args:
        denoiser: any denoiser whose samples do not mix within a batch.
        x, t, mu: as for the denoiser.
        v: one direction for each sample.
    """
    at = denoiser.process.moments(t, x)
    _, slope = jvp(lambda y: denoiser(y, t, mu).data, x, v)
    return at.c.square() / at.a * slope


def posterior_covariance(
    denoiser: Any, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
) -> Float[Tensor, "batch n n"]:
    """Return Cov[x_0 | x_t = x] over the n flattened entries, by n forward derivatives.

    The matrix of a network is not exactly symmetric; half its difference from its transpose is a
    measure of how far it is from being a posterior mean at all.
    """
    columns = [covariance_product(denoiser, x, t, v, mu).flatten(1) for v in Exact().directions(x)]
    return torch.stack(columns, dim=2)
