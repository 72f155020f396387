"""The formulas of a whole solve, made before it, or of one step, made in it.

A recipe is a formula for some of the steps: times of evaluations, and lines that add up their
answers. A course holds the recipes of a solver and says which step goes by which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.coefficients import HEAD
from dxdt.ops.times import Ticks

__all__ = ["Course", "Cut", "Formula", "Recipe", "Taken"]


class Formula(NamedTuple):
    """A line: numbers ``(N, C, 4 + stages + history)``, where it ends in lam ``(N, C)``."""

    numbers: Tensor
    stages: int
    lam: Tensor


@dataclass(frozen=True, eq=False)
class Recipe:
    """How some of the steps are taken; the leading axes ``(N, C)`` are steps and columns of clocks.

    Attributes:
        mask: the steps it is for.
        times: of the evaluations, each ``(N, C)``.
        lines: each followed by an evaluation, the last by none.
        error: weights of the stages in the error estimate ``(N, C, stages)``, or None.
        between: lines to a third and two thirds of the step, or none.
        lam: where the steps begin.
        data: steps that read the data of an answer, whatever the kind.
    """

    mask: np.ndarray
    times: Sequence[Tensor]
    lines: Sequence[Formula]
    error: Tensor | None
    between: Sequence[Formula]
    lam: Tensor
    data: np.ndarray


class Cut(NamedTuple):
    """A line of one step: its numbers as floats or ``(R, 1)`` tensors, and lam at its end ``(R,)``."""

    head: Sequence[Any]
    stages: Sequence[Any]
    history: Sequence[Any]
    lam: np.ndarray


class Taken(NamedTuple):
    """A recipe for one step.

    Attributes:
        rows: rows it is for, ``(R,)``, or None for all.
        times: of the evaluations, as the field sees them.
        lines, between: as in the recipe.
        error: weights of the stages, or None.
        lam: where the rows begin, ``(R,)``.
        data: rows that read the data; True for all, False for none.
        place: number of the recipe and of the step, where that is one for all rows.
    """

    rows: np.ndarray | None
    times: Sequence[Tensor]
    lines: Sequence[Cut]
    error: Sequence[Any] | None
    between: Sequence[Cut]
    lam: np.ndarray
    data: np.ndarray | bool
    place: tuple[int, int] | None = None


class Course:
    """The recipes of a solve with R rows; ``joint`` says whether the field sees one time for all.

    It holds numbers alone, of the device and dtype of ``like``, so that solves may share it, and ``prepared`` keeps
    what equations made for them.
    """

    def __init__(self, recipes: Sequence[Recipe], rows: int, joint: bool, like: Tensor) -> None:
        self.recipes = [r for r in recipes if r.mask.any()]
        self.rows, self.joint = rows, joint
        self.like = torch.empty((), dtype=like.dtype, device=like.device)
        self.columns = self.recipes[0].mask.shape[1]
        self.last = self.recipes[0].mask.shape[0] - 1
        self.prepared: dict[Any, Any] = {}
        self._steps: list[list[Taken]] = []

    def take(self, index: Ticks, dt: Ticks) -> list[Taken]:
        """The recipes of step number ``index`` of each row; rows with dt = 0 stand still."""
        if self.columns == 1:
            number = _common(index, dt)
            if number is not None:
                if not self._steps:
                    with torch.inference_mode(False):
                        self._steps = self._shared()
                return self._steps[min(number, self.last)]
        where = np.minimum(np.broadcast_to(np.asarray(index), (self.rows,)), self.last)
        still = np.broadcast_to(np.asarray(_host(dt)) == 0, (self.rows,))
        column = np.zeros(self.rows, dtype=np.int64) if self.columns == 1 else np.arange(self.rows)
        taken = []
        for r in self.recipes:
            rows = r.mask[where, column]
            if (rows & ~still).any() or rows.all():
                taken.append(self._gathered(r, where, column, still, rows))
        if len(taken) == 1:
            return [taken[0]._replace(rows=None)]
        return taken

    def _shared(self) -> list[list[Taken]]:
        """All steps, each for all rows: numbers are floats."""
        steps: list[list[Taken]] = [[] for _ in range(self.last + 1)]
        for number, r in enumerate(self.recipes):
            lines, between = ([_lists(f) for f in group] for group in (r.lines, r.between))
            error = None if r.error is None else r.error.squeeze(1).tolist()
            times = [self._seen(t) for t in r.times]
            lam = r.lam.detach().cpu().numpy()
            for i in np.flatnonzero(r.mask[:, 0]).tolist():
                cuts = [[_split(*f, i) for f in group] for group in (lines, between)]
                weights = None if error is None else error[i]
                seen = [t[i] for t in times]
                steps[i].append(Taken(None, seen, cuts[0], weights, cuts[1], lam[i], bool(r.data[i, 0]), (number, i)))
        return steps

    def _seen(self, t: Tensor) -> Sequence[Tensor]:
        """Each step's time as the field sees it."""
        flat = t.squeeze(1).to(self.like.device)
        return flat.unbind(0) if self.joint else flat.unsqueeze(1).expand(-1, self.rows).unbind(0)

    def _gathered(self, r: Recipe, where: np.ndarray, column: np.ndarray, still: np.ndarray, rows: np.ndarray) -> Taken:
        """Each row's own step: numbers are ``(R, 1)`` tensors."""
        place = torch.from_numpy(where), torch.from_numpy(column)
        idle = torch.from_numpy(still | ~rows)

        def cut(f: Formula) -> Cut:
            numbers = f.numbers[place]
            rest = torch.zeros_like(numbers)
            rest[:, 0] = 1.0
            numbers = torch.where(idle.to(numbers.device)[:, None], rest, numbers)
            parts = numbers.to(self.like.device, self.like.dtype).unsqueeze(-1).unbind(1)
            end = HEAD + f.stages
            lam = np.atleast_1d(f.lam[place].detach().cpu().numpy())
            return Cut(parts[:HEAD], parts[HEAD:end], parts[end:], lam)

        error = None
        if r.error is not None:
            weights = torch.where(idle[:, None], 0.0, r.error[place])
            error = weights.to(self.like.device, self.like.dtype).unsqueeze(-1).unbind(1)
        times = [t[place].to(self.like.device) for t in r.times]
        if self.joint:
            times = [t.squeeze(0) for t in times]
        data = r.data[where, column]
        read = bool(data[0]) if (data == data[0]).all() else data
        lam = r.lam[place].detach().cpu().numpy()
        return Taken(rows, times, [cut(f) for f in r.lines], error, [cut(f) for f in r.between], lam, read)


def _lists(f: Formula) -> tuple[list[list[float]], int, np.ndarray]:
    """A formula's numbers on the host, its stages, and where it ends."""
    return f.numbers.squeeze(1).tolist(), HEAD + f.stages, f.lam.detach().cpu().numpy()


def _split(numbers: list[list[float]], end: int, lam: np.ndarray, i: int) -> Cut:
    row = numbers[i]
    return Cut(row[:HEAD], row[HEAD:end], row[end:], lam[i])


def _host(x: Ticks) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def _common(index: Ticks, dt: Ticks) -> int | None:
    """The number of the step, where it is one for all rows and all of them move."""
    if isinstance(dt, Tensor):
        return None
    if type(index) is int or (np.ndim(index) == 0 and np.ndim(dt) == 0):
        return int(index) if dt != 0 else None
    index = np.atleast_1d(index)
    if (index == index[0]).all() and np.all(dt != 0):
        return int(index[0])
    return None
