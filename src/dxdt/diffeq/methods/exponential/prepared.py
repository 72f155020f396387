"""What an exponential integrator knows of a solve on a known grid: the course, and what the equation prepared.

A course is numbers alone. They follow from the solver, the grid and the affine part, which an equation may name
by a hashable value, ``affine``: samplers that run again and again on one grid then make them once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.schemes import course
from dxdt.diffeq.methods.exponential.tables import Course, Taken
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.tree import leaves

__all__ = ["Guide", "guide"]

_COURSES: OrderedDict[Hashable, Course] = OrderedDict()
_KEPT = 32


@dataclass(frozen=True, eq=False)
class Guide:
    """A course of one solve.

    Attributes:
        course: the numbers.
        sights: what the equation prepared, by recipe, evaluation and step, or None.
    """

    course: Course
    sights: Sequence[Sequence[dict[int, Any]]] | None

    def sight(self, taken: Taken, stage: int) -> Any:
        """What was prepared for one evaluation."""
        if self.sights is None or taken.place is None:
            return None
        recipe, step = taken.place
        return self.sights[recipe][stage][step]


def guide(solver: Any, eq: Rows, y: Tensor) -> Guide:
    """The guide of the grid in the outlook of ``eq``."""
    # What is kept must serve solves that are differentiated, whatever the mode of this one.
    with torch.inference_mode(False):
        found = _course(solver, eq, y)
        return Guide(found, _sights(eq, found) if found.columns == 1 else None)


def _course(solver: Any, eq: Rows, y: Tensor) -> Course:
    times, outlook = eq.outlook.times, eq.outlook
    assert times is not None
    affine = getattr(eq.equation, "affine", None)
    if affine is None:
        return course(solver, eq, y, times)
    shape = (times.shape, times.tobytes(), outlook.dense, outlook.errors)
    key = (affine, solver, shape, eq.layout.rows, eq.layout.per_sample, y.dtype, y.device)
    try:
        found = _COURSES.get(key)
    except TypeError:  # a part of the equation has no hash
        return course(solver, eq, y, times)
    if found is None:
        found = _COURSES[key] = course(solver, eq, y, times)
        if len(_COURSES) > _KEPT:
            _COURSES.popitem(last=False)
    return found


def _sights(eq: Rows, found: Course) -> list[list[dict[int, Any]]] | None:
    """What the equation prepares for all evaluations of a course, asked once."""
    if getattr(eq.equation, "foresee", None) is None:
        return None
    foresight = getattr(eq.equation, "foresight", None)
    key = (foresight, eq.layout.dtypes[0])
    try:
        known = foresight is not None and key in found.prepared
    except TypeError:  # a part of the equation has no hash
        known, foresight = False, None
    if known:
        return found.prepared[key]
    with torch.enable_grad():  # a forward pass that is formed again later runs without
        made = _prepared(eq, found)
    if any(x.requires_grad for x in leaves(made) if isinstance(x, Tensor)):
        return None  # each step forms again what it is to be differentiated by
    if foresight is not None:
        if len(found.prepared) >= _KEPT:
            found.prepared.clear()
        found.prepared[key] = made
    return made


def _prepared(eq: Rows, found: Course) -> list[list[dict[int, Any]]] | None:
    steps = [torch.from_numpy(r.mask[:, 0]).nonzero().flatten() for r in found.recipes]
    wanted = [t.squeeze(1)[own] for r, own in zip(found.recipes, steps, strict=True) for t in r.times]
    like = torch.empty((), dtype=eq.layout.dtypes[0], device=eq.layout.device)
    prepared = cast(Any, eq.equation).foresee(torch.cat(wanted), like)
    if prepared is None:
        return None
    rest = iter(prepared)
    return [
        [dict(zip(own.tolist(), rest)) for _ in r.times]  # noqa: B905 - one iterator for all of them
        for r, own in zip(found.recipes, steps, strict=True)
    ]
