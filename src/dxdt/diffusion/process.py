"""Gaussian diffusions, each given by three functions of time.

    x_t = a(t) x_0 + b(t) mu + c(t) eps,        eps ~ N(0, I),  t from 0 (data) to t1 (prior)

Everything else follows. The linear equation dx = (f x + u mu) dt + g dW with these marginals has

    f = a'/a,    u = b' - f b,    g^2 = (c^2)' - 2 f c^2,

and the clock of its information is lam = log(a / c), which falls as t grows. Derivatives are taken
by forward differentiation of the closed forms in float64, so a new process is its three functions,
the inverse of lam, and the width of its prior.

Times have any shape; that shape stands for the leading axes of the data they meet.

Source: Song et al., "Score-based generative modeling through SDEs" (2021), appendix B; for mu,
Luo et al., "Image restoration with mean-reverting SDEs" (2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dxdt.ops.autodiff import jvp


def along(t: Tensor, x: Tensor) -> Tensor:
    """Give `t` trailing axes so that it meets the leading axes of `x`, in x's dtype and device.

    Raises:
        ValueError: the shape of `t` is not a beginning of the shape of `x` (up to ones).
    """
    lead = x.shape[: t.ndim]
    fits = t.ndim <= x.ndim and all(n in (1, m) for n, m in zip(t.shape, lead, strict=True))
    if not fits:
        raise ValueError(
            f"times of shape {tuple(t.shape)} do not match the leading axes of data of shape "
            f"{tuple(x.shape)}; pass one time, or one for each sample."
        )
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).to(x)


@final
@dataclass(frozen=True)
class Moments:
    """a, b and c of a process at times t, shaped to meet data.

    Attributes:
        a, b, c: as in x_t = a x_0 + b mu + c eps.
    """

    a: Tensor
    b: Tensor
    c: Tensor


@final
@dataclass(frozen=True)
class Rates:
    """Time derivatives of a process and its squared diffusion, shaped to meet data.

    Attributes:
        a, b, c: a'(t), b'(t), c'(t).
        f, u, g2: dx = (f x + u mu) dt + g dW with g2 = g^2.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    f: Tensor
    u: Tensor
    g2: Tensor


@final
@dataclass(frozen=True)
class Prior:
    """The normal law N(mean, std^2 I) from which sampling starts."""

    mean: Tensor | float
    std: float

    def sample(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return mean + std noise."""
        return self.mean + self.std * noise

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return log N(x; mean, std^2 I) of every sample, summed over its entries in float64."""
        z = (x.double() - self.mean) / self.std
        each = -0.5 * z.square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)


