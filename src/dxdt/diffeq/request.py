"""What a call of `solve` means: which times it gives, and by which rule its steps are chosen."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.control.controller import Constant, Controller, Grid
from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.loop.save import Save
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.methods.stochastic import EulerMaruyama, StochasticHeun
from dxdt.diffeq.methods.stochastic_area import SRIW1, ShARK, SPaRK
from dxdt.diffeq.problem.equation import StochasticEquation
from dxdt.diffeq.problem.span import Interval, numbers
from dxdt.diffeq.vmap import has_values
from dxdt.ops.times import to_host
from dxdt.ops.tree import Layout

__all__ = [
    "ELSEWHERE",
    "chosen_controller",
    "chosen_solver",
    "expect",
    "first_step",
    "is_list_of_times",
    "span_and_save",
]

ELSEWHERE = {
    "adjoint_params": "params",
    "dt0": "dt",
    "event_fn": "event",
    "events": "event",
    "method": "solver",
    "saveat": "save",
    "step_size": "dt",
    "stepsize_controller": "controller",
    "t_eval": "save",
    "tol": "rtol",
}
"""What torchdiffeq, diffrax and SciPy call the options of `solve`."""


def is_list_of_times(t: Any) -> bool:
    """Whether `t` lists times to save at: a tensor or an array, or a sequence of more than two."""
    if isinstance(t, (Tensor, np.ndarray)):
        return t.ndim > 0 and t.shape[0] > 1
    return isinstance(t, (list, tuple)) and len(t) > 2


def span_and_save(
    t: Any, save: Any, solver: Solver, controller: Controller | None, dt: Any, tolerances: bool
) -> tuple[Any, Any, Controller | None]:
    """The span, what is saved, and the controller of a solve.

    Times in a list are where the solution is saved, from the first to the last. Two old readings of such a list, as the
    grid of steps, are kept with a deprecation sentence: beside `save=`, and for methods that cannot choose their steps.

    Raises:
        ValueError: the times turn round, or are given twice, in `t` and in `save`, beside steps chosen otherwise.
    """
    if not is_list_of_times(t):
        return t, save, controller
    span, count = (t[0], t[-1]), len(t)
    _check_order(t)
    free = controller is None and dt is None and not tolerances
    if save is None:
        save = Save(times=_together(t))
        if free and (solver.facts.error_order is None or solver.facts.known_grid):
            _old_reading(f"{type(solver).__name__} does not choose its steps", count)
            controller = Grid(_on_host(t))
    elif count > 2 and free:
        _old_reading("save= says what is kept", count)
        controller = Grid(_on_host(t))
    elif count > 2 and not isinstance(controller, Grid):
        raise ValueError(
            f"t lists {count} times to save at and save= says what is kept: give the span as t=(t0, t1), "
            "and the times as save=times"
        )
    return span, save, controller


def _together(times: Any) -> Any:
    """A list of times that has tensors in it as one tensor, which keeps their graph."""
    if isinstance(times, (Tensor, np.ndarray)) or not any(isinstance(x, Tensor) for x in times):
        return times
    rows = [torch.as_tensor(x).to(torch.float64) for x in times]
    return torch.stack(torch.broadcast_tensors(*rows))


def _on_host(times: Any) -> np.ndarray:
    """Times in a list, tensors among them, as an array."""
    if isinstance(times, Tensor):
        return to_host(times)
    rows = [to_host(x) if isinstance(x, Tensor) else np.asarray(x, np.float64) for x in times]
    return np.stack(np.broadcast_arrays(*rows)).astype(np.float64)


def _check_order(times: Any) -> None:
    """Refuse times that turn round, where they can be read."""
    if isinstance(times, Tensor) and not has_values(times):
        return
    try:
        host = _on_host(times)
    except (TypeError, ValueError, RuntimeError):
        return  # what is wrong with such times is said where they are read one by one
    steps, way = np.diff(host, axis=0), np.sign(host[-1] - host[0])
    if ((steps * way < 0) | (steps != 0) & (way == 0)).any():
        raise ValueError("t lists times that are not in one direction: sort them from t0 to t1")


def _old_reading(cause: str, count: int) -> None:
    warnings.warn(
        f"{cause}, so the {count} times in t are its steps too, for now: name a grid of steps, as in "
        "controller=dxdt.Grid(times), or give dt (a list of times alone says where to save)",
        DeprecationWarning,
        stacklevel=4,
    )


_STOCHASTIC: tuple[Solver, ...] = (ShARK(), SRIW1(), SPaRK(), EulerMaruyama(), StochasticHeun())
"""Methods for equations with noise, the most accurate first."""


def chosen_solver(equation: Any, driver: Any, controller: Any, dt: Any, tolerances: bool) -> Solver:
    """The method of a solve that names none: `Tsit5`, or with noise the first that suits calculus, noise and driver.

    With space-time Levy areas these are `ShARK` (additive noise), `SRIW1` (Ito, diagonal or scalar noise) and `SPaRK`
    (Stratonovich); without, or for other noise, `EulerMaruyama` (Ito) and `StochasticHeun` (Stratonovich).

    Raises:
        ValueError: steps are to be chosen, and none of them estimates an error.
    """
    if not isinstance(equation, StochasticEquation):
        return Tsit5()
    noise, levy = equation.noise, getattr(driver, "levy", None)
    free = controller is None and (dt is None or tolerances)
    adaptive = free or (isinstance(controller, Controller) and controller.adaptive)
    for solver in _STOCHASTIC:
        claims = solver.facts.noise
        assert claims is not None
        suits = claims.admits(noise) and claims.converges(equation) and (claims.levy is None or levy is not None)
        if suits and not (adaptive and claims.error is None):
            return solver
    raise ValueError(
        f"no method chooses its steps for {type(equation.calculus).__name__} equations with {noise!r} along this "
        f"driver: give dt, or driver=dxdt.Brownian(seed, dxdt.SpaceTime), or solve dxdt.to_stratonovich(equation)"
    )


def chosen_controller(
    controller: Controller | None, solver: Solver, dt: Any, rtol: float | None, atol: float | None
) -> Controller:
    """The rule for the steps: the one given, `Constant` where only dt is, `PID` with the tolerances otherwise.

    Raises:
        ValueError: tolerances beside a controller, or no error estimate where steps are to be chosen by one.
    """
    name = type(solver).__name__
    tolerances: dict[str, Any] = {key: value for key, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if controller is not None:
        if tolerances:
            given = " and ".join(tolerances)
            raise ValueError(f"{given} beside controller=: put {given} into the controller, as dxdt.PID(rtol, atol)")
        return controller
    if solver.facts.error_order is None and (tolerances or dt is None):
        remedy = "give dt" if not tolerances else "give dt alone, or a pair such as solver=dxdt.Tsit5()"
        raise ValueError(f"{name} has no error estimate, so it cannot choose its steps: {remedy}")
    return Constant() if dt is not None and not tolerances else PID(**tolerances)


def first_step(
    controller: Controller, solver: Solver, dt: float | Tensor | None, interval: Interval, layout: Layout
) -> np.ndarray | None:
    """The first step of a solve, ``(R,)`` or None for the automatic one, once the controller suits the solver."""
    name = type(solver).__name__
    size = None
    if dt is not None:
        size = numbers(dt, "dt")
        if size.shape not in ((), (layout.rows,)) or not (np.isfinite(size).all() and (size != 0).all()):
            raise ValueError(f"dt is {dt}: give a finite step other than zero (or one for each sample)")
        size = (
            np.broadcast_to(np.abs(size), (layout.rows,)).copy() if layout.per_sample else np.abs(size).reshape(())[()]
        )
    expect(controller, Controller, "controller", "dxdt.PID()")
    controller.check(interval.t0, interval.t1, size)
    if controller.adaptive and solver.facts.error_order is None:
        raise ValueError(
            f"{type(controller).__name__} adapts steps to an error estimate that {name} does not make: "
            f"give dt without a controller, or use a pair such as dxdt.Tsit5()"
        )
    if solver.facts.known_grid and controller.adaptive:
        raise ValueError(
            f"{name} needs known steps: give dt or controller=dxdt.Grid(times) instead of {type(controller).__name__}"
        )
    return size


def expect(value: Any, kind: type, name: str, example: str) -> None:
    """Raise TypeError, with an example, for what is no object of a kind."""
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}: give an instance of it, as {value.__name__}()")
    if isinstance(value, str):
        raise TypeError(f"{name} is the word {value!r}: give an object, as {_meant(value, kind) or example}")
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: give an object such as {example}")


def _meant(word: str, kind: type) -> str | None:
    """How the object is made that a word stands for, such as the name of a method in other libraries."""
    known: dict[str, type] = {}
    todo = [kind]
    while todo:
        for sub in todo.pop().__subclasses__():
            todo.append(sub)
            if not inspect.isabstract(sub) and not sub.__name__.startswith("_") and sub.__module__.startswith("dxdt."):
                known.setdefault(sub.__name__.lower(), sub)
    near = difflib.get_close_matches(word.lower().replace("_", ""), known, 1, 0.7)
    if not near:
        return None
    found = known[near[0]]
    room = found.__module__.split(".")[1]
    return f"dxdt.{found.__name__}()" if room == "diffeq" else f"dxdt.{room}.{found.__name__}()"
