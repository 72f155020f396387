"""Schedules of image restoration by mean reversion: T tabulated rates, in closed form at real t.

    Theta(t) = dt sum_{j = 1}^{t} theta_j,    dt = -log(eps) / sum_{j = 1}^{T} theta_j

so that exp(-Theta(T)) = eps; the curves below extend the sum from whole to real t. The original
tables begin with Theta(0) = 0; in the published sampler's fork theta_0 is counted too, which leaves
x_0 a little noisy and lam(0) finite.

Source: Luo et al., "Image restoration with mean-reverting SDEs" (2023), section 3 and released
code; Li et al., "MaRS: a fast sampler for mean reverting diffusion" (2025), released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor

__all__ = ["ConstantCurve", "CosineCurve", "Curve", "LinearCurve", "Reversion"]


class Curve(Protocol):
    """Rates theta_t of a table of `steps` steps, and their sums."""

    def rate(self, t: Tensor, steps: int) -> Tensor:
        """Return theta_t."""
        ...

    def total(self, t: Tensor, steps: int) -> Tensor:
        """Return the sum of theta_1 to theta_t."""
        ...

    def slope(self, t: Tensor, steps: int) -> Tensor:
        """Return the derivative of that sum in t, close to theta_{t + 1/2}."""
        ...

    def inverse(self, total: Tensor, steps: int) -> Tensor:
        """Return the t at which that sum equals `total`."""
        ...


@final
@dataclass(frozen=True)
class CosineCurve:
    """theta_t = 1 - cos^2(phi_t) / cos^2(phi_{-1}), phi_t = (pi/2) ((t + 1) / (T + 2) + s) / (1 + s).

    Args:
        offset: s.
    """

    offset: float = 0.008

    def _angles(self, steps: int) -> tuple[float, float, float]:
        """Return the angle per step (of 2 phi), 2 phi_{-1}, and 1 / (2 cos^2 phi_{-1})."""
        start = math.pi * self.offset / (1 + self.offset)
        return math.pi / ((steps + 2) * (1 + self.offset)), start, 0.5 / math.cos(0.5 * start) ** 2

    def rate(self, t: Tensor, steps: int) -> Tensor:
        """Return (cos 2 phi_{-1} - cos 2 phi_t) / (2 cos^2 phi_{-1}), as a product of sines."""
        turn, start, weight = self._angles(steps)
        half = 0.5 * turn * (t + 1)
        return 2 * weight * (half + start).sin() * half.sin()

    def total(self, t: Tensor, steps: int) -> Tensor:
        """Return the sum by Dirichlet's kernel S(t) = sin(turn t / 2) / sin(turn / 2).

        sum cos(2 phi_j) = S(t) cos(psi), psi = 2 phi_{(t + 1) / 2}; the sum of rates is split into
        (t - S) cos 2 phi_{-1} + S (cos 2 phi_{-1} - cos psi), which loses no digits for small t.
        """
        turn, start, weight = self._angles(steps)
        kernel = (0.5 * turn * t).sin() / math.sin(0.5 * turn)
        half = 0.25 * turn * (t + 3)
        rise = 2 * (half + start).sin() * half.sin()
        return weight * ((t - kernel) * math.cos(start) + kernel * rise)

    def slope(self, t: Tensor, steps: int) -> Tensor:
        """Return the derivative of the sum."""
        turn, start, weight = self._angles(steps)
        return weight * (math.cos(start) - 0.5 * turn / math.sin(0.5 * turn) * (turn * (t + 1.5) + start).cos())

    def inverse(self, total: Tensor, steps: int) -> Tensor:
        """Return t by Newton's method from between the two nearest whole steps.

        The sum is convex and its slope at most doubles within a step, so that six iterations reach
        rounding from any start; the last one is differentiable.
        """
        wanted = total.detach().double()
        nodes = self.total(torch.arange(steps + 1, dtype=torch.float64, device=total.device), steps)
        cell = torch.searchsorted(nodes, wanted).clamp(1, steps)
        flat = cell.reshape(-1)
        # Selection, since indexing with a single number reads it on the host.
        left, right = (nodes.index_select(0, place).reshape(cell.shape) for place in (flat - 1, flat))
        t = cell - 1 + (wanted - left) / (right - left)
        for _ in range(6):
            t = t - (self.total(t, steps) - wanted) / self.slope(t, steps)
        return (t - (self.total(t, steps) - total.double()) / self.slope(t, steps)).to(total.dtype)


@final
@dataclass(frozen=True)
class LinearCurve:
    """theta_t = k (low + (high - low) t / T), k = 1000 / (T + 1).

    Raises:
        ValueError: not 0 < low <= high.
    """

    low: float = 1e-4
    high: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(
                f"LinearCurve: rates from {self.low} to {self.high} are not positive and increasing; "
                "choose 0 < low <= high."
            )

    def _line(self, steps: int) -> tuple[float, float]:
        scale = 1000 / (steps + 1)
        return scale * self.low, scale * (self.high - self.low) / steps

    def rate(self, t: Tensor, steps: int) -> Tensor:
        """Return the rate on the line."""
        first, slope = self._line(steps)
        return first + slope * t

    def total(self, t: Tensor, steps: int) -> Tensor:
        """Return theta_0 t + slope t (t + 1) / 2."""
        first, slope = self._line(steps)
        return t * (first + 0.5 * slope * (t + 1))

    def slope(self, t: Tensor, steps: int) -> Tensor:
        """Return theta_0 + slope (t + 1/2)."""
        first, slope = self._line(steps)
        return first + slope * (t + 0.5)

    def inverse(self, total: Tensor, steps: int) -> Tensor:
        """Return the positive root of the parabola."""
        first, slope = self._line(steps)
        middle = first + 0.5 * slope
        return 2 * total / (middle + (middle**2 + 2 * slope * total).sqrt())


@final
@dataclass(frozen=True)
class ConstantCurve:
    """theta_t = 1."""

    def rate(self, t: Tensor, steps: int) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def total(self, t: Tensor, steps: int) -> Tensor:
        """Return t."""
        return t.clone()

    def slope(self, t: Tensor, steps: int) -> Tensor:
        """Return one."""
        return torch.ones_like(t)

    def inverse(self, total: Tensor, steps: int) -> Tensor:
        """Return the total."""
        return total.clone()


@final
@dataclass(frozen=True)
class Reversion:
    """The schedule Theta of a restoration model, on times 0 to T counted in its training steps.

    Args:
        curve: `CosineCurve()`, `LinearCurve()` or `ConstantCurve()`.
        steps: T.
        floor: eps, what is left of x_0 at T.
        from_zero: whether Theta(0) = 0, as in the original tables; False counts theta_0, as the
            fork does.

    Raises:
        ValueError: `steps` is below 1 or `floor` not in (0, 1).
    """

    curve: Curve = CosineCurve()
    steps: int = 100
    floor: float = 0.005
    from_zero: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.floor < 1:
            raise ValueError(
                f"Reversion: {self.steps} steps down to {self.floor} are no schedule; "
                "choose steps >= 1 and 0 < floor < 1."
            )
        _ = self.dt

    @cached_property
    def _head(self) -> float:
        first = torch.zeros((), dtype=torch.float64)
        return 0.0 if self.from_zero else self.curve.rate(first, self.steps).item()

    @cached_property
    def dt(self) -> float:
        """Factor that turns sums of rates into Theta."""
        last = torch.tensor(float(self.steps), dtype=torch.float64)
        return -math.log(self.floor) / (self.curve.total(last, self.steps).item() + self._head)

    @property
    def t0(self) -> float:
        """One: the first step of the table."""
        return 1.0 if self.steps > 1 else 1e-3

    @property
    def t1(self) -> float:
        """T."""
        return float(self.steps)

    def increment(self, t: Tensor) -> Tensor:
        """Return theta_t dt = Theta(t) - Theta(t - 1), what one step of the table forgets."""
        return self.dt * self.curve.rate(t, self.steps)

    def integral(self, t: Tensor) -> Tensor:
        """Return Theta(t)."""
        return self.dt * (self.curve.total(t, self.steps) + self._head)

    def rate(self, t: Tensor) -> Tensor:
        """Return theta(t) = Theta'(t)."""
        return self.dt * self.curve.slope(t, self.steps)

    def inverse(self, total: Tensor) -> Tensor:
        """Return the t at which Theta(t) equals `total`; zero for what lies before Theta(0)."""
        return self.curve.inverse((total / self.dt - self._head).clamp(min=0), self.steps)
