"""Preconditionings: how a network is scaled around so that its inputs and targets have unit size.

    D(y; sigma) = c_skip y + c_out F(c_in y, c_noise)

Each is written for x_t = a x0 + c eps, with y = xi / a and sigma = c / a, as what multiplies xi and F in
data and noise; nothing divides by a where the definition does not, and noise is formed without
the cancellation in (xi - a D) / c.

Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022),
equation 7 and table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor

from dxdt.diffusion.processes.schedule import Linear, Schedule

__all__ = [
    "EDMPreconditioning",
    "IDDPMPreconditioning",
    "Preconditioning",
    "SelfPreconditioned",
    "VEPreconditioning",
    "VPPreconditioning",
    "Weights",
]


@final
@dataclass(frozen=True)
class Weights:
    """The network's input into * xi, and what its output F means.

    Attributes:
        into: c_in / a.
        data_skip, data_out: data = data_skip xi + data_out F; c_skip / a and c_out.
        noise_skip, noise_out: noise = noise_skip xi + noise_out F.
    """

    into: Tensor
    data_skip: Tensor
    data_out: Tensor
    noise_skip: Tensor
    noise_out: Tensor


class Preconditioning(Protocol):
    """The scales around a network at signal a and noise c (float64)."""

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        ...

    def told(self, sigma: Tensor) -> Tensor:
        """Return c_noise, what the network is told about sigma = c / a."""
        ...


@final
@dataclass(frozen=True)
class EDMPreconditioning:
    """c_skip = s^2 / n, c_out = sigma s / sqrt(n), c_in = 1 / sqrt(n), n = sigma^2 + s^2; c_noise = log(sigma) / 4.

    Args:
        std: s, the standard deviation of the data.

    Raises:
        ValueError: `std` is not positive.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"EDMPreconditioning: data of deviation {self.std} have no size; choose std > 0.")

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        norm = (c.square() + (a * self.std).square()).rsqrt()
        signal = a * self.std * norm
        return Weights(norm, signal * self.std * norm, c * self.std * norm, c * norm.square(), -signal)

    def told(self, sigma: Tensor) -> Tensor:
        """Return log(sigma) / 4."""
        return 0.25 * sigma.log()


@final
@dataclass(frozen=True)
class VPPreconditioning:
    """c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = (levels - 1) t(sigma).

    Args:
        schedule: the schedule of the training, for t(sigma).
        levels: how finely its times were counted.
    """

    schedule: Schedule = Linear()
    levels: int = 1000

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        return _noise_weights(a, c)

    def told(self, sigma: Tensor) -> Tensor:
        """Return (levels - 1) t, where 1 + sigma^2 = exp(B(t))."""
        return (self.levels - 1) * self.schedule.inverse(torch.log1p(sigma.square()))


@final
@dataclass(frozen=True)
class VEPreconditioning:
    """c_skip = 1, c_out = sigma, c_in = 1, c_noise = log(sigma / 2)."""

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        zero = torch.zeros_like(a)
        return Weights(1 / a, 1 / a, c / a, zero, zero - 1)

    def told(self, sigma: Tensor) -> Tensor:
        """Return log(sigma / 2)."""
        return (0.5 * sigma).log()


@final
@dataclass(frozen=True)
class IDDPMPreconditioning:
    """c_skip = 1, c_out = -sigma, c_in = 1 / sqrt(sigma^2 + 1), c_noise = M - 1 - j, u_j nearest to sigma.

        u_M = 0,  u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, floor) - 1),
        abar_j = sin^2((pi / 2) j / (M (1 + offset)))

    Args:
        levels: M.
        floor, offset: of the table.
    """

    levels: int = 1000
    floor: float = 0.001
    offset: float = 0.008

    @cached_property
    def table(self) -> Tensor:
        """u_0 > u_1 > ... > u_M = 0, float64."""
        m = self.levels
        bar = [math.sin(0.5 * math.pi * j / (m * (1 + self.offset))) ** 2 for j in range(m + 1)]
        u = [0.0]
        for j in range(m, 0, -1):
            u.append(math.sqrt((u[-1] ** 2 + 1) / max(bar[j - 1] / bar[j], self.floor) - 1))
        return torch.tensor(u[::-1], dtype=torch.float64)

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def _rising(self, device: torch.device) -> Tensor:
        """Return the levels in rising order, copied to a device once."""
        if device not in self._copies:
            self._copies[device] = self.table.flip(0).to(device)
        return self._copies[device]

    def _nearest(self, sigma: Tensor) -> Tensor:
        rising = self._rising(sigma.device)
        above = torch.searchsorted(rising, sigma.detach().contiguous()).clamp(1, self.levels)
        flat = above.reshape(-1)
        # Selection, since indexing with a single number reads it on the host.
        low, high = (rising.index_select(0, place).reshape(above.shape) for place in (flat - 1, flat))
        return self.levels - torch.where(sigma - low < high - sigma, above - 1, above)

    def rounded(self, sigma: Tensor) -> Tensor:
        """Return the level u_j nearest to each sigma: the only ones seen in training."""
        place = self.levels - self._nearest(sigma.double())
        return self._rising(sigma.device).index_select(0, place.reshape(-1)).reshape(sigma.shape).to(sigma.dtype)

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        return _noise_weights(a, c)

    def told(self, sigma: Tensor) -> Tensor:
        """Return M - 1 - j as a number."""
        return (self.levels - 1 - self._nearest(sigma)).to(sigma.dtype)


@final
@dataclass(frozen=True)
class SelfPreconditioned:
    """The network answers D(y; sigma) itself: c_skip = 0, c_out = c_in = 1, and it is told sigma.

    For networks stored with their preconditioning inside, under any process.
    """

    def weights(self, a: Tensor, c: Tensor) -> Weights:
        """Return the weights of xi and F."""
        return Weights(1 / a, torch.zeros_like(a), torch.ones_like(a), 1 / c, -a / c)

    def told(self, sigma: Tensor) -> Tensor:
        """Return sigma."""
        return sigma


def _noise_weights(a: Tensor, c: Tensor) -> Weights:
    """F is the noise, its input has unit size."""
    zero = torch.zeros_like(a)
    return Weights((a.square() + c.square()).rsqrt(), 1 / a, -c / a, zero, zero + 1)
