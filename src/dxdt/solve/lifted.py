"""Python numbers that change from solve to solve, made inputs of a program.

A number in ``args``, or one that a plain function closes over, is a constant of generated code. Where
it has another value the next time, it becomes a tensor without axes, which every value shares; a field
that needs the Python number itself (in a branch, a size, ``math.exp``) keeps it as a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn

from dxdt.ops.tree import flatten, tree_map
from dxdt.solve.equation import ODE, _filled
from dxdt.solve.identity import identified
from dxdt.solve.plan import Plan
from dxdt.solve.untouched import untouched

__all__ = ["keep_numbers", "lift"]

_PROGRAMS = 256
# The numbers that fields were first met with, by what identifies the field; None once they vary.
_met: dict[Any, tuple[float, ...] | None] = {}
# Fields that need their numbers as they are.
_fixed: set[Any] = set()


def lift(plan: Plan, y: torch.Tensor) -> Plan:
    """The plan with its numbers as tensors, if they vary and the field takes tensors for them."""
    equation = plan.equation
    if type(equation.equation) is not ODE:
        return plan
    numbers = (*_in_args(equation.args), *_in_cells(equation.equation.field))
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


def _in_cells(f: Any) -> Iterator[float]:
    if isinstance(f, FunctionType):
        yield from (c.cell_contents for c in f.__closure__ or () if _filled(c) and isinstance(c.cell_contents, float))


def _tensor(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64, device="cpu")


def _lifted(f: Any) -> Any:
    """A function of the same code that closes over tensors instead of numbers."""
    if isinstance(f, nn.Module) or not isinstance(f, FunctionType) or not any(True for _ in _in_cells(f)):
        return f
    cells = []
    for cell in f.__closure__ or ():
        number = _filled(cell) and isinstance(cell.cell_contents, float)
        cells.append(CellType(_tensor(cell.cell_contents)) if number else cell)
    made = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, tuple(cells))
    made.__kwdefaults__ = f.__kwdefaults__
    return made
