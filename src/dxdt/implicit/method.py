"""One step of an iteration: what a method is, how a row ends, and what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.tree import Tree

__all__ = ["RUNNING", "ImplicitError", "Iterate", "Method", "Result", "State", "Status"]

State = tuple[Tensor, ...]
"""What a method carries from step to step: tensors whose first axis is the row."""

RUNNING = 0
"""Code of a row that still iterates (see ``Status.code``)."""


class Status(Enum):
    """How a row ended; the value is the sentence to the user."""

    SUCCESS = "converged"
    MAX_STEPS = (
        "took max_steps iterations without converging: "
        "begin nearer to the solution, raise max_steps, or use a method that is kept from running away (a dogleg)"
    )
    NOT_FINITE = "met values that are not finite: begin elsewhere, or use a method with a trust region or damping"
    SINGULAR = "met a singular Jacobian: begin elsewhere, or use LevenbergMarquardt(), which needs no inverse"
    NO_BRACKET = "was given ends at which the function has one sign: give ends between which it changes its sign"
    STALLED = "cannot get lower, though the gradient is not small: check the derivative, or loosen the tolerances"

    @property
    def code(self) -> int:
        """Positive integer under which the loop keeps it."""
        return list(Status).index(self) + 1

    @property
    def ok(self) -> bool:
        """Whether the row converged."""
        return self is Status.SUCCESS


class Iterate(NamedTuple):
    """One iteration.

    Attributes:
        y: where it leads, ``(R, n)``.
        state: state of the method there.
        size: distance from the solution in units of the tolerance, as far as the method can tell, ``(R,)``;
            a row has converged at 1 or below.
        failed: code of the status of rows that cannot go on, 0 for the others, ``(R,)``; or None.
    """

    y: Tensor
    state: State
    size: Tensor
    failed: Tensor | None = None


class Method(ABC):
    """A map from an iterate to the next.

    Class facts:
        kind: the most general kind of problem that it solves; it solves all more special ones too.
    """

    kind: ClassVar[Kind]

    def check(self, problem: Problem, y: Tensor) -> None:  # noqa: B027
        """Raise ValueError if this method cannot solve such a problem from y."""

    @abstractmethod
    def init(self, problem: Problem, y: Tensor) -> State:
        """The state before the first iteration."""

    @abstractmethod
    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        """One iteration of every row; no row reads another."""


@dataclass(frozen=True)
class Result:
    """A solution.

    Attributes:
        y: the solution, with the structure of y0.
        status: one ``Status``, or a list with one for each sample.
        steps: iterations, a number, or ``(B,)`` per sample.
        size: last distance in units of the tolerance, ``()`` or ``(B,)``.
        evaluations: calls of the function, the whole batch being one call; derivatives come on top.
    """

    y: Tree
    status: Any
    steps: Any
    size: Tensor
    evaluations: int

    @property
    def ok(self) -> Any:
        """Whether it, or each sample of it, converged."""
        return self.status.ok if isinstance(self.status, Status) else torch.tensor([s.ok for s in self.status])


class ImplicitError(RuntimeError):
    """An iteration that failed; ``result`` holds what it had reached."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are made again from their message alone, without which a pool would wait for ever.
        return type(self), (*self.args, self.result)
