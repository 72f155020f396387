"""What a network answers: each way reads an output as (data, noise), and writes them as an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from dxdt.diffusion.denoisers.posterior import Place, Posterior
from dxdt.diffusion.processes.mean_reverting import MeanReverting
from dxdt.diffusion.processes.process import along
from dxdt.diffusion.processes.reversion import Reversion

__all__ = ["AngularVelocity", "Data", "Debiased", "Noise", "Parameterisation", "Residual", "Score", "Velocity"]


class Parameterisation(Protocol):
    """How a network's output is read, and what it should have been."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return what the output says at `place`."""
        ...

    def write(self, answer: Posterior) -> Tensor:
        """Return the output that says `answer`, the inverse of `read`."""
        ...


@final
@dataclass(frozen=True)
class Noise:
    """The network answers eps."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return data = (xi - c eps) / a and noise = eps."""
        return place.from_noise(output)

    def write(self, answer: Posterior) -> Tensor:
        """Return the noise."""
        return answer.noise


@final
@dataclass(frozen=True)
class Data:
    """The network answers x_0."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return data = x0 and noise = (xi - a x0) / c."""
        return place.from_data(output)

    def write(self, answer: Posterior) -> Tensor:
        """Return the data."""
        return answer.data


@final
@dataclass(frozen=True)
class Residual:
    """The network answers r = x_0 - mu."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return data = mu + r and noise = (xi - a data) / c."""
        return place.from_data(output if place.mu is None else output + place.mu)

    def write(self, answer: Posterior) -> Tensor:
        """Return data - mu."""
        return answer.residual


@final
@dataclass(frozen=True)
class Score:
    """The network answers s = grad log p_t(x_t)."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return data = (xi + c^2 s) / a and noise = -c s."""
        return place.from_noise(-place.at.c * output)

    def write(self, answer: Posterior) -> Tensor:
        """Return the score."""
        return answer.score


@final
@dataclass(frozen=True)
class Velocity:
    """The network answers dx_t/dt = a' x0 + b' mu + c' eps."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return the solution (x0, eps) of the two linear equations for xi and the velocity."""
        at, r, xi = place.at, place.rates(), place.xi
        v = output if place.mu is None else output - r.b * place.mu
        wronskian = at.a * r.c - r.a * at.c
        return place.answer((r.c * xi - at.c * v) / wronskian, (at.a * v - r.a * xi) / wronskian)

    def write(self, answer: Posterior) -> Tensor:
        """Return the velocity."""
        return answer.velocity


@final
@dataclass(frozen=True)
class AngularVelocity:
    """The network answers v = L a eps - (c / L) (x0 - mu), the "v" of `Posterior`."""

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return x0 - mu = (L a y - c v) / n and eps = (a v + (c / L) y) / n.

        y = x_t - mu and n = L a^2 + c^2 / L; without mu for processes that do not revert to it.
        """
        a, c, centre, radius = place.at.a, place.at.c, place.centre, place.process.radius
        y = place.xi if centre is None else place.xi - a * centre
        norm = radius * a.square() + c.square() / radius
        data = (radius * a * y - c * output) / norm
        noise = (a * output + c / radius * y) / norm
        return place.answer(data if centre is None else data + centre, noise)

    def write(self, answer: Posterior) -> Tensor:
        """Return the angular velocity."""
        return answer.angular_velocity


@final
@dataclass(frozen=True)
class Debiased:
    """The network answers noise and was trained by the maximum-likelihood loss of IR-SDE.

    That loss compares an Euler step with the exact reverse mean, so that its least-squares optimum is

        eps_hat = (sinh p / p) eps - kappa (c / L^2) (x_t - mu),    kappa = (exp p - 1 - p) / (2 p)

    with p = theta_t dt of the training table; near T this shifts x_0 by several times x_t - mu.

    Source: the loss is that of Luo et al., "Image restoration with mean-reverting SDEs" (2023);
    the optimum follows by comparing coefficients.

    Raises:
        ValueError: on reading, the process is not mean reverting on the schedule of such a model.
    """

    def _terms(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return p / sinh p, and kappa (c / L^2) (x - mu)."""
        process = place.process
        if not isinstance(process, MeanReverting) or not isinstance(process.schedule, Reversion):
            raise ValueError(
                f"Debiased: {process!r} has no training table with theta dt; "
                "use MeanReverting(std, Reversion(...)), or Noise() for other losses."
            )
        p = process.schedule.increment(place.t.double())
        kappa = (torch.expm1(p) - p) / (2 * p)
        pull = along(kappa * process.c(place.t.double()) / process.std**2, place.x)
        away = place.x if place.mu is None else place.x - place.mu
        return along(p / p.sinh(), place.x), pull * away

    def read(self, output: Tensor, place: Place) -> Posterior:
        """Return eps = (p / sinh p) (eps_hat + kappa (c / L^2) (x_t - mu)) and its data."""
        ratio, shift = self._terms(place)
        return place.from_noise(ratio * (output + shift))

    def write(self, answer: Posterior) -> Tensor:
        """Return eps_hat, what the loss makes of the noise."""
        ratio, shift = self._terms(answer.place)
        return answer.noise / ratio - shift
