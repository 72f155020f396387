"""Weights of exponential integrators: exact integrals of a polynomial against an exponential.

With h the step in lam = log(a / c), u in [0, 1] the place in it and eta = 1 + tau^2,

    data:   y' = (c'/c) e^{-tau^2 h} y + a' sum_j w_j q_j,        w_j = int_0^1 eta h e^{-eta h (1 - u)} L_j(u) du
    noise:  y' = (a'/a) y - eta c' sum_j w_j q_j,                 w_j = int_0^1 h e^{h (1 - u)} L_j(u) du

where q_j are answers at the nodes and L_j their Lagrange polynomials, in u or in another variable. The
weights solve sum_j w_j v_j^m = M_m with M_m the moments of the exponential, so any nodes will do.

Source: Hochbruck and Ostermann, "Exponential integrators", Acta Numerica 19 (2010), section 2;
Zhang and Chen, "Fast sampling of diffusion models with exponential integrator" (2023), for other variables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.problem.affine import Answer, Knots, SemiLinear

__all__ = [
    "B1",
    "B2",
    "DataPrediction",
    "ExactWeight",
    "InLogSNR",
    "InRatio",
    "InTime",
    "NoisePrediction",
    "Prediction",
    "Rule",
    "Second",
    "Transfer",
    "Variable",
    "largest_step",
    "powers",
    "solved",
    "weights",
]

_SERIES = 28
_NEAR = 1.5
_PANELS, _POINTS = 4, 12


def powers(z: Tensor, count: int) -> Tensor:
    """int_0^1 e^{z (1 - u)} u^k du = k! phi_{k+1}(z) for k < count, on a new last axis.

    A power series near zero, where the recurrence m_k = (k m_{k-1} - 1) / z cancels.
    """
    near = z.abs() < _NEAR
    small = torch.where(near, z, 0.0)
    series = (small.unsqueeze(-1) ** torch.arange(_SERIES, dtype=z.dtype, device=z.device)) @ _series(count).to(z)
    if bool(near.all()):
        return series
    large = torch.where(near, 1.0, z)
    terms = [torch.expm1(large) / large]
    for k in range(1, count):
        terms.append((k * terms[-1] - 1) / large)
    return torch.where(near.unsqueeze(-1), series, torch.stack(terms, -1))


@lru_cache(maxsize=8)
def _series(count: int) -> Tensor:
    rows = [[math.factorial(k) / math.factorial(k + j + 1) for k in range(count)] for j in range(_SERIES)]
    return torch.tensor(rows, dtype=torch.float64)


class Transfer(NamedTuple):
    """What a step from s to t does, but for the polynomial; each of the shape of the step.

    Attributes:
        alpha: factor of y.
        scale: factor of the weights.
        h: step in lam.
        noise: standard deviation of what the noise adds.
    """

    alpha: Tensor
    scale: Tensor
    h: Tensor
    noise: Tensor


def _root(x: Tensor) -> Tensor:
    """sqrt(x), with the derivative zero where x is zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


class Prediction(ABC):
    """In which of the denoiser's answers the equation is integrated."""

    @abstractmethod
    def read(self, answer: Answer) -> Tensor:
        """The answer that is interpolated."""

    @abstractmethod
    def transfer(self, s: Knots, t: Knots, tau: float | Tensor) -> Transfer:
        """The step from s to t, for finite lam."""

    @abstractmethod
    def moments(self, h: Tensor, tau: float | Tensor, count: int) -> Tensor:
        """M_m for m < count, on a new last axis."""

    @abstractmethod
    def density(self, h: Tensor, tau: float | Tensor, u: Tensor) -> Tensor:
        """The exponential under the integral."""

    @abstractmethod
    def ratio(self, lam: Tensor) -> Tensor:
        """The variable in which the exponential is uniform at tau = 0."""


