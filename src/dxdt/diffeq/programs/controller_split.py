"""A controller as a program sees it: its rule, and the times and tolerances that are inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, singledispatch
from typing import Any

import numpy as np

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.control.controller import PID, Clip, Constant, Controller, Grid
from dxdt.diffeq.control.revisit import Revisit

__all__ = ["static"]

_GRID = Grid([0.0, 1.0])
# Where nothing ever arrives.
_NEVER = 1e300


@singledispatch
def static(controller: Controller) -> tuple[Controller, Any]:
    """The controller without what is passed as an input, and that input: times ``(N, 1)`` or
    ``(N, R)``, or two of ``(N,)`` and that of the rule between them, or None. Equal ones share programs.

    Raises:
        CannotCompile: the controller has no compiled form.
    """
    raise CannotCompile(f"{type(controller).__name__} has no compiled form yet")


@static.register
def _(controller: PID) -> tuple[Controller, Any]:
    numbers = isinstance(controller.rtol, float) and isinstance(controller.atol, float)
    return _same_tolerances(controller) if numbers else replace(controller, rtol=1.0, atol=1.0), None


@static.register
def _(controller: Grid) -> tuple[Controller, Any]:
    return _GRID, controller.times


@static.register
def _(controller: Constant) -> tuple[Controller, Any]:
    return Constant(), None


@static.register
def _(controller: Clip) -> tuple[Controller, Any]:
    inner, table = static(controller.controller)
    tables = tuple(_padded(x) if some else None for x, some in zip(_lists(controller), controller.some, strict=True))
    return _clip(inner, *controller.some), (*tables, table)


@static.register
def _(controller: Revisit) -> tuple[Controller, Any]:
    inner, table = static(controller.controller)
    return _revisit(inner, controller.depth), table


def _lists(controller: Clip) -> tuple[np.ndarray, np.ndarray]:
    return controller.steps, controller.jumps_at


def _padded(times: np.ndarray) -> np.ndarray:
    # Lists of similar lengths share a program.
    size = max(8, 1 << (len(times) - 1).bit_length())
    return np.append(times, np.full(size - len(times), _NEVER))


@lru_cache(maxsize=256)
def _same_tolerances(controller: PID) -> PID:
    return replace(controller, rtol=1.0, atol=1.0)


@lru_cache(maxsize=256)
def _revisit(inner: Controller, depth: int) -> Revisit:
    return Revisit(inner, depth)


@lru_cache(maxsize=256)
def _clip(inner: Controller, steps: bool, jumps: bool) -> Clip:
    return Clip(inner, [0.0] * steps, [0.0] * jumps)
