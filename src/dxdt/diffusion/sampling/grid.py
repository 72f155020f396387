"""Grids of times from the prior to the data, for any process, in float64.

With u = i / N, and sigma = c / a = exp(-lam),

    Time        t = t1 + u (t0 - t1)
    Quadratic   sqrt(t) is linear in u
    CosineTime  t = t0 + (t1 - t0) (1 + cos(pi u)) / 2, dense at both ends
    LogSNR      lam is linear in u
    Karras      sigma^(1 / rho) is linear in u
    Angle       arctan((sigma e^centre)^(1 / spread)) is linear in u, long at both ends of lam

Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), equation 5;
Song et al., "Denoising diffusion implicit models" (2021), appendix D.2; Lu et al., "DPM-Solver" (2022), section 3.4.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.processes.process import Process

__all__ = ["Angle", "CosineTime", "Given", "Karras", "Landing", "LogSNR", "Quadratic", "Time", "TimeGrid"]


class TimeGrid(ABC):
    """A rule that places the times of a sampler."""

    def __call__(
        self, process: Process, steps: int, t1: float | Tensor | None = None, t0: float | Tensor | None = None
    ) -> Float[Tensor, "steps+1 ..."]:
        """Return `steps` + 1 falling times from t1 to t0, ``(steps + 1,)``, or ``(steps + 1, batch)``.

        Args:
            process: the diffusion.
            steps: steps of the sampler, at least 1.
            t1: beginning, the time of the prior by default; a number, or one for each sample ``(batch,)``.
            t0: end, the process's own by default, likewise.

        Raises:
            ValueError: `steps` below 1, or ends that are not inside the process or not in order, or at which
                what the grid divides evenly is infinite.
        """
        if isinstance(steps, bool) or steps < 1:
            raise ValueError(f"{type(self).__name__}: steps={steps} goes nowhere; give at least 1.")
        last = process.t1 if t1 is None else t1
        first = min(process.t0, 0.5 * float(torch.as_tensor(last).min())) if t0 is None else t0
        ends = torch.broadcast_tensors(*(torch.as_tensor(t, dtype=torch.float64).cpu() for t in (last, first)))
        _check_ends(self, process, *ends)
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64).reshape(-1, *(1,) * ends[0].ndim)
        times = self.place(process, u, *ends).clone()
        times[0], times[-1] = ends
        if not bool(torch.isfinite(times).all() and (times.diff(dim=0) < 0).all()):
            raise ValueError(
                f"{type(self).__name__}: {steps} steps from {ends[0].tolist()} to {ends[1].tolist()} do not fall "
                f"strictly under {process!r}; take fewer steps, or a longer span."
            )
        return times

    @abstractmethod
    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """Return the times at fractions `u` of the way."""


def _check_ends(grid: TimeGrid, process: Process, t1: Tensor, t0: Tensor) -> None:
    if not bool(((t0 >= 0) & (t0 < t1) & (t1 <= process.t1)).all()):
        raise ValueError(
            f"{type(grid).__name__}: a grid from {t1.tolist()} to {t0.tolist()} is not inside the process; "
            f"choose 0 <= t0 < t1 <= {process.t1:g}."
        )


def _lam(grid: TimeGrid, process: Process, t: Tensor) -> Tensor:
    """log(a / c), where it is finite."""
    lam = process.lam(t)
    if not bool(torch.isfinite(lam).all()):
        raise ValueError(
            f"{type(grid).__name__}: log(a / c) is infinite at t={t.tolist()} under {process!r}; begin and end where "
            f"it is finite, such as t1={0.999 * process.t1:g} or t0={process.t0:g}, or use Time()."
        )
    return lam


@final
@dataclass(frozen=True)
class Time(TimeGrid):
    """Steps of equal length in time."""

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        return t1 + u * (t0 - t1)


@final
@dataclass(frozen=True)
class Quadratic(TimeGrid):
    """Steps of equal length in the square root of time: shorter near the data."""

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        return (t1.sqrt() + u * (t0.sqrt() - t1.sqrt())).square()


@final
@dataclass(frozen=True)
class CosineTime(TimeGrid):
    """Chebyshev's points: shorter steps near both ends."""

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        return t0 + (t1 - t0) * (0.5 * math.pi * u).cos().square()


@final
@dataclass(frozen=True)
class LogSNR(TimeGrid):
    """Steps of equal length in lam = log(a / c).

    Args:
        lowest: where lam begins below it, minus infinity included, the first step goes there at once and the
            others are equal; minus infinity for equal steps always.
    """

    lowest: float = -math.inf

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        n, end = len(u) - 1, _lam(self, process, t0)
        start = process.lam(t1)
        far = start < self.lowest
        start = torch.where(far, self.lowest, start) if n > 1 else start
        if not bool(torch.isfinite(start).all()):
            _lam(self, process, t1)
        rest = ((n * u - 1) / max(n - 1, 1)).clamp(min=0)
        return process.time(start + torch.where(far, rest, u) * (end - start))