@final
@dataclass(frozen=True)
class DataPrediction(Prediction):
    """Integrate E[x_0 | x_t]: stable for steps of any length."""

    def read(self, answer: Answer) -> Tensor:
        return answer.data

    def transfer(self, s: Knots, t: Knots, tau: float | Tensor) -> Transfer:
        h = t.lam - s.lam
        fade = torch.exp(-(tau**2) * h)
        return Transfer(t.c / s.c * fade, t.a, h, t.c * _root(-torch.expm1(-2 * tau**2 * h)))

    def moments(self, h: Tensor, tau: float | Tensor, count: int) -> Tensor:
        z = (1 + tau**2) * h
        return z.unsqueeze(-1) * powers(-z, count)

    def density(self, h: Tensor, tau: float | Tensor, u: Tensor) -> Tensor:
        z = (1 + tau**2) * h
        return z * torch.exp(-z * (1 - u))

    def ratio(self, lam: Tensor) -> Tensor:
        return torch.exp(lam)


@final
@dataclass(frozen=True)
class NoisePrediction(Prediction):
    """Integrate E[eps | x_t]: unstable where steps are long and little is known (see `largest_step`)."""

    def read(self, answer: Answer) -> Tensor:
        return answer.noise

    def transfer(self, s: Knots, t: Knots, tau: float | Tensor) -> Transfer:
        h = t.lam - s.lam
        return Transfer(t.a / s.a, -(1 + tau**2) * t.c, h, tau * t.c * torch.expm1(2 * h).sqrt())

    def moments(self, h: Tensor, tau: float | Tensor, count: int) -> Tensor:
        return h.unsqueeze(-1) * powers(h, count)

    def density(self, h: Tensor, tau: float | Tensor, u: Tensor) -> Tensor:
        return h * torch.exp(h * (1 - u))

    def ratio(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


class Second(ABC):
    """The weight of the difference of two answers, in a second-order formula."""

    @abstractmethod
    def weight(self, moments: Tensor, z: Tensor) -> Tensor:
        """What stands for M_1; z is M_0 for a short step."""


@final
@dataclass(frozen=True)
class ExactWeight(Second):
    """The exact integral, M_1."""

    def weight(self, moments: Tensor, z: Tensor) -> Tensor:
        return moments[..., 1]


Exact = ExactWeight  # its name in version 0.1, where it clashed with the exact trace


@final
@dataclass(frozen=True)
class B1(Second):
    """h / 2, eta h / 2 for data: variant B1 of Zhao et al., "UniPC" (2023), section 3."""

    def weight(self, moments: Tensor, z: Tensor) -> Tensor:
        return 0.5 * z


@final
@dataclass(frozen=True)
class B2(Second):
    """M_0 / 2: variant B2 of UniPC, the weight of DPM-Solver-2 and of DPM-Solver++(2M)."""

    def weight(self, moments: Tensor, z: Tensor) -> Tensor:
        return 0.5 * moments[..., 0]


class Variable(ABC):
    """The variable in which the answers of earlier steps are interpolated."""

    @abstractmethod
    def place(self, kind: Prediction, lam: Tensor, t: Tensor) -> Tensor:
        """Its value at given times."""

    @property
    def exact(self) -> bool:
        """Whether it is affine in lam, so that the integrals have closed forms."""
        return False


@final
@dataclass(frozen=True)
class InLogSNR(Variable):
    """A polynomial in lam = log(a / c), integrated in closed form."""

    def place(self, kind: Prediction, lam: Tensor, t: Tensor) -> Tensor:
        return lam

    @property
    def exact(self) -> bool:
        return True


@final
@dataclass(frozen=True)
class InTime(Variable):
    """A polynomial in t, integrated by quadrature: the tAB of DEIS."""

    def place(self, kind: Prediction, lam: Tensor, t: Tensor) -> Tensor:
        return t


@final
@dataclass(frozen=True)
class InRatio(Variable):
    """A polynomial in c / a for noise (the rhoAB of DEIS), in a / c for data."""

    def place(self, kind: Prediction, lam: Tensor, t: Tensor) -> Tensor:
        return kind.ratio(lam)


@lru_cache(maxsize=1)
def _rule() -> tuple[Tensor, Tensor]:
    """Points and weights of a composite Gauss-Legendre rule on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(_POINTS)
    points = np.concatenate([(0.5 * (x + 1) + k) / _PANELS for k in range(_PANELS)])
    return torch.from_numpy(points), torch.from_numpy(np.tile(0.5 * w / _PANELS, _PANELS))


@dataclass(frozen=True)
class Rule:
    """How a polynomial is integrated over a step.

    Attributes:
        kind, variable, second: which answer, in which variable, with which second-order weight.
    """

    kind: Prediction
    variable: Variable
    second: Second

    def moments(
        self,
        equation: SemiLinear,
        tau: float | Tensor,
        s: Knots,
        h: Tensor,
        span: Tensor,
        origin: Tensor,
        count: int,
    ) -> Tensor:
        """M_m of the variable v = (place - origin) / span over the step from s of length h."""
        if self.variable.exact:
            return self.kind.moments(h, tau, count)
        u, w = (x.to(h.device) for x in _rule())
        lam = s.lam.unsqueeze(-1) + h.unsqueeze(-1) * u
        place = self.variable.place(self.kind, lam, equation.time(lam))
        v = (place - origin.unsqueeze(-1)) / span.unsqueeze(-1)
        tau = tau.unsqueeze(-1) if isinstance(tau, Tensor) else tau
        density = self.kind.density(h.unsqueeze(-1), tau, u) * w
        return torch.stack([(density * v**m).sum(-1) for m in range(count)], -1)


def solved(moments: Tensor, v: Tensor) -> Tensor:
    """w with sum_j w_j v_j^m = M_m, all on the last axis."""
    m = v.shape[-1]
    rows = v.unsqueeze(-2) ** torch.arange(m, device=v.device).unsqueeze(-1)
    return torch.linalg.solve_ex(rows, moments[..., :m].unsqueeze(-1))[0].squeeze(-1)


def weights(second: Second, moments: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """Weights of the answers at nodes v, of which the first stands at zero."""
    if v.shape[-1] == 1:
        return moments[..., :1]
    if v.shape[-1] > 2:
        return solved(moments, v)
    slope = second.weight(moments, z) / v[..., 1]
    return torch.stack([moments[..., 0] - slope, slope], -1)


@lru_cache(maxsize=64)
def largest_step(order: int, tau: float, correct: bool = False) -> float:
    """Longest step in lam at which noise prediction does not amplify where nothing is known yet.

    There c is constant and eps = y / c, so equal steps of Adams-Bashforth are the recurrence

        y_{n+1} = e^h y_n - eta sum_j w_j(h) y_{n-j}

    whose spectral radius must not exceed one: 1.099 for order 1 with tau = 1 (that is log 3), 0.536 for
    order 2, 1.257 and 0.613 for orders 2 and 3 with tau = 0. With ``correct`` the recurrence is that of
    the predictor of order - 1 corrected at the next step.
    """
    low, high = 0.0, 1e-3
    while high < 20 and _radius(order, tau, high, correct) <= 1 + 1e-9:
        low, high = high, high + 0.01
    if high >= 20:
        return math.inf
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _radius(order, tau, middle, correct) <= 1 + 1e-9 else (low, middle)
    return low


def _radius(order: int, tau: float, h: float, correct: bool) -> float:
    """Spectral radius of the recurrence."""
    eta, growth = 1 + tau**2, math.exp(h)
    step = torch.tensor(h, dtype=torch.float64)
    moments = NoisePrediction().moments(step, tau, order)
    ahead = order - 1 if correct else order
    w = solved(moments, -torch.arange(float(ahead), dtype=torch.float64)).numpy()
    factors = np.zeros(order)
    factors[:ahead] = -eta * w
    if correct:
        full = solved(moments, 1 - torch.arange(float(order), dtype=torch.float64)).numpy()
        factors[0] -= growth * eta * full[0]
        factors[1:] -= growth * eta * (full[1:] - w)
    factors[0] += growth
    return float(max(abs(np.roots([1.0, *-factors]))))
