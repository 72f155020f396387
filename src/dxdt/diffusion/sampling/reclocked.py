"""A reverse equation on another clock: lam = log(a / c) in place of t."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffeq.problem.equation import Equation
from dxdt.diffusion.processes.process import along
from dxdt.diffusion.sampling.reverse import ProbabilityFlow
from dxdt.ops.autodiff import jvp

__all__ = ["InLogSNR", "clocked"]


@final
@dataclass(frozen=True, eq=False)
class InLogSNR(Equation):
    """The probability flow as an equation in lam = log(a / c).

        dx/dlam = (dx/dt) / (dlam/dt),    t = t(lam)

    The schedule drops out of it, and with it what a schedule may have in jumps of its rates, which solvers of
    high order feel: a table of levels, above all.

    Args:
        flow: the probability flow; lam must be finite over the span.
    """

    flow: ProbabilityFlow

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        """The denoiser, searched for parameters."""
        return self.flow.fields

    def drift(self, lam: Tensor, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return dx/dlam at `lam` () or (batch,) and `y` (batch, *shape)."""
        process = self.flow.process
        t = process.time(lam.double())
        _, speed = jvp(process.lam, t, torch.ones_like(t))
        return self.flow.drift(t, y) / along(speed, y)


def clocked(
    name: str, flow: ProbabilityFlow, ends: tuple[float, float], log_snr: bool | None
) -> tuple[ProbabilityFlow | InLogSNR, tuple[float, float]]:
    """Return a flow and its span, in t or, where `log_snr`, in lam; None decides for it where rates jump.

    Raises:
        ValueError: lam is infinite at an end of the span.
    """
    if not (flow.process.jumps if log_snr is None else log_snr):
        return flow, ends
    first, last = flow.process.lam(torch.tensor(ends, dtype=torch.float64)).tolist()
    if log_snr is None and not (math.isfinite(first) and math.isfinite(last)):
        return flow, ends
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ValueError(
            f"{name}: log(a / c) goes from {first:g} to {last:g} over times {ends[0]:g} to {ends[1]:g}; "
            "leave log_snr out, or give t0 and t1 at which some data and some noise are left."
        )
    return InLogSNR(flow), (first, last)
