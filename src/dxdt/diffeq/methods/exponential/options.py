"""Options of exponential integrators: where the nodes lie, how an end is corrected, how a solve begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Corrector", "Inside", "Preserving", "Rising"]


@final
@dataclass(frozen=True)
class Inside:
    """Nodes inside the step: an exponential Runge-Kutta method of order 2 or 3, with an error estimate.

    Args:
        r: first node as a fraction of the step in lam; 1/2 for order 2 and 1/3 for order 3 by default. The
            second node of order 3 is 2/3, which its order needs.

    Raises:
        ValueError: a node that is not in (0, 1].
    """

    r: float | None = None

    def __post_init__(self) -> None:
        if self.r is not None and not 0 < self.r <= 1:
            raise ValueError(f"Inside(r={self.r}): choose 0 < r <= 1")

    def nodes(self, order: int) -> tuple[float, ...]:
        """The fractions of a method of this order."""
        first = (1 / 3 if order == 3 else 0.5) if self.r is None else self.r
        return (first, 2 / 3) if order == 3 else (first,)


@final
@dataclass(frozen=True)
class Corrector:
    """Adams-Moulton with the answer at the end of a step, one order above its predictor.

    Args:
        again: evaluate once more after the correction. Without it the answer at the prediction serves
            the correction and the next step (UniPC, SA-Solver), so that a step costs one evaluation;
            what is saved, and the end, is then the prediction.
    """

    again: bool = False


@final
@dataclass(frozen=True)
class Preserving:
    """Begin with steps of a Runge-Kutta method of one order less, so that no order is lost."""


@final
@dataclass(frozen=True)
class Rising:
    """Begin with orders 1, 2, ... at one evaluation a step, as most samplers do: the order is 2 at most."""
