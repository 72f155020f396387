"""Oracles: exact denoisers of known laws, with their densities, for proofs and tests.

    x_0 ~ N(m, S):   x_t ~ N(a m + b mu, V),   V = a^2 S + c^2 I
    data = m + a S V^{-1} (xi - a m),   noise = c V^{-1} (xi - a m),   Cov[x_0 | x_t] = c^2 S V^{-1}

with xi = x_t - b mu; mixtures weigh their components by what x_t says of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.denoisers.posterior import Place, Posterior
from dxdt.diffusion.processes.process import Moments, Process, check_mean

__all__ = ["GaussianOracle", "JointOracle", "MixtureOracle", "gaussian_oracle"]


@final
@dataclass(frozen=True)
class MixtureOracle:
    """The exact denoiser of a mixture of normal laws, and its exact density at every time.

        x_0 ~ sum_k w_k N(m_k, s_k^2),    x_t | k ~ N(a m_k + b mu, a^2 s_k^2 + c^2)

    Args:
        process: any diffusion.
        weights: (K,), positive, with sum one.
        means: (K, *shape).
        stds: (K, *shape), or anything that broadcasts to it; entries are independent given k.
    """

    process: Process
    weights: Tensor
    means: Tensor
    stds: Tensor

    def _components(self, x: Tensor, t: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Moments]:
        """Return log joint (B, K), deviation and variance (B, K, *shape), and the moments."""
        check_mean(mu, x)
        at = self.process.moments(t, x.unsqueeze(1))
        centre = at.a * self.means
        deviation = x.unsqueeze(1) - centre
        if mu is not None:
            deviation = deviation - at.b * mu.unsqueeze(1)
        variance = (at.a * self.stds).square() + at.c.square()
        variance = variance.expand_as(deviation)
        each = -0.5 * (deviation.square() / variance + (2 * torch.pi * variance).log())
        return self.weights.log() + each.flatten(2).sum(2), deviation, variance, at

    def log_prob(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the exact log p_t(x)."""
        return self._components(x, t, mu)[0].logsumexp(1)

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return the exact posterior means of x_0 and eps."""
        joint, deviation, variance, at = self._components(x, t, mu)
        share = joint.softmax(1).reshape(joint.shape + (1,) * (x.ndim - 1))
        pull = deviation / variance
        data = (share * (self.means + at.a * self.stds.square() * pull)).sum(1)
        noise = (share * at.c * pull).sum(1)
        return Posterior(self.process, t, x, data, noise, mu)

    def posterior_covariance(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, "batch n n"]:
        """Return the exact Cov[x_0 | x_t = x]: the mean of the components' variances, and the variance
        of their means."""
        joint, deviation, variance, at = self._components(x, t, mu)
        share = joint.softmax(1)[..., None]
        s2 = self.stds.square()
        means = (self.means + at.a * s2 * deviation / variance).flatten(2)
        within = (share * (at.c.square() * s2 / variance).flatten(2)).sum(1)
        spread = means - (share * means).sum(1, keepdim=True)
        return torch.diag_embed(within) + torch.einsum("bkz,bki,bkj->bij", share, spread, spread)


def gaussian_oracle(process: Process, mean: Tensor, std: Tensor) -> MixtureOracle:
    """Return the exact denoiser for x_0 ~ N(mean, std^2), entries independent.

    Args:
        process: any diffusion.
        mean, std: (*shape).
    """
    mean, std = torch.broadcast_tensors(mean, std)
    return MixtureOracle(process, torch.ones_like(mean.flatten()[:1]), mean[None], std[None])


def _square(name: str, what: str, matrix: Tensor, n: int) -> None:
    if matrix.shape != (n, n):
        raise ValueError(
            f"{name}: {what} of shape {tuple(matrix.shape)} does not belong to data of {n} entries; "
            f"give a matrix of shape ({n}, {n})."
        )


@final
@dataclass(frozen=True, eq=False)
class GaussianOracle:
    """The exact denoiser for x_0 ~ N(mean, covariance), correlated entries.

    Args:
        process: any diffusion.
        mean: (*shape).
        covariance: (n, n) over the n flattened entries, symmetric and positive semidefinite.

    Raises:
        ValueError: the covariance has another size, or a negative eigenvalue.
    """

    process: Process
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        _square("GaussianOracle", "a covariance", self.covariance, self.mean.numel())
        least = self._spectrum[0].min().item()
        if least < -1e-6 * self.covariance.abs().max().item():
            raise ValueError(
                f"GaussianOracle: a covariance with the eigenvalue {least:g} belongs to no law; "
                "give a symmetric positive semidefinite matrix."
            )

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues (n,) and eigenvectors in columns (n, n)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    def _deviation(self, x: Tensor, t: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor, Moments]:
        """Return U^T (xi - a m) (B, n), eigenvalues of V (B, n), and a, b, c shaped (B, 1)."""
        place = Place.of(self.process, t, x, mu)
        values, vectors = self._basis(x)
        deviation = (place.xi - place.at.a * self.mean.to(x)).flatten(1) @ vectors
        at = self.process.moments(t, deviation)
        return deviation, (at.a.square() * values + at.c.square()).expand_as(deviation), at

    def _basis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spectrum in the dtype and device of `x`."""
        values, vectors = self._spectrum
        return values.to(x), vectors.to(x)

    def _turned(self, z: Tensor, x: Tensor) -> Tensor:
        return (z @ self._basis(x)[1].T).reshape(x.shape)

    def log_prob(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the exact log p_t(x)."""
        z, variance, _ = self._deviation(x, t, mu)
        return -0.5 * (z.square() / variance + variance.log() + math.log(2 * math.pi)).sum(1)

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return the exact posterior means of x_0 and eps."""
        z, variance, at = self._deviation(x, t, mu)
        pull = z / variance
        data = self.mean.to(x) + self._turned(at.a * self._basis(x)[0] * pull, x)
        return Posterior(self.process, t, x, data, self._turned(at.c * pull, x), mu)

    def posterior_covariance(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, "batch n n"]:
        """Return the exact Cov[x_0 | x_t = x] = c^2 S V^{-1}."""
        _, variance, at = self._deviation(x, t, mu)
        values, vectors = self._basis(x)
        share = at.c.square() * values / variance
        return torch.einsum("in,bn,jn->bij", vectors, share, vectors)

    def transport(
        self, x: Float[Tensor, "batch *shape"], s: Tensor, t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Return where the probability flow carries x_s = `x` by time `t`.

        M_t + V_t^{1/2} V_s^{-1/2} (x - M_s), with M = a m + b mu; all V commute.
        """
        z, before, _ = self._deviation(x, s, mu)
        _, after, _ = self._deviation(x, t, mu)
        mean = self.process.mean(self.mean.to(x).expand_as(x), t, mu)
        return mean + self._turned(z * (after / before).sqrt(), x)


@final
@dataclass(frozen=True, eq=False)
class JointOracle:
    """The exact denoiser of a linear restoration: mu = H x_0 + n is given, x_0 ~ N(m, S), n ~ N(0, R).

        x_0 | mu ~ N(m + K (mu - H m), S - K H S),    K = S H^T (H S H^T + R)^{-1}

    Args:
        process: any diffusion, usually one that reverts to mu.
        mean: m (*shape).
        covariance: S (n, n).
        operator: H (n, n).
        noise: R (n, n).

    Raises:
        ValueError: a matrix has another size, or the covariance a negative eigenvalue; on calling, mu
            is missing.
    """

    process: Process
    mean: Tensor
    covariance: Tensor
    operator: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        for what in ("covariance", "operator", "noise"):
            _square("JointOracle", what, getattr(self, what), self.mean.numel())
        _ = self._around

    @cached_property
    def _gain(self) -> Tensor:
        """K."""
        cross = self.covariance @ self.operator.T
        return torch.linalg.solve(self.operator @ cross + self.noise, cross.T).T

    @cached_property
    def _around(self) -> GaussianOracle:
        """The law of x_0 less its mean given mu."""
        left = self.covariance - self._gain @ self.operator @ self.covariance
        return GaussianOracle(self.process, torch.zeros_like(self.mean), 0.5 * (left + left.T))

    def expected(self, mu: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return E[x_0 | mu] = m + K (mu - H m)."""
        seen = mu.flatten(1) - (self.operator @ self.mean.flatten()).to(mu)
        return self.mean.to(mu) + (seen @ self._gain.T.to(mu)).reshape(mu.shape)

    def _shifted(self, x: Tensor, t: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x_t - a E[x_0 | mu], and that expectation."""
        if mu is None:
            raise ValueError("JointOracle: the degraded data are part of the question; pass mu.")
        check_mean(mu, x)
        centre = self.expected(mu)
        return x - self.process.moments(t, x).a * centre, centre

    def log_prob(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the exact log p_t(x | mu)."""
        shifted, _ = self._shifted(x, t, mu)
        return self._around.log_prob(shifted, t, mu)

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return the exact means of x_0 and eps given x_t and mu."""
        shifted, centre = self._shifted(x, t, mu)
        answer = self._around(shifted, t, mu)
        return Posterior(self.process, t, x, answer.data + centre, answer.noise, mu)

    def posterior_covariance(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None
    ) -> Float[Tensor, "batch n n"]:
        """Return the exact Cov[x_0 | x_t = x, mu]."""
        shifted, _ = self._shifted(x, t, mu)
        return self._around.posterior_covariance(shifted, t, mu)
