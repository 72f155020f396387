"""How moving averages of weights forget: settings, which import nothing of torch.

After step n, counted from 1, an average moves to  beta_n average + (1 - beta_n) weights.

Source: Song et al. (2021), appendix C (warm-up, as in TensorFlow); Karras et al., "Elucidating the
design space" (2022), appendix F (half-life with ramp-up); Karras et al., "Analyzing and improving
the training dynamics of diffusion models" (2024), section 3 and appendix C (power functions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, final

import numpy as np


class Schedule(Protocol):
    """How much the average keeps."""

    def decays(self, step: int, batch: int) -> tuple[float, ...]:
        """Return beta for each average that is kept, at step 1, 2, ... of `batch` samples."""
        ...


@final
@dataclass(frozen=True)
class Fixed:
    """The same beta always.

    Args:
        decay: beta.
    """

    decay: float = 0.999

    def decays(self, step: int, batch: int) -> tuple[float, ...]:
        """Return beta."""
        return (self.decay,)


@final
@dataclass(frozen=True)
class WarmUp:
    """beta_n = min(decay, (1 + n) / (10 + n)).

    Args:
        decay: beta in the end.
    """

    decay: float = 0.999

    def decays(self, step: int, batch: int) -> tuple[float, ...]:
        """Return beta_n."""
        return (min(self.decay, (1 + step) / (10 + step)),)


@final
@dataclass(frozen=True)
class HalfLife:
    """beta = 2^(-batch / h), h = min(half-life, ramp times the samples seen).

    Args:
        samples: half-life in samples shown.
        ramp: share of the training so far that h may take; 0 for no ramp-up.
    """

    samples: float = 500_000
    ramp: float = 0.05

    def decays(self, step: int, batch: int) -> tuple[float, ...]:
        """Return beta_n."""
        half = self.samples
        if self.ramp > 0:
            half = min(half, self.ramp * step * batch)
        return (0.5 ** (batch / max(half, 1e-8)),)


@final
@dataclass(frozen=True)
class PowerFunction:
    """beta_n = (1 - 1/n)^(gamma + 1): the average over k <= n with density proportional to k^gamma.

    Averages of two widths, kept at several times, give that of any other width (`reconstruct`).

    Args:
        widths: relative standard deviations of the densities; gamma follows.
    """

    widths: tuple[float, ...] = (0.05, 0.10)

    def decays(self, step: int, batch: int) -> tuple[float, ...]:
        """Return beta_n for each width."""
        return tuple((1 - 1 / step) ** (exponent(w) + 1) for w in self.widths)


Choice: TypeAlias = Fixed | WarmUp | HalfLife | PowerFunction
"""The schedules by name, for settings."""


def exponent(width: float) -> float:
    """Return the gamma whose density k^gamma on [0, 1] has the standard deviation `width`.

    The deviation is sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), so gamma is the largest root of
    gamma^3 + 7 gamma^2 + (16 - 1/w^2) gamma + 12 - 1/w^2.

    Raises:
        ValueError: no gamma >= 0 has this width.
    """
    if not 0 < width <= 12**-0.5:
        raise ValueError(f"a width of {width} is no relative standard deviation; choose one in (0, 0.288].")
    square = width**-2
    return float(np.roots([1, 7, 16 - square, 12 - square]).real.max())