@final
@dataclass(frozen=True)
class Karras(TimeGrid):
    """Steps of equal length in (c / a)^(1 / rho).

    Args:
        rho: 7 by default; larger means shorter steps near the data.

    Raises:
        ValueError: `rho` is not positive.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"Karras: rho={self.rho} is not positive; choose 7, say.")

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        high, low = ((-_lam(self, process, t) / self.rho).exp() for t in (t1, t0))
        return process.time(-self.rho * (high + u * (low - high)).log())


@final
@dataclass(frozen=True)
class Angle(TimeGrid):
    """Steps of equal length in phi, tan(phi) = (e^centre c / a)^(1 / spread): shortest where lam is `centre`.

    At high noise all that is known is the mean, and near the data only details are left, so few steps are
    best spent between. With many steps, or a large spread, it is `LogSNR`. phi is a right angle at pure noise
    and zero at the data, so both may be ends.

    Args:
        centre: of lam = log(a / c).
        spread: in lam; max(2, 0.3 (steps + 1)) by default, measured in the guide to samplers.
        lowest: where lam begins below it, phi begins as if there.

    Raises:
        ValueError: `spread` is not positive.
    """

    centre: float = -1.0
    spread: float | None = None
    lowest: float = -5.5

    def __post_init__(self) -> None:
        if self.spread is not None and not self.spread > 0:
            raise ValueError(f"Angle: spread={self.spread} is not positive; choose 2, say.")

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        width = self._width(len(u))
        end = process.lam(t0)
        first, last = self._angle(self._begin(process.lam(t1), end), width), self._angle(end, width)
        return process.time(self._lam(first + u * (last - first), width))

    def before_data(self, process: Process, steps: int) -> float:
        """Return the time before the last of `steps` steps to the data, the process's own early time at least."""
        width = self._width(steps)
        start, end = (process.lam(torch.tensor(t, dtype=torch.float64)) for t in (process.t1, process.t0))
        first = self._angle(self._begin(start, end), width)
        return max(process.t0, float(process.time(self._lam(first / steps, width))))

    def _begin(self, start: Tensor, end: Tensor) -> Tensor:
        return torch.where(end > self.lowest, start.clamp(min=self.lowest), start)

    def _width(self, steps: int) -> float:
        return max(2.0, 0.3 * steps) if self.spread is None else self.spread

    def _angle(self, lam: Tensor, width: float) -> Tensor:
        return ((self.centre - lam) / width).exp().atan()

    def _lam(self, angle: Tensor, width: float) -> Tensor:
        return self.centre - width * angle.tan().log()


@final
@dataclass(frozen=True, eq=False)
class Given(TimeGrid):
    """Times of your own, falling from the first to the last.

    Args:
        times: at least two.

    Raises:
        ValueError: fewer than two times, or times that do not fall strictly.
    """

    times: Sequence[float] | Tensor = field(default=())

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64).detach().cpu()
        if times.ndim < 1 or len(times) < 2 or not bool((times.diff(dim=0) < 0).all()):
            raise ValueError("Given: the times of a sampler fall from the prior to the data; give two or more, sorted.")
        object.__setattr__(self, "times", times)

    def __call__(
        self, process: Process, steps: int | None = None, t1: Any = None, t0: Any = None
    ) -> Float[Tensor, "steps+1 ..."]:
        """Return the times.

        Raises:
            ValueError: `steps`, `t1` or `t0` are given and disagree with them, or they leave the process.
        """
        times = torch.as_tensor(self.times)
        if steps is not None and steps != len(times) - 1:
            raise ValueError(f"Given: {len(times)} times make {len(times) - 1} steps, not {steps}; leave steps out.")
        for name, told, own in (("t1", t1, times[0]), ("t0", t0, times[-1])):
            if told is not None and not torch.allclose(torch.as_tensor(told, dtype=torch.float64), own):
                raise ValueError(f"Given: {name}={told} is not an end of the times given; leave it out.")
        _check_ends(self, process, times[0], times[-1])
        return times.clone()

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """Return the times, whatever `u` is."""
        return torch.as_tensor(self.times)


@final
@dataclass(frozen=True)
class Landing(TimeGrid):
    """Another grid, and a last step from its end to t = 0, where an exponential integrator lands on the data.

    Args:
        grid: for all steps but the last.
    """

    grid: TimeGrid

    def __call__(
        self, process: Process, steps: int, t1: float | Tensor | None = None, t0: float | Tensor | None = None
    ) -> Float[Tensor, "steps+1 ..."]:
        """Return the inner grid of `steps` - 1 steps from t1 to t0, and zero.

        Raises:
            ValueError: `steps` below 2, or whatever the inner grid refuses.
        """
        if steps < 2:
            raise ValueError(f"Landing: steps={steps} leaves none before the last; give at least 2.")
        times = self.grid(process, steps - 1, t1, t0)
        return torch.cat([times, torch.zeros_like(times[:1])])

    def place(self, process: Process, u: Tensor, t1: Tensor, t0: Tensor) -> Tensor:
        """Return the inner grid's times."""
        return self.grid.place(process, u, t1, t0)
