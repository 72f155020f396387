"""How to draw samples, as settings of a command."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How to draw samples.

    Attributes:
        steps: of the solver; 0 for one that chooses its own by a tolerance.
        solver: name of any solver of the library.
        order: of a solver that has several; 0 for its own.
        grid: where the steps are: Time, LogSNR, Karras, ...; the solver's own by default.
        tau: share of noise, 0 for the probability flow, 1 for the reverse SDE; by default what the solver is made for.
        t0: last time; the best for the number of steps by default.
        seed: names the samples; sample k is the same for every count and batch.
        label: class to draw, or all in turn.
        batch: images at a time.
    """

    steps: int = 20
    solver: str | None = None
    order: int = 0
    grid: str | None = None
    tau: float | None = None
    t0: float | None = None
    seed: int = 0
    label: int | None = None
    batch: int = 250
