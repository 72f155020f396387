"""Semi-linear equations: an affine part that is known exactly, and a remainder.

    x_t = a(t) x_0 + b(t) mu + c(t) eps,        lam = log(a / c)

With y = x - b mu and lam as its clock, the reverse equation with a share tau of noise is linear in y
but for what `remainder` answers, data D = E[x_0 | x_t] or noise E[eps | x_t]:

    d(y e^{tau^2 lam} / c) = (1 + tau^2) e^{(1 + tau^2) lam} D dlam + tau sqrt(2) e^{tau^2 lam} dW
    d(y / a) = -(1 + tau^2) e^{-lam} E[eps | x_t] dlam + tau sqrt(2) e^{-lam} dW

Source: Lu et al., "DPM-Solver++" (2022), section 3; Li et al., "MRS: a fast sampler for mean
reverting diffusion" (2025), propositions 1 to 4, for mu.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Answer", "Knots", "SemiLinear", "share"]


class Answer(Protocol):
    """What is known about x_0 and eps at x_t."""

    @property
    def data(self) -> Tensor: ...
    @property
    def noise(self) -> Tensor: ...


@runtime_checkable
class SemiLinear(Protocol):
    """An equation whose affine part is known; times are float64 of any shape.

    Attributes:
        tau: share of noise, 0 for the ordinary equation; the largest where `share` says how it varies.
        mu: mean to which x reverts, with as many axes as x, or None for zero.

    Where the times of a solve are known, an equation may prepare for them: ``foresee(t, like)`` returns something
    for each of the times ``(K,)``, which ``remainder`` is then given beside that time, or None. Two hashable values say
    what may be kept for the next solve: ``affine``, from which a, b, c, lam and tau follow, and ``foresight``, from
    which the preparations do.
    """

    tau: float
    mu: Tensor | None

    def a(self, t: Tensor) -> Tensor:
        """Weight of x_0."""
        ...

    def b(self, t: Tensor) -> Tensor:
        """Weight of mu."""
        ...

    def c(self, t: Tensor) -> Tensor:
        """Weight of the noise."""
        ...

    def lam(self, t: Tensor) -> Tensor:
        """log(a / c)."""
        ...

    def time(self, lam: Tensor) -> Tensor:
        """The time of a given log(a / c)."""
        ...

    def remainder(self, t: Tensor, y: Any, *rest: Any) -> Any:
        """The answer at t, () or (batch,), and y; then come the solve's args and what was prepared for t."""
        ...


class Knots(NamedTuple):
    """The affine part at some times; all of one shape, float64."""

    t: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    lam: Tensor

    @classmethod
    def at(cls, equation: SemiLinear, t: Tensor) -> Knots:
        """The affine part at given times; lam is infinite where a or c is zero."""
        a, b, c = equation.a(t), equation.b(t), equation.c(t)
        lam = torch.where(a == 0, -torch.inf, torch.where(c == 0, torch.inf, equation.lam(t)))
        return cls(t, a, b, c, lam)

    def part(self, index: Any) -> Knots:
        """The same at some of the places."""
        return Knots(*(x[index] for x in self))


def share(equation: SemiLinear, s: Knots, t: Knots) -> float | Tensor:
    """Root mean square of tau over steps from s to t: a number, or shaped like the steps where it varies.

    With it the affine part and the noise of an exponential step in the data's form are exact, whatever tau is
    inside the step, and the weights are of order two; where tau is constant on every step they are exact too.
    """
    varies = getattr(equation, "share", None)
    return float(equation.tau) if varies is None else varies(s.lam, t.lam)
