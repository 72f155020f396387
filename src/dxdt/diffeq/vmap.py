"""Solves inside ``torch.vmap``: the mapped axis becomes rows with clocks of their own.

A solve chooses its steps by reading numbers, which a mapped tensor does not have. Here the mapped
axis is made explicit, so that each of its entries is a row of a per-sample solve, with its own
steps and status, as in a loop over the entries. Fields, conditions and maps still see one entry:
they are called inside the same ``vmap`` on mapped rows, so that what they captured may be mapped
as well (such as parameters under ``functional_call``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from dxdt.diffeq.gradients.gradient import Direct, Gradient
from dxdt.diffeq.loop.event import Event
from dxdt.diffeq.loop.save import Save
from dxdt.diffeq.problem.equation import Equation, Field, StochasticEquation
from dxdt.diffeq.solution import Solution, Stats
from dxdt.ops.tree import Tree, leaves, tree_map

__all__ = ["Fold", "Mapped", "fold", "has_values", "refuse_rule"]


def has_values(x: Tensor) -> bool:
    """Whether numbers can be read from a tensor: no ``torch.vmap`` maps it, at any level, and nothing exports it."""
    if torch.compiler.is_exporting():
        return False
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def refuse_rule(gradient: Gradient) -> None:
    """Raise where a rule that is not part of the graph meets a transform of ``torch.func``.

    Raises:
        ValueError: the rule is not `Direct` and a transform is active.
    """
    if isinstance(gradient, Direct) or _functorch.peek_interpreter_stack() is None:
        return
    raise ValueError(
        f"{type(gradient).__name__} is invisible to torch.func.grad, jvp and vmap: use "
        f"gradient=dxdt.Direct() inside them, or torch.autograd.grad outside"
    )


@dataclass(frozen=True, eq=False)
class Axis:
    """One mapped axis, and how entries of it lie in rows.

    Attributes:
        level: which ``vmap``.
        size: entries.
        batch: samples in an entry, or None where an entry is one row.
    """

    level: int
    size: int
    batch: int | None

    def is_mapped(self, x: Any) -> bool:
        """Whether a value carries this axis outermost."""
        return isinstance(x, Tensor) and _functorch.is_batchedtensor(x) and _functorch.maybe_get_level(x) == self.level

    def spread(self, x: Tensor) -> Tensor:
        """The axis in front, explicit, of a tensor that may not have it."""
        if not self.is_mapped(x):
            return x.expand(self.size, *x.shape)
        at = _functorch.maybe_get_bdim(x)
        return _functorch.get_unwrapped(x).movedim(at, 0)

    def rows(self, x: Tensor) -> Tensor:
        """Entries, or samples of entries, along axis 0."""
        x = self.spread(x)
        return x if self.batch is None else x.flatten(0, 1)

    def enter(self, rows: Tensor, at: int = 0) -> Tensor:
        """Rows along axis ``at`` as the ``vmap`` sees them."""
        if self.batch is not None:
            rows = rows.unflatten(at, (self.size, self.batch))
        return _functorch._add_batch_dim(rows, at, self.level)

    def over(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function (t, y, *args) on rows, called inside the ``vmap``."""

        def on_rows(t: Tensor, y: Tree, *args: Any) -> Any:
            value = f(self.enter(t), tree_map(self.enter, y), *args)
            return tree_map(lambda x: self.rows(x) if isinstance(x, Tensor) else x, value)

        return on_rows


