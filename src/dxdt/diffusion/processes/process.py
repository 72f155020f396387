"""Gaussian diffusions, each given by three functions of time.

    x_t = a(t) x_0 + b(t) mu + c(t) eps,        eps ~ N(0, I),  t from 0 (data) to t1 (prior)

Everything else follows. The linear equation dx = (f x + u mu) dt + g dW with these marginals has

    f = a'/a,    u = b' - f b,    g^2 = (c^2)' - 2 f c^2,

and the clock of its information is lam = log(a / c), which falls as t grows. Derivatives are taken
in float64, by forward differentiation of the closed forms unless a process writes them down, so a
new process is its three functions, the inverse of lam, and the width of its prior.

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
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.processes.transition import Pinned, Transition
from dxdt.ops.autodiff import jvp

__all__ = ["Moments", "Prior", "Process", "Rates", "along", "check_mean"]


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


def check_mean(mu: Tensor | None, x: Tensor) -> None:
    """Refuse a mean that does not lie along the data axis by axis.

    Raises:
        ValueError: `mu` has other axes than `x` (up to ones).
    """
    if mu is None:
        return
    if mu.ndim != x.ndim or any(n not in (1, m) for n, m in zip(mu.shape, x.shape, strict=True)):
        raise ValueError(
            f"mu of shape {tuple(mu.shape)} does not match data of shape {tuple(x.shape)}; "
            "pass a mean for each sample, shaped (batch, *data shape)."
        )


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
    """The normal law N(mean, std^2 I) from which sampling starts; a point where std is zero."""

    mean: Tensor | float
    std: float

    def sample(self, noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return mean + std noise."""
        return self.mean + self.std * noise

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return log N(x; mean, std^2 I) of every sample, summed over its entries in float64.

        Raises:
            ValueError: the law is a point.
        """
        if self.std == 0:
            raise ValueError(
                "Prior: a bridge ends in its mean, a point that has no density; "
                "ask for the likelihood under a process whose prior is wider."
            )
        z = (x.double() - self.mean) / self.std
        each = -0.5 * z.square() - math.log(self.std) - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).sum(1)


class Process(ABC):
    """A Gaussian diffusion x_t = a(t) x_0 + b(t) mu + c(t) eps on 0 <= t <= t1.

    Subclasses give `a`, `variance` (c^2, smooth where c is not), `time` (the inverse of lam) and
    `prior_std`, all elementwise in t and in t's dtype; those with a mean give `b`, and those whose
    c is smooth where c = 0 give `c`.
    """

    @property
    def t0(self) -> float:
        """Time at which the data are as good as clean, where sampling may stop."""
        return 1e-3

    @property
    def t1(self) -> float:
        """Time of the prior."""
        return 1.0

    @property
    def jumps(self) -> bool:
        """Whether the rates jump between the levels of a table, which solvers in t feel and those in lam do not."""
        return False

    @property
    def centred(self) -> bool:
        """Whether b = 1 - a, so that the process is one of x - mu."""
        return False

    @property
    def radius(self) -> float:
        """L such that a^2 + (c / L)^2 = 1, for processes on a circle; one for others."""
        return 1.0

    @abstractmethod
    def a(self, t: Tensor) -> Tensor:
        """Return the weight of x_0."""

    def b(self, t: Tensor) -> Tensor:
        """Return the weight of the mean mu to which the process reverts: zero, without one."""
        return torch.zeros_like(t)

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

    def check(self, *times: float) -> None:
        """Refuse times outside the schedule.

        Raises:
            ValueError: a time is not in [0, t1].
        """
        for t in times:
            if not 0 <= t <= self.t1:
                raise ValueError(
                    f"{type(self).__name__}: time {t:g} lies outside the schedule; "
                    f"choose from 0 (data) to {self.t1:g} (prior)."
                )

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a'(t), b'(t), c'(t) and (c^2)'(t), here by forward differentiation; processes that
        solvers call often write them down, which is a hundred times as fast."""

        def closed_forms(s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return self.a(s), self.b(s), self.c(s), self.variance(s)

        return jvp(closed_forms, t, torch.ones_like(t))[1]

    def moments(self, t: Tensor, x: Tensor) -> Moments:
        """Return a, b and c at `t`, computed in float64, shaped and cast to meet `x`."""
        t = t.double()
        return Moments(along(self.a(t), x), along(self.b(t), x), along(self.c(t), x))

    def rates(self, t: Tensor, x: Tensor) -> Rates:
        """Return the derivatives at `t`, computed in float64, shaped and cast to meet `x`.

        They are one-sided limits at the ends: infinite where the exact ones are, never NaN.
        """
        t = t.double()

        a, b, v = self.a(t), self.b(t), self.variance(t)
        da, db, dc, dv = self.slopes(t)
        f = da / a
        # An infinite f meets b = 0 where data are forgotten entirely, and v = 0 where a bridge ends.
        u = torch.where((b == 0) & (db == 0), 0.0, db - f * b)
        g2 = torch.where(v == 0, self._start(a, da, dv), dv - 2 * f * v)
        return Rates(*(along(row, x) for row in (da, db, dc, f, u, g2)))

    @staticmethod
    def _start(a: Tensor, da: Tensor, dv: Tensor) -> Tensor:
        """Return g^2 where c = 0: (c^2)' while a > 0; at the end of a bridge a^2 / c^2 falls to zero
        with slope a' / (c^2)', so that 2 f c^2 is twice (c^2)'."""
        return torch.where(a > 0, dv, -dv)

    def transition(self, s: Tensor, t: Tensor, x: Tensor) -> Transition:
        """Return the law of x_t given x_s for s <= t, shaped and cast to meet `x`.

        r = a_t / a_s, m = b_t - r b_s, std^2 = c_t^2 - r^2 c_s^2.
        """
        s, t, r, decay = self._between(s, t)
        std = (-decay * self.variance(t)).sqrt()
        m = self.b(t) - r * self.b(s)
        return Transition(along(r, x), along(m, x), along(std, x))

    def posterior(self, s: Tensor, t: Tensor, x: Tensor) -> Pinned:
        """Return the law of x_s given x_t and x_0 for s <= t, shaped and cast to meet `x`.

        k = r c_s^2 / c_t^2, d = a_s - k a_t, m = b_s - k b_t, std^2 = c_s^2 (1 - r k). A bridge
        ends where it must, which says nothing of x_s: there k = 0.
        """
        s, t, r, decay = self._between(s, t)
        vs, vt = self.variance(s), self.variance(t)
        k = torch.where(s == t, 1.0, torch.where(vt == 0, 0.0, r * vs / vt))
        std = (-decay * vs).sqrt()
        d, m = -decay * self.a(s), self.b(s) - k * self.b(t)
        return Pinned(along(k, x), along(d, x), along(m, x), along(std, x))

    def _between(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return times, a_t / a_s and exp(2 (lam_t - lam_s)) - 1 in float64."""
        s, t = torch.broadcast_tensors(s.double(), t.double())
        same = s == t
        r = torch.where(same, 1.0, self.a(t) / self.a(s))
        decay = torch.where(same, 0.0, torch.expm1(2 * (self.lam(t) - self.lam(s))))
        return s, t, r, decay

    def mean(self, x0: Tensor, t: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return E[x_t | x_0] = a x_0 + b mu."""
        check_mean(mu, x0)
        m = self.moments(t, x0)
        return m.a * x0 if mu is None else m.a * x0 + m.b * mu

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return x_t = a x_0 + b mu + c eps."""
        return self.mean(x0, t, mu) + self.moments(t, x0).c * eps

    def prior(self, mu: Tensor | None = None) -> Prior:
        """Return the law from which sampling starts: N(b(t1) mu, prior_std^2), around mu itself
        where b = 1 - a."""
        if mu is None:
            return Prior(0.0, self.prior_std)
        weight = 1.0 if self.centred else self.b(torch.tensor(self.t1, dtype=torch.float64)).item()
        return Prior(weight * mu, self.prior_std)
