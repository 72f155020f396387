"""How a sample of a solve ended."""

from __future__ import annotations

from enum import Enum

__all__ = ["RUNNING", "Status"]

RUNNING = 0
"""Code of a row that still steps (see ``Status.code``)."""


class Status(Enum):
    """How a sample ended; the value is the sentence to the user."""

    SUCCESS = "reached the end of its span"
    MAX_STEPS = (
        "took max_steps attempted steps without reaching its end: "
        "raise max_steps, loosen the tolerances, or shorten the span"
    )
    NOT_FINITE = (
        "met values that are not finite: the field overflowed or returned NaN, or has no value at which an "
        "implicit stage holds; check it, or use a smaller step"
    )
    STEP_TOO_SMALL = (
        "needed a step below the smallest allowed: "
        "the problem is stiff or singular there, or the tolerances are too tight"
    )
    NO_STEP = "was given a next step that does not lead towards its end: the controller is wrong"
    EVENT = "was stopped by an event"
    REVISITS = "rejected more steps in a row than Revisit remembers: raise its depth, or loosen the tolerances"

    @property
    def code(self) -> int:
        """Positive integer under which the loop keeps it."""
        return list(Status).index(self) + 1

    @property
    def ok(self) -> bool:
        """Whether the sample ended as asked: at the end of its span or at an event."""
        return self in (Status.SUCCESS, Status.EVENT)
