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

from dxdt.ops.clock import Ticks
from dxdt.solve.exponential_lines import HEAD

__all__ = ["Course", "Formula", "Recipe", "Taken"]


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
    """

    rows: np.ndarray | None
    times: Sequence[Tensor]
    lines: Sequence[Cut]
    error: Sequence[Any] | None
    between: Sequence[Cut]
    lam: np.ndarray
    data: np.ndarray | bool


class Course:
    """The recipes of a solve with R rows; ``joint`` says whether the field sees one time for all."""

    def __init__(self, recipes: Sequence[Recipe], rows: int, joint: bool, like: Tensor) -> None:
        self.recipes = [r for r in recipes if r.mask.any()]
        self.rows, self.joint = rows, joint
        self.like = like
        self.columns = self.recipes[0].mask.shape[1]
        self.last = self.recipes[0].mask.shape[0] - 1
        self._lists: dict[int, Any] = {}
        self._times: dict[int, Sequence[Tensor]] = {}

    def take(self, index: Ticks, dt: Ticks) -> list[Taken]:
        """The recipes of step number ``index`` of each row; rows with dt = 0 stand still."""
        if self.columns == 1:
            number = _common(index, dt)
            if number is not None:
                return [
                    self._shared(r, min(number, self.last)) for r in self.recipes if r.mask[min(number, self.last), 0]
                ]
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

    def _shared(self, r: Recipe, i: int) -> Taken:
        """Step i for all rows: numbers are floats."""
        lines = [_split(self._list(f.numbers)[i], f, self._list(f.lam)[i]) for f in r.lines]
        between = [_split(self._list(f.numbers)[i], f, self._list(f.lam)[i]) for f in r.between]
        error = None if r.error is None else self._list(r.error)[i]
        times = [self._time(t)[i] for t in r.times]
        if not self.joint:
            times = [t.expand(self.rows) for t in times]
        return Taken(None, times, lines, error, between, np.array([self._list(r.lam)[i]]), bool(r.data[i, 0]))

    def _list(self, x: Tensor) -> Any:
        """A tensor ``(N, 1, ...)`` as nested lists."""
        found = self._lists.get(id(x))
        if found is None:
            found = self._lists[id(x)] = x.squeeze(1).tolist()
        return found

    def _time(self, t: Tensor) -> Sequence[Tensor]:
        found = self._times.get(id(t))
        if found is None:
            found = list(t.squeeze(1).to(self.like.device).unbind(0))
            self._times[id(t)] = found
        return found

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
            return _split(parts, f, f.lam[place].detach().cpu().numpy())

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


def _split(numbers: Sequence[Any], f: Formula, lam: Any) -> Cut:
    end = HEAD + f.stages
    return Cut(numbers[:HEAD], numbers[HEAD:end], numbers[end:], np.atleast_1d(lam))


def _host(x: Ticks) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def _common(index: Ticks, dt: Ticks) -> int | None:
    """The number of the step, where it is one for all rows and all of them move."""
    if isinstance(dt, Tensor):
        return None
    if np.ndim(index) == 0 and np.ndim(dt) == 0:
        return int(index) if dt != 0 else None
    index = np.atleast_1d(index)
    if (index == index[0]).all() and np.all(dt != 0):
        return int(index[0])
    return None
