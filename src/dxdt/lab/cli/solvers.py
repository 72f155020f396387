"""Samplers by name: any solver of the library, on times placed by any grid."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from dxdt import diffeq, diffusion
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffusion import TimeGrid


def _named(kind: type[Any]) -> dict[str, type[Any]]:
    rooms = {**vars(diffeq), **vars(diffusion)}
    return {
        name: c
        for name, c in rooms.items()
        if isinstance(c, type) and issubclass(c, kind) and c is not kind and not inspect.isabstract(c)
    }


def solver_named(name: str, order: int | None = None) -> Solver:
    """Return a solver by the name of its class, of an order where it has several.

    Args:
        name: Exponential, Heun, Tsit5, EulerMaruyama, ...; upper and lower case do not count.
        order: passed on to the class.

    Raises:
        ValueError: there is no such solver (the nearest is named), or it takes no order, or needs
            arguments that only Python can give.
    """
    kind = _look_up(name, _named(Solver), "solver")
    takes = inspect.signature(kind).parameters
    if order is not None and "order" not in takes:
        raise ValueError(f"{kind.__name__} has one order only; leave the order out.")
    given = {} if order is None else {"order": order}
    missing = [p for p, v in takes.items() if v.default is v.empty and p not in given and v.kind.name[:3] != "VAR"]
    if missing:
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}, which only Python can give; choose another.")
    return kind(**given)


def grid_named(name: str) -> TimeGrid:
    """Return a grid of times by the name of its class: Time, LogSNR, Karras, ...

    Raises:
        ValueError: there is no such grid; the nearest is named.
    """
    kinds = {n: c for n, c in _named(TimeGrid).items() if n not in ("Given", "Landing")}
    return _look_up(name, kinds, "grid")()


def _look_up(name: str, known: dict[str, type[Any]], what: str) -> type[Any]:
    folded = {n.lower().replace("_", ""): n for n in known}
    asked = name.lower().replace("_", "").replace("-", "")
    if asked in folded:
        return known[folded[asked]]
    near = difflib.get_close_matches(asked, folded, 1, 0.5)
    remedy = f"did you mean {folded[near[0]]}?" if near else f"known are {', '.join(sorted(known))}."
    raise ValueError(f"there is no {what} {name}; {remedy}")
