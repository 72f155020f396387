"""The exact denoiser of a mixture of round normal laws, by products of matrices.

    x_0 ~ sum_k w_k N(m_k, s_k^2 I),    x_t | k ~ N(a m_k + b mu, v_k I),    v_k = a^2 s_k^2 + c^2

All that x_t says is in its distances from the K centres, so that an answer costs K D operations a sample, and the
density at many times no more than at one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.denoisers.posterior import Place, Posterior
from dxdt.diffusion.processes.process import Process

__all__ = ["RoundMixture"]


@final
@dataclass(frozen=True, eq=False)
class RoundMixture:
    """The exact denoiser of a mixture whose components are as wide in all directions.

    Args:
        process: any diffusion.
        weights: (K,), positive, in any unit.
        means: (K, *shape).
        stds: (K,).

    Raises:
        ValueError: shapes do not belong together, or a weight or a width is not positive.
    """

    process: Process
    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k *shape"]
    stds: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        k = len(self.means)
        if self.weights.shape != (k,) or self.stds.shape != (k,) or self.means.ndim < 2:
            raise ValueError(
                f"RoundMixture: weights {tuple(self.weights.shape)}, means {tuple(self.means.shape)} and stds "
                f"{tuple(self.stds.shape)} do not belong together; give (K,), (K, *shape) and (K,)."
            )
        if not bool((self.weights > 0).all() and (self.stds > 0).all()):
            raise ValueError("RoundMixture: a weight or a width is not positive; leave such components out.")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def _squares(self, xi: Float[Tensor, "batch n"], a: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch k"]:
        """|xi - a m_k|^2, around the mean of the centres, where little cancels."""
        means = self.means.flatten(1).to(xi)
        middle = means.mean(0)
        xi, means = xi - a * middle, means - middle
        cross = a.square() * means.square().sum(1) - 2 * a * (xi @ means.T)
        return (xi.square().sum(1, keepdim=True) + cross).clamp(min=0)

    def _joint(self, squares: Tensor, a: Tensor, c: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """log w_k p(x_t | k) and v_k for a and c (..., 1)."""
        variance = (a * self.stds.to(squares)).square() + c.square()
        each = -0.5 * (squares / variance + size * (2 * math.pi * variance).log())
        return self.weights.to(squares).log() + each, variance

    def _known(self, x: Tensor, t: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        place = Place.of(self.process, t, x, mu)
        xi = place.xi.flatten(1)
        a, c = (w.reshape(-1, 1) for w in (place.at.a, place.at.c))
        joint, variance = self._joint(self._squares(xi, a), a, c, xi.shape[1])
        return xi, a, c, joint, variance

    def log_prob(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the exact log p_t(x)."""
        return self._known(x, t, mu)[3].logsumexp(1)

    def log_probs(
        self, x: Float[Tensor, "batch *shape"], levels: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch levels"]:
        """Return log p of x_t / a (less b mu) at `x` for each ratio c / a, which is all that a process can change."""
        flat, level = x.flatten(1).double(), levels.double().to(x.device)[:, None]
        one = torch.ones_like(level)
        squares = self._squares(flat, torch.ones_like(flat[:, :1]))[:, None]
        return self._joint(squares, one, level, flat.shape[1])[0].logsumexp(2)

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return the exact posterior means of x_0 and eps."""
        xi, a, c, joint, variance = self._known(x, t, mu)
        pull = joint.softmax(1) / variance
        means = self.means.flatten(1).to(xi)
        # xi - a m_k over v_k, mixed: noise = c sum share (xi - a m) / v.
        noise = c * (pull.sum(1, keepdim=True) * xi - a * (pull @ means))
        s2 = self.stds.to(xi).square()
        data = (pull * c.square()) @ means + a * (pull * s2).sum(1, keepdim=True) * xi
        return Posterior(self.process, t, x, data.reshape(x.shape), noise.reshape(x.shape), mu)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count *shape"]:
        """Return draws of x_0."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, *self.means.shape[1:], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k].reshape(-1, *(1,) * (z.ndim - 1)) * z

    def draw(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, u: Float[Tensor, " batch"], z: Tensor
    ) -> Float[Tensor, "batch *shape"]:
        """Return draws of x_0 given x_t = `x`, made from uniforms `u` and normals `z` like `x`."""
        xi, a, c, joint, _ = self._known(x, t, None)
        mass = joint.double().softmax(1).cumsum(1)
        k = (mass < u[:, None] * mass[:, -1:]).sum(1)
        s2 = self.stds.to(xi)[k, None].square()
        variance = a.square() * s2 + c.square()
        mean = (c.square() * self.means.flatten(1).to(xi)[k] + a * s2 * xi) / variance
        std = (s2 * c.square() / variance).sqrt()
        return (mean + std * z.flatten(1)).reshape(x.shape)

    def occupancy(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " k"]:
        """Return the share of clean data that is nearest to each centre."""
        nearest = self.nearest(x)
        return torch.bincount(nearest, minlength=len(self.means)).double() / len(nearest)

    def nearest(self, x: Float[Tensor, "batch *shape"]) -> Tensor:
        """Return the number of the centre that is nearest to clean data, in units of the widths' mean."""
        flat = x.flatten(1).double()
        return self._squares(flat, torch.ones_like(flat[:, :1])).argmin(1)
