"""What a denoiser is shown, and what it says: one answer with many names.

At x_t = a x0 + b mu + c eps, with xi = x_t - b mu, one number per entry fixes them all:

    data x0,    noise eps = (xi - a x0) / c,    score s = -eps / c,    residual r = x0 - mu,
    velocity dx_t/dt = a' x0 + b' mu + c' eps,
    angular velocity v = L a eps - (c / L) (x0 - mu),

the last without mu for processes that do not revert to it; L is the radius of the process, one for
the variance-preserving. On a circle a^2 + (c / L)^2 = 1 it is dx_t/dphi along the flow, with
a = cos(phi).

Source: Salimans and Ho, "Progressive distillation for fast sampling of diffusion models" (2022),
section 4, for L = 1 without a mean; the rest follows by x_t = mu + L y_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dxdt.diffusion.processes.process import Moments, Process, Rates, check_mean

__all__ = ["Place", "Posterior", "Sight"]


class Sight(NamedTuple):
    """What a denoiser prepares for a time that is known before it looks, all of shape ().

    Attributes:
        at: a, b and c.
        told: what the network is told, in float64, or whole numbers.
        scales: what else it needs, such as the weights of a preconditioning.
    """

    at: Moments
    told: Tensor
    scales: tuple[Tensor, ...] = ()


@final
@dataclass(frozen=True)
class Place:
    """Where a denoiser looks.

    Attributes:
        process, t: the diffusion and the time.
        x: x_t.
        mu: mean of the process, or None for zero.
        at: a, b and c there.
    """

    process: Process
    t: Tensor
    x: Tensor
    mu: Tensor | None
    at: Moments

    @classmethod
    def of(cls, process: Process, t: Tensor, x: Tensor, mu: Tensor | None = None) -> Place:
        """Return the place of `x` at times `t` () or (batch,).

        Raises:
            ValueError: shapes do not match.
        """
        check_mean(mu, x)
        return cls(process, t, x, mu, process.moments(t, x))

    @property
    def xi(self) -> Tensor:
        """x_t - b mu = a x0 + c eps."""
        return self.x if self.mu is None else self.x - self.at.b * self.mu

    @property
    def centre(self) -> Tensor | None:
        """mu where the process reverts to it, None elsewhere."""
        return self.mu if self.process.centred else None

    def rates(self) -> Rates:
        """Return the derivatives of a, b and c there."""
        return self.process.rates(self.t, self.x)

    def from_data(self, data: Tensor) -> Posterior:
        """Return the answer whose data are `data`."""
        return Posterior(self.process, self.t, self.x, data, None, self.mu, self.at)

    def from_noise(self, noise: Tensor) -> Posterior:
        """Return the answer whose noise is `noise`."""
        return Posterior(self.process, self.t, self.x, None, noise, self.mu, self.at)

    def answer(self, data: Tensor, noise: Tensor) -> Posterior:
        """Return the answer (data, noise), which the caller knows to agree."""
        return Posterior(self.process, self.t, self.x, data, noise, self.mu, self.at)


@final
class Posterior:
    """What a denoiser knows about x_0 after seeing x_t.

    Args:
        process, t: where it looked.
        x: x_t.
        data: E[x_0 | x_t], or None where it follows from the noise.
        noise: E[eps | x_t], or None where it follows from the data.
        mu: mean of the process, or None for zero.
        at: a, b and c there, where they are at hand.

    Raises:
        ValueError: neither data nor noise is given.
    """

    def __init__(
        self,
        process: Process,
        t: Tensor,
        x: Tensor,
        data: Tensor | None,
        noise: Tensor | None,
        mu: Tensor | None = None,
        at: Moments | None = None,
    ) -> None:
        if data is None and noise is None:
            raise ValueError("Posterior: nothing is known; give data, noise, or both.")
        self.process, self.t, self.x, self.mu = process, t, x, mu
        self._data, self._noise, self._at = data, noise, at

    def __repr__(self) -> str:
        return f"Posterior({self.process!r}, t={self.t!r}, x of shape {tuple(self.x.shape)})"

    # Formed when they are asked for, and kept: not as cached properties, which a compiler does not see through.

    @property
    def place(self) -> Place:
        """Where it looked, with a, b and c there."""
        if self._at is None:
            self._at = Place.of(self.process, self.t, self.x, self.mu).at
        return Place(self.process, self.t, self.x, self.mu, self._at)

    @property
    def data(self) -> Tensor:
        """E[x_0 | x_t] = (xi - c noise) / a."""
        if self._data is None:
            place = self.place
            self._data = _less(place.xi, place.at.c, self.noise) / place.at.a
        return self._data

    @property
    def noise(self) -> Tensor:
        """E[eps | x_t] = (xi - a data) / c."""
        if self._noise is None:
            place = self.place
            self._noise = _less(place.xi, place.at.a, self.data) / place.at.c
        return self._noise

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -noise / c (Tweedie)."""
        return -self.noise / self.place.at.c

    @property
    def residual(self) -> Tensor:
        """data - mu."""
        return self.data if self.mu is None else self.data - self.mu

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt of the probability flow: a' data + b' mu + c' noise."""
        return self.flow(self.process.rates(self.t, self.x))

    @property
    def angular_velocity(self) -> Tensor:
        """L a noise - (c / L) (data - mu), the "v" of variance-preserving models."""
        m, radius = self.place.at, self.process.radius
        around = self.residual if self.process.centred else self.data
        return radius * m.a * self.noise - m.c / radius * around

    def flow(self, rates: Rates) -> Tensor:
        """Return the velocity for rates that are already at hand."""
        flow = rates.a * self.data + rates.c * self.noise
        return flow if self.mu is None else flow + rates.b * self.mu


def _less(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """x - weight y, in one operation where all are of one dtype."""
    if x.dtype is y.dtype is weight.dtype:
        return torch.addcmul(x, weight, y, value=-1)
    return x - weight * y
