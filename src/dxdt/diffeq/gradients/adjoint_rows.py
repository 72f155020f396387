"""The adjoint of an equation as an equation on rows, for the backward solve of ``Backsolve``."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Controller, Scale
from dxdt.diffeq.loop.plan import Attempt
from dxdt.diffeq.loop.save import polynomial
from dxdt.diffeq.problem.conversion import to_stratonovich
from dxdt.diffeq.problem.equation import Meter, Rows
from dxdt.ops.times import END, START, Table, Ticks, factors, from_host, moments, scaled_sum
from dxdt.ops.tree import Layout

__all__ = ["NODES", "WEIGHTS", "AdjointRows", "NoisyAdjointRows"]

# Gauss-Legendre nodes and weights on [0, 1] for the parameter integral over a step.
NODES = Table.of(0.5 * (np.polynomial.legendre.leggauss(4)[0] + 1))
WEIGHTS = Table.of(0.5 * np.polynomial.legendre.leggauss(4)[1])


@dataclass(eq=False)
class AdjointRows:
    """State and adjoint as one equation on rows ``[y, a]``, or ``[y, a, parameter integral]``.

    Attributes:
        equation: the forward equation.
        shared: tensors whose gradients are integrals.
        seminorm: whether errors of the integrals do not count.
        full: whether the integrals are part of the state (where there is one clock).
    """

    equation: Rows
    shared: list[Tensor]
    seminorm: bool

    def __post_init__(self) -> None:
        layout = self.equation.layout
        # A complex gradient does not fit into real rows.
        self.full = layout.rows == 1 and not any(x.is_complex() for x in self.shared)
        self.meter = Meter(checked=True)
        self.noise = self.kind = None
        self.sizes = [x.numel() for x in self.shared] if self.full else []
        self.layout: Layout = replace(layout, size=2 * layout.size + sum(self.sizes))
        self.sums = [torch.zeros_like(x) for x in self.shared]

    @property
    def integrates(self) -> bool:
        """Whether the integrals are quadratures over the steps."""
        return bool(self.shared) and not self.full

    def scale(self, controller: Controller) -> Scale | None:
        """How errors are measured: tolerances of the state hold for its adjoint too, and the least
        of them for the integrals where these count."""
        scale = controller.scale(self.equation.layout)
        if scale is None:
            return None
        n, extra = self.equation.layout.size, sum(self.sizes)
        atol, rtol = (
            torch.cat([x, x, x.min().expand(extra)]) if isinstance(x, Tensor) else x for x in (scale.atol, scale.rtol)
        )
        if not (self.seminorm and extra):
            return Scale(atol, rtol, scale.norm)
        return Scale(atol, rtol, lambda ratio: scale.norm(ratio[:, : 2 * n]))

    def start(self, y: Tensor, a: Tensor) -> Tensor:
        """Rows at the end of the span; rows that failed are zero."""
        y = torch.where(torch.isfinite(y), y, 0.0)
        return torch.cat([y, a, y.new_zeros(y.shape[0], sum(self.sizes))], -1)

    def reseed(self, state: Tensor, rows: Tensor, y: Tensor, cot: Tensor) -> Tensor:
        """The stored state put back, the cotangent of the saved value added."""
        n = self.equation.layout.size
        state = state.clone()
        state[rows, :n] = y
        state[rows, n : 2 * n] += cot
        return state

    def adjoint(self, state: Tensor) -> Tensor:
        """a, ``(R, n)``."""
        n = self.equation.layout.size
        return state[:, n : 2 * n]

    def totals(self, state: Tensor) -> list[Tensor]:
        """Gradients of the shared tensors."""
        if not self.full:
            return self.sums
        pieces = state[0, 2 * self.equation.layout.size :].split(self.sizes)
        return [p.reshape(x.shape).to(x.dtype) for p, x in zip(pieces, self.shared, strict=True)]

    def slope(self, t: np.ndarray, y: Tensor) -> Tensor:
        """f(t, y) at one time a row."""
        t = t[0] if not self.layout.per_sample else t
        (time,) = moments(t, t * 0, START, self.layout)
        with torch.no_grad():
            return self.equation.drift(time, y)

    def between(self, low: Ticks, high: Ticks) -> AdjointRows:
        """The same of an equation that is shown no other times; it adds to the same integrals and counts."""
        twin = copy(self)
        twin.equation = self.equation.between(low, high)
        return twin

    def drift(self, t: Tensor, rows: Tensor) -> Tensor:
        """Time derivative of [y, a, integrals]."""
        self.meter.evaluations += 1
        n = self.equation.layout.size
        wanted = self.shared if self.full else []
        with torch.enable_grad():
            y = rows[:, :n].detach().requires_grad_()
            f = self.equation.drift(t, y)
            pulled = pulled_back(f, [y, *wanted], -rows[:, n : 2 * n])
        return torch.cat([f.detach(), pulled[0], *(p.reshape(1, -1).to(f.dtype) for p in pulled[1:])], -1)

    def accumulate(self, attempt: Attempt, dense: Tensor) -> None:
        """Add int a^T df/dtheta over an accepted step, by Gauss quadrature on its dense output."""
        at, n = attempt.at, self.equation.layout.size
        ok = np.atleast_1d(attempt.ok)
        length = np.where(ok, np.atleast_1d(at.dt), 0.0)
        times = moments(at.t, at.dt, NODES, self.layout)
        for node, weight, time in zip(NODES.numbers, WEIGHTS.numbers, times, strict=True):
            rows = at.y + polynomial(dense, from_host(np.full(len(ok), node), at.y))
            factor = from_host(-weight * length, at.y)[:, None]
            self.meter.evaluations += 1
            with torch.enable_grad():
                f = self.equation.drift(time, rows[:, :n].detach())
                pulled = pulled_back(f, self.shared, factor * rows[:, n : 2 * n])
            for total, p in zip(self.sums, pulled, strict=True):
                total += p


def pulled_back(f: Tensor, inputs: list[Tensor], cot: Tensor) -> list[Tensor]:
    if not inputs:
        return []
    if not f.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    pulled = torch.autograd.grad(f, inputs, cot, allow_unused=True)
    return [torch.zeros_like(x) if p is None else p for p, x in zip(pulled, inputs, strict=True)]


@dataclass(eq=False)
class NoisyAdjointRows(AdjointRows):
    """The same along a random path, in Stratonovich calculus, where the chain rule holds.

        da = - (df/dy)^T a dt - (d(g dW)/dy)^T a,     dL/dtheta = int a^T (df + d(g dW))/dtheta

    An Ito equation is converted first. g of the adjoint is not formed: ``diffusion`` hands its
    arguments on, and ``spread`` takes one transposed product of g dW. X. Li, T. Wong, R. Chen,
    D. Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS (2020).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.equation = replace(self.equation, equation=to_stratonovich(self.equation.stochastic))
        self.full, self.sizes = False, []
        self.layout = replace(self.layout, size=2 * self.equation.layout.size)
        self.noise, self.kind = self.equation.noise, self.equation.kind

    def diffusion(self, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where g is wanted."""
        return t, rows

    def spread(self, g: tuple[Tensor, Tensor], w: Tensor) -> Tensor:
        """g dW of [y, a]."""
        (t, rows), n = g, self.equation.layout.size
        with torch.enable_grad():
            y = rows[:, :n].detach().requires_grad_()
            kick = self.equation.spread(self.equation.diffusion(t, y), w)
            (pulled,) = pulled_back(kick, [y], -rows[:, n:])
        return torch.cat([kick.detach(), pulled], -1)

    def increment(self, t: Ticks, dt: Ticks, index: Ticks) -> Any:
        """What the random path does over [t, t + dt]."""
        return self.equation.increment(t, dt, index)

    def accumulate(self, attempt: Attempt, dense: Tensor) -> None:
        """Add the integrals over an accepted step by the trapezoid rule, which is Stratonovich's."""
        at, n = attempt.at, self.equation.layout.size
        ok = np.atleast_1d(attempt.ok)
        moving = torch.from_numpy(ok).to(at.y.device)[:, None]
        w = self.equation.increment(at.t, at.dt, attempt.index).W
        (h,) = factors(END, at.dt, at.y)
        times = moments(at.t, at.dt, _ENDS, self.layout)
        for time, rows in zip(times, (at.y, at.y + dense.sum(0)), strict=True):
            self.meter.evaluations += 1
            with torch.enable_grad():
                y = rows[:, :n].detach()
                kick = self.equation.spread(self.equation.diffusion(time, y), w)
                moved = scaled_sum(kick, h, self.equation.drift(time, y))
                cot = torch.where(moving, -0.5 * rows[:, n:], 0.0)
                pulled = pulled_back(moved, self.shared, cot)
            for total, p in zip(self.sums, pulled, strict=True):
                total += p


_ENDS = np.array([0.0, 1.0])
