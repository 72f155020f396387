"""Initial value problems whose solutions are known exactly, for the laws of the solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sin

import torch
from torch import Tensor

__all__ = [
    "COMPLEX",
    "GENERIC",
    "LINEAR",
    "LOGISTIC",
    "LONG",
    "PENDULUM",
    "PROBLEMS",
    "SWELL",
    "Problem",
]


@dataclass(frozen=True, eq=False)
class Problem:
    """dy/dt = field(t, y) with y(t0) = y0 and a known solution.

    Attributes:
        name: for the test's id.
        field: works on any leading axes of ``y``; ``t`` is a number or one time for each.
        y0: initial value ``(n,)``, float64 or complex128.
        t0, t1: the span.
        exact: times ``(T,)`` to values ``(T, n)``.
    """

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    t0: float
    t1: float
    exact: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        return self.name

    @property
    def end(self) -> Tensor:
        """The solution at t1."""
        return self.at(self.t1)

    def at(self, t: float) -> Tensor:
        """The solution at one time."""
        return self.exact(torch.tensor([t], dtype=torch.float64))[0]

    def reversed(self) -> Problem:
        """The same problem solved from its end to its start."""
        return Problem(f"{self.name}-back", self.field, self.end, self.t1, self.t0, self.exact)


def _column(t: Tensor, y: Tensor) -> Tensor:
    """Times that broadcast against ``y``."""
    return t.unsqueeze(-1) if t.dim() else t


_A = torch.tensor([[-0.3, 1.1, 0.2], [-1.4, -0.1, 0.5], [0.3, -0.6, -0.4]], dtype=torch.float64)


def _flow(clock: Tensor, z0: Tensor) -> Tensor:
    """exp(clock A) z0 for each entry of ``clock``."""
    return torch.matrix_exp(clock[:, None, None] * _A) @ z0


_Z0 = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)

LINEAR = Problem("linear", lambda t, y: y @ _A.T.to(y), _Z0, 0.0, 2.0, lambda t: _flow(t, _Z0))

_L0 = torch.tensor([0.1, 0.6, 1.4], dtype=torch.float64)

LOGISTIC = Problem(
    "logistic",
    lambda t, y: 1.3 * y * (1 - y),
    _L0,
    0.0,
    1.8,
    lambda t: 1 / (1 + (1 / _L0 - 1) * torch.exp(-1.3 * t[:, None])),
)

_S0 = torch.tensor([1.0, -2.0], dtype=torch.float64)

SWELL = Problem(
    "non-autonomous",
    lambda t, y: 2 * y * torch.cos(2 * _column(t, y)),
    _S0,
    0.3,
    2.1,
    lambda t: _S0 * torch.exp(torch.sin(2 * t[:, None]) - sin(0.6)),
)

_C0 = torch.tensor([1.0 + 0.5j, -0.3 + 1.2j], dtype=torch.complex128)
_RATE = torch.tensor([-0.2 + 2.0j, 0.1 - 1.5j], dtype=torch.complex128)

COMPLEX = Problem(
    "complex",
    lambda t, y: y * _RATE.to(y),
    _C0,
    0.0,
    2.0,
    lambda t: _C0 * torch.exp(_RATE * t[:, None]),
)


# A generic nonlinear, non-autonomous problem that is solvable: a linear flow on the clock
# s(t) = t + sin(t) / 2, seen through a nonlinear change of coordinates.


def _bend(z: Tensor) -> Tensor:
    a, b, c = z.unbind(-1)
    return torch.stack([a, b + torch.sin(a), c + a * b], -1)


def _generic(t: Tensor, y: Tensor) -> Tensor:
    a = y[..., 0]
    b = y[..., 1] - torch.sin(a)
    c = y[..., 2] - a * b
    rate = 1 + 0.5 * torch.cos(_column(t, y))
    da, db, dc = (rate * (torch.stack([a, b, c], -1) @ _A.T.to(y))).unbind(-1)
    return torch.stack([da, db + torch.cos(a) * da, dc + da * b + a * db], -1)


GENERIC = Problem(
    "generic",
    _generic,
    _bend(_Z0),
    0.0,
    2.0,
    lambda t: _bend(_flow(t + 0.5 * torch.sin(t), _Z0)),
)

# The same over six units of time, where orders seven and eight show above rounding.
LONG = replace(GENERIC, name="generic-long", t0=2.0, t1=8.0, y0=GENERIC.at(2.0))

_P0 = torch.tensor([1.0, 0.0], dtype=torch.float64)

PENDULUM = Problem(
    "oscillator",
    lambda t, y: torch.stack([y[..., 1], -4 * y[..., 0]], -1),
    _P0,
    0.0,
    3.0,
    lambda t: torch.stack([torch.cos(2 * t), -2 * torch.sin(2 * t)], -1),
)

PROBLEMS = (LINEAR, LOGISTIC, SWELL, GENERIC, COMPLEX, PENDULUM)
