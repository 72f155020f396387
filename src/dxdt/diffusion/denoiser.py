"""Denoisers: anything that answers E[x_0 | x_t], and the five ways of saying the same answer.

At x_t = a x_0 + b mu + c eps, with xi = x_t - b mu, one number per entry fixes them all:

    data x0,    noise eps = (xi - a x0) / c,    score s = -eps / c,
    velocity dx_t/dt = a' x0 + b' mu + c' eps,    angular velocity v = a eps - c x0.

A network may answer in any of these; a small object (`Noise`, `Data`, ...) says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion.process import Moments, Process, Rates


@final
@dataclass(frozen=True)
class Posterior:
    """What a denoiser knows about x_0 after seeing x_t.

    Attributes:
        process, t: where it looked.
        x: x_t.
        data: E[x_0 | x_t].
        noise: E[eps | x_t].
        mu: mean of the process, or None for zero.
    """

    process: Process
    t: Tensor
    x: Tensor
    data: Tensor
    noise: Tensor
    mu: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -noise / c (Tweedie)."""
        return -self.noise / self.process.moments(self.t, self.x).c

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt of the probability flow: a' data + b' mu + c' noise."""
        return self.flow(self.process.rates(self.t, self.x))

    @property
    def angular_velocity(self) -> Tensor:
        """a noise - c data, the "v" of variance-preserving models."""
        m = self.process.moments(self.t, self.x)
        return m.a * self.noise - m.c * self.data

    def flow(self, rates: Rates) -> Tensor:
        """Return the velocity for rates that are already at hand."""
        flow = rates.a * self.data + rates.c * self.noise
        return flow if self.mu is None else flow + rates.b * self.mu


class DenoiserLike(Protocol):
    """What the rest of the room asks of a denoiser."""

    @property
    def process(self) -> Process:
        """The diffusion whose x_t it reads."""
        ...

    def __call__(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return what is known about x_0 given x_t = `x`."""
        ...


class Parameterisation(Protocol):
    """How a network's output is read: from it and x_t to (data, noise)."""

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return (data, noise) for the output at xi = x_t - b mu."""
        ...


@final
@dataclass(frozen=True)
class Noise:
    """The network answers eps."""

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return data = (xi - c eps) / a and noise = eps."""
        return (xi - at.c * output) / at.a, output


@final
@dataclass(frozen=True)
class Data:
    """The network answers x_0."""

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return data = x0 and noise = (xi - a x0) / c."""
        return output, (xi - at.a * output) / at.c


@final
@dataclass(frozen=True)
class Score:
    """The network answers s = grad log p_t(x_t)."""

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return data = (xi + c^2 s) / a and noise = -c s."""
        eps = -at.c * output
        return (xi - at.c * eps) / at.a, eps


@final
@dataclass(frozen=True)
class Velocity:
    """The network answers dx_t/dt = a' x0 + b' mu + c' eps."""

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the solution (x0, eps) of the two linear equations for xi and the velocity."""
        r = rates()
        v = output if mu is None else output - r.b * mu
        wronskian = at.a * r.c - r.a * at.c
        return (r.c * xi - at.c * v) / wronskian, (at.a * v - r.a * xi) / wronskian


@final
@dataclass(frozen=True)
class AngularVelocity:
    """The network answers v = a eps - c x0.

    Source: Salimans and Ho, "Progressive distillation" (2022), section 4, for a^2 + c^2 = 1.
    """

    def read(
        self, output: Tensor, xi: Tensor, at: Moments, rates: Callable[[], Rates], mu: Any
    ) -> tuple[Tensor, Tensor]:
        """Return data = (a xi - c v) / (a^2 + c^2) and noise = (c xi + a v) / (a^2 + c^2)."""
        norm = at.a.square() + at.c.square()
        return (at.a * xi - at.c * output) / norm, (at.c * xi + at.a * output) / norm


class Clock(Protocol):
    """What number a network is told about the time."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return the network's time input for times `t` (float64), elementwise."""
        ...


def log_snr(process: Process, t: Tensor) -> Tensor:
    """Tell the network lam = log(a / c), which resolves early times on their own scale."""
    return process.lam(t)


@final
@dataclass(frozen=True)
class Index:
    """Tell the network `scale` times t (999 for networks of the score-SDE line)."""

    scale: float = 999.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return scale t."""
        return self.scale * t


@final
class Denoiser(nn.Module):
    """A network wrapped so that it answers E[x_0 | x_t].

    Args:
        net: called as net(x_t, clock) or, with a mean, net(x_t, clock, mu); any module or
            function whose result has the shape of x_t.
        process: the diffusion it was, or will be, trained on.
        parameterisation: what the network answers; noise by default.
        clock: what it is told about the time; the half log signal-to-noise ratio by default.

    Raises:
        ValueError: the network's answer has another shape than x_t.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process,
        parameterisation: Parameterisation | None = None,
        clock: Clock = log_snr,
    ) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.parameterisation = Noise() if parameterisation is None else parameterisation
        self.clock = clock

    def forward(self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return what is known about x_0 given `x` at times `t` () or (batch,)."""
        at = self.process.moments(t, x)
        told = self.clock(self.process, t.double()).to(x.dtype)
        output = self.net(x, told) if mu is None else self.net(x, told, mu)
        if output.shape != x.shape:
            raise ValueError(
                f"Denoiser: the network answered with shape {tuple(output.shape)} to x_t of shape "
                f"{tuple(x.shape)}; give it as many output channels as input channels."
            )
        xi = x if mu is None else x - at.b * mu
        data, noise = self.parameterisation.read(output, xi, at, lambda: self.process.rates(t, x), mu)
        return Posterior(self.process, t, x, data, noise, mu)


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


def gaussian_oracle(process: Process, mean: Tensor, std: Tensor) -> MixtureOracle:
    """Return the exact denoiser for x_0 ~ N(mean, std^2), entries independent.

    Args:
        process: any diffusion.
        mean, std: (*shape).
    """
    mean, std = torch.broadcast_tensors(mean, std)
    return MixtureOracle(process, torch.ones_like(mean.flatten()[:1]), mean[None], std[None])
