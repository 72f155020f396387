"""The equations that carry the prior back to the data.

With D = E[x_0 | x_t] and eps = E[eps | x_t], for t running down from t1 to t0,

    dx = [a' D + b' mu + c' eps + tau^2 g^2 eps / (2 c)] dt + tau g dW

has the marginals of the diffusion for every tau in [0, 1]: tau = 0 is the probability flow and
tau = 1 the reverse equation of Anderson. In this form the flow needs no division by a, so it
holds for processes that forget the data entirely.

A solver that knows the affine part finds it beside the drift: a, b, c, lam with its inverse, tau,
and the denoiser's answer, `remainder`.

Source: Song et al., "Score-based generative modeling through SDEs" (2021), equations 6 and 13;
Zhang and Chen, "Fast sampling of diffusion models with exponential integrator" (2023), equation 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from dxdt.diffeq.problem.equation import Equation, Ito, StochasticEquation, Stratonovich
from dxdt.diffeq.problem.noise import Additive, Noise
from dxdt.diffusion.denoisers.denoiser import DenoiserLike, Posterior, foreseen
from dxdt.diffusion.processes.process import Process, along
from dxdt.diffusion.sampling.profile import Profile


@dataclass(frozen=True, eq=False)
class Reverse(Equation):
    """What both kinds of reverse equation share.

    Attributes:
        denoiser: answers E[x_0 | x_t].
        tau: share of noise, the largest where it varies.
        mu: mean of the process, or None for zero.
        profile: how tau^2 varies along the way, or None where it does not.
    """

    denoiser: DenoiserLike
    tau: float = 0.0
    mu: Tensor | None = None
    profile: Profile | None = None

    @property
    def process(self) -> Process:
        """The diffusion that is reversed."""
        return self.denoiser.process

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        """The denoiser, searched for parameters."""
        return (self.denoiser,)

    def a(self, t: Tensor) -> Tensor:
        """Return the weight of x_0 at `t`."""
        return self.process.a(t)

    def b(self, t: Tensor) -> Tensor:
        """Return the weight of mu at `t`."""
        return self.process.b(t)

    def c(self, t: Tensor) -> Tensor:
        """Return the weight of the noise at `t`."""
        return self.process.c(t)

    def lam(self, t: Tensor) -> Tensor:
        """Return log(a / c) at `t`."""
        return self.process.lam(t)

    def time(self, lam: Tensor) -> Tensor:
        """Return the time of a given log(a / c)."""
        return self.process.time(lam)

    @property
    def affine(self) -> tuple[Process, float, Profile | None]:
        """What a, b, c, lam and the share of noise follow from."""
        return self.process, self.tau, self.profile

    def share(self, start: Tensor, end: Tensor) -> float | Tensor:
        """Return the root mean square of tau over steps from lam = `start` to `end`."""
        if self.profile is None or self.tau == 0:
            return self.tau
        return self.tau * self.profile.mean(start, end).sqrt()

    def share_between(self, t: Tensor, s: Tensor) -> float | Tensor:
        """Return the same for steps from time `t` to `s`."""
        return self.tau if self.profile is None else self.share(self.lam(t.double()), self.lam(s.double()))

    def share_at(self, t: Tensor, y: Tensor) -> float | Tensor:
        """Return tau at `t` () or (batch,), shaped to meet `y`."""
        if self.profile is None:
            return self.tau
        return self.tau * along(self.profile(self.lam(t.double())).sqrt(), y)

    @property
    def foresight(self) -> Any:
        """What `foresee` follows from, or None where that is not known."""
        return getattr(self.denoiser, "foresight", None)

    def foresee(self, t: Tensor, like: Tensor) -> list[Any] | None:
        """Return what the denoiser prepares for known times (K,), where states are such as `like`."""
        return foreseen(self.denoiser, t, like)

    def remainder(self, t: Tensor, y: Tensor, sight: Any = None) -> Posterior:
        """Return the denoiser's answer, the part of the equation that is not affine."""
        if sight is None:
            return self.denoiser(y, t, self.mu)
        return self.denoiser(y, t, self.mu, sight=sight)  # pyright: ignore[reportCallIssue]

    def drift(self, t: Tensor, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the bracket above at `t` () or (batch,) and `y` (batch, *shape)."""
        rates = self.process.rates(t, y)
        answer = self.remainder(t, y)
        flow = answer.flow(rates)
        if self.tau == 0:
            return flow
        c = self.process.moments(t, y).c
        return flow + (0.5 * self.share_at(t, y) ** 2) * rates.g2 / c * answer.noise


@final
@dataclass(frozen=True, eq=False)
class ProbabilityFlow(Reverse):
    """The deterministic reverse equation, tau = 0."""


@final
@dataclass(frozen=True, eq=False)
class ReverseSDE(Reverse, StochasticEquation):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The reverse equation with noise that depends on time alone, 0 <= tau <= 1; at 0 it only has a driver, for
    methods that bring noise of their own."""

    noise: Noise = Additive()  # noqa: RUF009
    calculus: Ito | Stratonovich = Ito()  # noqa: RUF009

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return tau g(t), shaped like `y`."""
        if self.tau == 0:
            return y.new_zeros(()).expand_as(y)  # also where g is infinite
        return (self.share_at(t, y) * self.process.rates(t, y).g2.sqrt()).expand_as(y)


def reverse(
    denoiser: DenoiserLike, tau: float = 0.0, mu: Tensor | None = None, profile: Profile | None = None
) -> ProbabilityFlow | ReverseSDE:
    """Return the reverse equation of a denoiser's process, ready for `dxdt.solve` with t1 > t0.

    Args:
        denoiser: any denoiser.
        tau: 0 for the probability flow, 1 for the reverse SDE, or between.
        mu: mean of the process (batch, *shape), for processes that have one.
        profile: where along the way there is noise, such as `Window(low, high)`; everywhere by default.

    Raises:
        ValueError: `tau` is not in [0, 1].
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"reverse: tau={tau} is no share of noise; choose 0 (probability flow) to 1 (reverse SDE).")
    return ProbabilityFlow(denoiser, 0.0, mu) if tau == 0 else ReverseSDE(denoiser, tau, mu, profile)
