"""The processes that the tests run over, one with a mean to revert to among them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dxdt.diffusion import VE, VP, Linear, Process, RectifiedFlow, SubVP


@dataclass(frozen=True)
class MeanReverting(Process):
    """a = exp(-k t), b = 1 - a, c = L sqrt(1 - a^2): three functions are all that it takes."""

    k: float = 5.0
    width: float = 0.4

    def a(self, t: Tensor) -> Tensor:
        return (-self.k * t).exp()

    def b(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.k * t)

    def variance(self, t: Tensor) -> Tensor:
        return -(self.width**2) * torch.expm1(-2 * self.k * t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.log1p((-2 * (lam + math.log(self.width))).exp()) / (2 * self.k)

    @property
    def prior_std(self) -> float:
        return self.width


PROCESSES = [VP(), VP(Linear(0.5, 8.0)), SubVP(), VE(), RectifiedFlow(), MeanReverting()]