@dataclass(frozen=True, eq=False)
class Mapped:
    """An equation on the rows of a mapped axis."""

    equation: Equation
    axis: Axis

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """f(t, y) of every row."""
        return self.axis.over(self.equation.drift)(t, y, *args)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The callables of the equation, searched for parameters."""
        return self.equation.fields


@dataclass(frozen=True, eq=False)
class Fold:
    """A problem whose mapped axis has become rows.

    Attributes:
        axis: the axis.
        problem: arguments of the solve that changed.
    """

    axis: Axis
    problem: dict[str, Any]

    def unfold(self, solution: Solution) -> Solution:
        """The solution as the ``vmap`` sees it; ``status`` is a list with one for each row."""
        axis, stats = self.axis, solution.stats

        def second(x: Tensor) -> Tensor:
            return axis.enter(x, 1) if x.dim() > 1 else x

        steps, accepted, rejected = (axis.enter(x) for x in (stats.steps, stats.accepted, stats.rejected))
        optional = (None if x is None else second(x) for x in (solution.events, solution.which))
        events, which = optional
        return Solution(
            second(solution.ts),
            tree_map(second, solution.ys),
            solution.status,
            Stats(steps, accepted, rejected, stats.evaluations),
            second(solution.reached),
            None,
            None if solution.t1 is None else axis.enter(solution.t1),
            events,
            which,
        )


def fold(equation: Equation, y0: Tree, t: Any, problem: dict[str, Any], per_sample: bool) -> Fold | None:
    """The problem with its outermost mapped axis made explicit, or None where nothing is mapped.

    Args:
        equation, y0, t: of the solve.
        problem: its ``args``, ``save``, ``event``, ``driver``, ``dt`` and ``throw``.
        per_sample: whether axis 0 of ``y0`` is a batch.

    Raises:
        ValueError: the problem has a part that cannot be mapped.
    """
    stack = _functorch.get_interpreter_stack() or ()
    done = {equation.axis.level} if isinstance(equation, Mapped) else set()
    lowest = min(done, default=1 << 30)
    for interpreter in reversed(stack):
        if interpreter.key() != _functorch.TransformType.Vmap:
            return None
        if interpreter.level() >= lowest:
            continue
        size = _functorch.CVmapInterpreterPtr(interpreter).batchSize()
        flat = leaves(y0)
        batch = flat[0].shape[0] if per_sample and flat and flat[0].dim() else None
        axis = Axis(interpreter.level(), size, batch)
        if _is_needed(axis, equation, y0, t, problem):
            return _folded(axis, equation, y0, t, problem)
    return None


def _is_needed(axis: Axis, equation: Equation, y0: Tree, t: Any, problem: dict[str, Any]) -> bool:
    """Whether anything that a solve depends on is mapped: given, or captured by a field."""
    flat = leaves((y0, problem["args"]))
    if any(axis.is_mapped(x) for x in (*flat, *_ends(t))):
        return True
    if not all(isinstance(x, Tensor) for x in leaves(y0)) or not isinstance(equation, Equation):
        return False
    first = _ends(t)[0] if _ends(t) else 0.0
    like = leaves(y0)[0]
    time = torch.as_tensor(first, dtype=like.dtype.to_real() if like.dtype.is_complex else like.dtype)
    time = time if axis.batch is None else time.expand(axis.batch)
    event = problem["event"]
    events = () if event is None else event if isinstance(event, Sequence) else (event,)
    maps = [f for e in events if isinstance(e, Event) for f in (e.condition, e.reset) if f is not None]
    values = [f(time.to(like.device), y0, *problem["args"]) for f in (equation.drift, *maps)]
    return any(axis.is_mapped(x) for x in leaves(values))


def _ends(t: Any) -> list[Any]:
    if isinstance(t, Tensor):
        return list(t.unbind(0)) if t.dim() else []
    return list(t) if t is not None else []


def _folded(axis: Axis, equation: Equation, y0: Tree, t: Any, problem: dict[str, Any]) -> Fold:
    _check(axis, equation, problem)
    event = problem["event"]
    if event is not None:
        event = [_event(axis, e) for e in (event if isinstance(event, Sequence) else (event,))]
    points = [
        axis.rows(x if isinstance(x, Tensor) else torch.as_tensor(x)) if _splits(axis, x) else x for x in _ends(t)
    ]
    save = problem["save"]
    save = save if isinstance(save, Save) or save is None else Save(times=save)
    if save is not None and save.times is not None and axis.batch is not None:
        save = replace(save, times=_columns(axis, save.times))
    if save is not None and save.fn is not None:
        save = replace(save, fn=axis.over(save.fn))
    changed = dict(
        equation=Mapped(equation, axis),
        y0=tree_map(axis.rows, y0),
        t=points,
        save=save,
        event=event,
        per_sample=True,
        throw=True if problem["throw"] is None and axis.batch is None else problem["throw"],
    )
    return Fold(axis, changed)


def _splits(axis: Axis, x: Any) -> bool:
    """Whether an end of the span differs between rows."""
    return axis.is_mapped(x) or (axis.batch is not None and getattr(x, "ndim", 0) == 1)


def _columns(axis: Axis, times: Any) -> Any:
    """Save times with one column for each row, where they had one for each sample."""
    times = torch.as_tensor(times)
    return times if times.dim() < 2 else times.repeat(1, axis.size)


def _event(axis: Axis, event: Event) -> Event:
    if not isinstance(event, Event):
        return event
    reset = None if event.reset is None else axis.over(event.reset)
    return replace(event, condition=axis.over(event.condition), reset=reset)


def _check(axis: Axis, equation: Equation, problem: dict[str, Any]) -> None:
    remedy = "make the axis a batch yourself and solve with per_sample=True"
    if isinstance(equation, StochasticEquation):
        raise ValueError(
            f"{type(equation).__name__} has noise, which torch.vmap would share between its entries: {remedy}"
        )
    if problem["driver"] is not None:
        raise ValueError(f"a solve with a driver does not work inside torch.vmap: {remedy}")
    save = problem["save"]
    times = save.times if isinstance(save, Save) else save
    for name, value in (("dt", problem["dt"]), ("save", times)):
        if any(axis.is_mapped(x) for x in leaves(value)):
            raise ValueError(
                f"{name} is mapped by torch.vmap, which only y0, args, t and what fields capture may be: {remedy}"
            )
    if isinstance(save, Save) and save.dense:
        raise ValueError(f"a dense path does not work inside torch.vmap: save at times, or {remedy}")
