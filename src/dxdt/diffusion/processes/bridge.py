"""Bridges: processes that end in their mean exactly, x_{t1} = mu, without any noise left.

There lam is minus infinity and the reverse equation is singular: a first step has to be drawn, from
`Process.posterior` with the data expected at t1, and solvers start after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from dxdt.diffusion.processes.reversion import Reversion
from dxdt.diffusion.processes.schedule import Constant, Schedule
from dxdt.diffusion.processes.scheduled import Scheduled

__all__ = ["BrownianBridge", "OUBridge"]


def _total(schedule: Schedule) -> float:
    """Return B(t1)."""
    return schedule.integral(torch.tensor(schedule.t1, dtype=torch.float64)).item()


def _left(total: float, so_far: Tensor) -> Tensor:
    """Return total - so_far, exactly zero within some roundings of the end, with its slope everywhere."""
    left = total - so_far
    return torch.where(left < 8 * torch.finfo(left.dtype).eps * total, left - left.detach(), left)


@final
@dataclass(frozen=True)
class BrownianBridge(Scheduled):
    """Brownian motion pinned at both ends: a = 1 - w, b = w, c = S sqrt(w (1 - w)), w = B(t) / B(t1).

    Args:
        std: S, the deviation that the motion would have at t1 without its pin.
        schedule: B, the clock of the motion; its own scale does not matter.

    Source: Li et al., "BBDM: image-to-image translation with Brownian bridge diffusion models"
    (2023); Liu et al., "I2SB: image-to-image Schrodinger bridge" (2023), for schedules.

    Raises:
        ValueError: `std` is not positive.
    """

    std: float = 1.0
    schedule: Schedule = Constant()

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"BrownianBridge: a deviation of {self.std} is no motion; choose std > 0.")
        _ = self._end

    @cached_property
    def _end(self) -> float:
        return _total(self.schedule)

    @property
    def centred(self) -> bool:
        """True."""
        return True

    def _share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return w and 1 - w."""
        w = self.schedule.integral(t) / self._end
        return w, _left(1.0, w)

    def a(self, t: Tensor) -> Tensor:
        """Return 1 - w."""
        return self._share(t)[1]

    def b(self, t: Tensor) -> Tensor:
        """Return w."""
        return self._share(t)[0]

    def variance(self, t: Tensor) -> Tensor:
        """Return S^2 w (1 - w)."""
        w, rest = self._share(t)
        return self.std**2 * w * rest

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -w', w', (c^2)' / (2 c) and S^2 w' (1 - 2 w)."""
        w, rest = self._share(t)
        dw = self.schedule.rate(t) / self._end
        dv = self.std**2 * dw * (rest - w)
        return -dw, dw, 0.5 * dv / self.c(t), dv

    def lam(self, t: Tensor) -> Tensor:
        """Return log((1 - w) / w) / 2 - log S."""
        w, rest = self._share(t)
        return 0.5 * (rest.log() - w.log()) - math.log(self.std)

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with w = 1 / (1 + S^2 exp(2 lam))."""
        w = torch.sigmoid(-2 * (lam + math.log(self.std)))
        return self.schedule.inverse(self._end * w)

    @property
    def prior_std(self) -> float:
        """Zero: x_{t1} = mu."""
        return 0.0


@final
@dataclass(frozen=True)
class OUBridge(Scheduled):
    """Mean reversion pinned to its mean at t1, Doob's transform of `MeanReverting` (GOUB).

        a = sinh(R) / sinh(Theta_1),  b = 1 - a,  c^2 = 2 L^2 sinh(Theta) sinh(R) / sinh(Theta_1)

    with Theta_1 = Theta(t1) and what remains of it, R = Theta_1 - Theta.

    Args:
        std: L, of the process that is pinned.
        schedule: Theta.

    Source: Yue et al., "Image restoration through generalized Ornstein-Uhlenbeck bridge" (2024),
    written with hyperbolic sines.

    Raises:
        ValueError: `std` is not positive.
    """

    std: float = 30 / 255
    schedule: Schedule = Reversion()

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"OUBridge: a stationary deviation of {self.std} is no noise; choose std > 0.")
        _ = self._end

    @cached_property
    def _end(self) -> float:
        return _total(self.schedule)

    @property
    def centred(self) -> bool:
        """True."""
        return True

    def a(self, t: Tensor) -> Tensor:
        """Return sinh(R) / sinh(Theta_1)."""
        return _left(self._end, self.schedule.integral(t)).sinh() / math.sinh(self._end)

    def b(self, t: Tensor) -> Tensor:
        """Return 1 - a, as 2 cosh(Theta_1 - Theta / 2) sinh(Theta / 2) / sinh(Theta_1)."""
        end, half = self._end, 0.5 * self.schedule.integral(t)
        return 2 * (end - half).cosh() * half.sinh() / math.sinh(end)

    def variance(self, t: Tensor) -> Tensor:
        """Return c^2."""
        end, total = self._end, self.schedule.integral(t)
        return 2 * self.std**2 * total.sinh() * _left(end, total).sinh() / math.sinh(end)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return -theta cosh(R) / sinh(Theta_1), -a', (c^2)' / (2 c), and
        2 L^2 theta sinh(R - Theta) / sinh(Theta_1)."""
        end, total = self._end, self.schedule.integral(t)
        left, pace = _left(end, total), self.schedule.rate(t) / math.sinh(end)
        da, dv = -pace * left.cosh(), 2 * self.std**2 * pace * (left - total).sinh()
        return da, -da, 0.5 * dv / self.c(t), dv

    def lam(self, t: Tensor) -> Tensor:
        """Return log(sinh(R) / (2 L^2 sinh(Theta) sinh(Theta_1))) / 2."""
        end, total = self._end, self.schedule.integral(t)
        scale = math.log(2 * self.std**2 * math.sinh(end))
        return 0.5 * (_left(end, total).sinh().log() - total.sinh().log() - scale)

    def time(self, lam: Tensor) -> Tensor:
        """Return the t with coth(Theta) = 2 L^2 exp(2 lam) + coth(Theta_1)."""
        excess = self.std**2 * (2 * lam).exp() + 1 / math.expm1(2 * self._end)
        return self.schedule.inverse(0.5 * torch.log1p(1 / excess))

    @property
    def prior_std(self) -> float:
        """Zero: x_{t1} = mu."""
        return 0.0
