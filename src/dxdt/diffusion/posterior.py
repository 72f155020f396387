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
from typing import final

from torch import Tensor

from dxdt.diffusion.process import Moments, Process, Rates, check_mean

__all__ = ["Place", "Posterior"]


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
        return self.answer(data, (self.xi - self.at.a * data) / self.at.c)

    def from_noise(self, noise: Tensor) -> Posterior:
        """Return the answer whose noise is `noise`."""
        return self.answer((self.xi - self.at.c * noise) / self.at.a, noise)

    def answer(self, data: Tensor, noise: Tensor) -> Posterior:
        """Return the answer (data, noise), which the caller knows to agree."""
        return Posterior(self.process, self.t, self.x, data, noise, self.mu)


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
    def place(self) -> Place:
        """Where it looked, with a, b and c there."""
        return Place.of(self.process, self.t, self.x, self.mu)

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -noise / c (Tweedie)."""
        return -self.noise / self.process.moments(self.t, self.x).c

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
        m, radius = self.process.moments(self.t, self.x), self.process.radius
        around = self.residual if self.process.centred else self.data
        return radius * m.a * self.noise - m.c / radius * around

    def flow(self, rates: Rates) -> Tensor:
        """Return the velocity for rates that are already at hand."""
        flow = rates.a * self.data + rates.c * self.noise
        return flow if self.mu is None else flow + rates.b * self.mu