class Process(ABC):
    """A Gaussian diffusion x_t = a(t) x_0 + b(t) mu + c(t) eps on 0 <= t <= t1.

    Subclasses give `a`, `b`, `variance` (c^2, smooth where c is not), `time` (the inverse of lam)
    and `prior_std`, all elementwise in t and in t's dtype.
    """

    t1: float = 1.0

    @abstractmethod
    def a(self, t: Tensor) -> Tensor:
        """Return the weight of x_0."""

    @abstractmethod
    def b(self, t: Tensor) -> Tensor:
        """Return the weight of the mean mu to which the process reverts; zero without one."""

    @abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """Return c(t)^2."""

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """Return the t at which log(a / c) equals `lam`."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the law that x_{t1} is taken to have."""

    def c(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the noise."""
        return self.variance(t).sqrt()

    def lam(self, t: Tensor) -> Tensor:
        """Return log(a / c), half the log signal-to-noise ratio."""
        return self.a(t).log() - 0.5 * self.variance(t).log()

    def moments(self, t: Tensor, x: Tensor) -> Moments:
        """Return a, b and c at `t`, computed in float64, shaped and cast to meet `x`."""
        t = t.double()
        return Moments(along(self.a(t), x), along(self.b(t), x), along(self.c(t), x))

    def rates(self, t: Tensor, x: Tensor) -> Rates:
        """Return the derivatives at `t`, computed in float64, shaped and cast to meet `x`."""
        t = t.double()

        def closed_forms(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.a(s), self.b(s), self.variance(s)

        (a, b, v), (da, db, dv) = jvp(closed_forms, t, torch.ones_like(t))
        f = da / a
        rows = (da, db, 0.5 * dv / v.sqrt(), f, db - f * b, dv - 2 * f * v)
        return Rates(*(along(row, x) for row in rows))

    def mean(self, x0: Tensor, t: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return E[x_t | x_0] = a x_0 + b mu."""
        m = self.moments(t, x0)
        return m.a * x0 if mu is None else m.a * x0 + m.b * mu

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return x_t = a x_0 + b mu + c eps."""
        return self.mean(x0, t, mu) + self.moments(t, x0).c * eps

    def prior(self, mu: Tensor | None = None) -> Prior:
        """Return the law from which sampling starts: N(b(t1) mu, prior_std^2)."""
        if mu is None:
            return Prior(0.0, self.prior_std)
        end = torch.tensor(self.t1, dtype=torch.float64)
        return Prior(self.b(end).item() * mu, self.prior_std)


@dataclass(frozen=True)
class Linear:
    """Linear noise schedule beta(t) = low + t (high - low), with integral B(t)."""

    low: float = 0.1
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(
                f"Linear: beta from {self.low} to {self.high} is not positive and increasing; choose 0 < low < high."
            )

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t) = low t + (high - low) t^2 / 2."""
        return t * (self.low + 0.5 * (self.high - self.low) * t)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which B(t) equals `total`."""
        slope = self.high - self.low
        return 2 * total / (self.low + (self.low**2 + 2 * slope * total).sqrt())


@final
@dataclass(frozen=True)
class VP(Process):
    """Variance preserving: a = exp(-B/2), b = 0, c^2 = 1 - exp(-B).

    Source: Song et al. (2021), equations 11 and 33.
    """

    schedule: Linear = Linear()

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-B/2)."""
        return (-0.5 * self.schedule.integral(t)).exp()

    def b(self, t: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return 1 - exp(-B)."""
        return -torch.expm1(-self.schedule.integral(t))

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with exp(-B) = sigmoid(2 lam)."""
        return self.schedule.inverse(F.softplus(-2 * lam))

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0


@final
@dataclass(frozen=True)
class SubVP(Process):
    """Below the variance-preserving one: a = exp(-B/2), b = 0, c = 1 - exp(-B).

    Source: Song et al. (2021), equations 12 and 33.
    """

    schedule: Linear = Linear()

    def a(self, t: Tensor) -> Tensor:
        """Return exp(-B/2)."""
        return (-0.5 * self.schedule.integral(t)).exp()

    def b(self, t: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return (1 - exp(-B))^2."""
        return torch.expm1(-self.schedule.integral(t)).square()

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with a / (1 - a^2) = exp(lam), that is -log a = arcsinh(exp(-lam) / 2)."""
        return self.schedule.inverse(2 * (0.5 * (-lam).exp()).arcsinh())

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0


@final
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: a = 1, b = 0, c = low (high / low)^t.

    Source: Song et al. (2021), equations 9 and 31, without the negligible low^2 at t = 0.
    """

    low: float = 0.01
    high: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(
                f"VE: noise from {self.low} to {self.high} is not positive and increasing; choose 0 < low < high."
            )

    def a(self, t: Tensor) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def b(self, t: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return low^2 (high / low)^(2 t)."""
        return self.low**2 * (2 * math.log(self.high / self.low) * t).exp()

    def time(self, lam: Tensor) -> Tensor:
        """Return -(lam + log low) / log(high / low)."""
        return -(lam + math.log(self.low)) / math.log(self.high / self.low)

    @property
    def prior_std(self) -> float:
        """`high`."""
        return self.high


@final
@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight paths between data and noise: a = 1 - t, b = 0, c = t.

    Source: Liu et al., "Flow straight and fast" (2023), with time running from data to noise.
    """

    def a(self, t: Tensor) -> Tensor:
        """Return 1 - t."""
        return 1 - t

    def b(self, t: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """Return t^2."""
        return t.square()

    def time(self, lam: Tensor) -> Tensor:
        """Return 1 / (1 + exp lam)."""
        return torch.sigmoid(-lam)

    @property
    def prior_std(self) -> float:
        """One."""
        return 1.0
