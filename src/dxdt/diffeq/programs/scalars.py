"""Python numbers that change from solve to solve, made inputs of a program.

A number in ``args``, or one that a plain or partial function holds (in its closure, as an argument or a
default, or in a function that it holds) is a constant of generated code. Where it has another value the
next time, it becomes a tensor without axes, which every value shares; a field that needs the Python
number itself (in a branch, a size, ``math.exp``) keeps it as a constant. Whole numbers stay constants,
and so do attributes of objects: a program looks at them before each call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch

from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.probe import untouched
from dxdt.diffeq.problem.equation import ODE
from dxdt.diffeq.programs.field_key import identified
from dxdt.ops.reach import filled
from dxdt.ops.tree import flatten, tree_map

__all__ = ["keep_numbers", "lift"]

_PROGRAMS = 256
# Functions that a field holds are looked through as deep as ``identity`` does.
_DEPTH = 4
# The numbers that fields were first met with, by what identifies the field; None once they vary.
_met: dict[Any, tuple[float, ...] | None] = {}
# Fields that need their numbers as they are.
_fixed: set[Any] = set()


def lift(plan: Plan, y: torch.Tensor) -> Plan:
    """The plan with its numbers as tensors, if they vary and the field takes tensors for them."""
    equation = plan.equation
    if type(equation.equation) is not ODE:
        return plan
    numbers = (*_in_args(equation.args), *_in_field(equation.equation.field))
    if not numbers:
        return plan
    key = _key(plan)
    if key in _fixed:
        return plan
    if key not in _met:
        if len(_met) >= _PROGRAMS:
            del _met[next(iter(_met))]
        _met[key] = numbers
    if _met[key] == numbers:
        return plan
    first, _met[key] = _met[key] is not None, None
    args = tree_map(lambda x: _tensor(x) if isinstance(x, float) else x, equation.args)
    memo = {**equation.outlook.memo, "identity": (identified(plan), "numbers as inputs")}
    outlook = replace(equation.outlook, memo=memo)
    equation = replace(equation, equation=ODE(_lifted(equation.equation.field)), args=args, outlook=outlook)
    lifted = replace(plan, equation=equation)
    if first and not _agree(plan, lifted, y):
        keep_numbers(plan)
        return plan
    return lifted


def _agree(plan: Plan, lifted: Plan, y: torch.Tensor) -> bool:
    """Whether the field answers as before with tensors for its numbers: a ``isinstance`` may tell them apart."""
    with untouched(plan):
        (given,) = plan.equation.probe(plan.span.t0, y.detach().clone())
    try:
        with untouched(lifted):
            (other,) = lifted.equation.probe(plan.span.t0, y.detach().clone())
    except Exception:  # the field's own, whatever it is: it needs a Python number
        return False
    return torch.allclose(given, other, rtol=1e-3, atol=1e-6, equal_nan=True)


def keep_numbers(plan: Plan) -> None:
    """Note that the field of a plan cannot be traced with tensors for its numbers."""
    if len(_fixed) < _PROGRAMS:
        _fixed.add(_key(plan))


def _key(plan: Plan) -> Any:
    layout = plan.equation.layout
    return identified(plan), layout, flatten(plan.equation.args)[1]


def _in_args(args: tuple[Any, ...]) -> Iterator[float]:
    if args:
        yield from (x for x in flatten(args)[0] if isinstance(x, float))


def _in_field(f: Any, depth: int = _DEPTH) -> Iterator[float]:
    """Numbers that plain and partial functions hold, and those that they call."""
    if isinstance(f, float):
        yield f
    elif depth and _looked_through(f):
        for x in _parts(f):
            if isinstance(x, float | FunctionType | partial):
                yield from _in_field(x, depth - 1)


def _looked_through(f: Any) -> bool:
    if isinstance(f, FunctionType):
        return not (f.__module__ or "").startswith("torch")
    return type(f) is partial


def _parts(f: Any) -> tuple[Any, ...]:
    if isinstance(f, partial):
        return f.func, *f.args, *f.keywords.values()
    cells = [c.cell_contents for c in f.__closure__ or () if filled(c)]
    return *cells, *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()


def _tensor(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64, device="cpu")


def _lifted(f: Any, depth: int = _DEPTH) -> Any:
    """A function of the same code that holds tensors instead of numbers."""
    if isinstance(f, float):
        return _tensor(f)
    if next(_in_field(f, depth), None) is None:
        return f

    def inner(x: Any) -> Any:
        return _lifted(x, depth - 1)

    if isinstance(f, partial):
        return partial(inner(f.func), *map(inner, f.args), **{k: inner(x) for k, x in f.keywords.items()})
    cells = []
    for cell in f.__closure__ or ():
        value = inner(cell.cell_contents) if filled(cell) else None
        # What the function may write to stays where it was.
        cells.append(cell if not filled(cell) or value is cell.cell_contents else CellType(value))
    defaults = None if f.__defaults__ is None else tuple(map(inner, f.__defaults__))
    made = FunctionType(f.__code__, f.__globals__, f.__name__, defaults, tuple(cells))
    made.__kwdefaults__ = None if f.__kwdefaults__ is None else {k: inner(x) for k, x in f.__kwdefaults__.items()}
    made.__dict__.update(f.__dict__)
    return made
