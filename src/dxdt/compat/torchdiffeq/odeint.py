"""odeint, odeint_event and odeint_dense with torchdiffeq's signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dxdt.compat.torchdiffeq.field import Watched, lenient
from dxdt.compat.torchdiffeq.methods import (
    Method,
    adaptive_controller,
    fixed_grid,
    fixed_solver,
    method_of,
)
from dxdt.compat.torchdiffeq.problem import Problem, real_dtype, translated
from dxdt.compat.torchdiffeq.scipy_solver import solve_with_scipy
from dxdt.diffeq import ODE, Constant, Direct, Event, Save, Solution, SolveError, solve
from dxdt.ops.opaque import opaque

__all__ = ["ended", "odeint", "odeint_dense", "odeint_event", "solved"]

_MOST_STEPS = 2**31 - 1
_MOST_FIXED = 20000
_WINDOW = 1e4


@opaque
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) from y(t[0]) = y0.

    Args:
        func: vector field ``(t, y)`` to the derivative of ``y``.
        y0: a tensor, or a tuple of tensors.
        t: times ``(T,)``, strictly monotone in either direction.
        rtol, atol: tolerances: a number, a tensor, or one for each entry of a tuple.
        method: torchdiffeq's name of the method (default ``dopri5``).
        options: torchdiffeq's options of the method.
        event_fn: ``(t, y)`` to values; the solve ends where one of them passes through zero.

    Returns:
        Values ``(T, *y0.shape)`` (a tuple of them for a tuple); with ``event_fn`` the time of the
        event and the values at the start and there, both differentiable.

    Raises:
        ValueError: an unknown method, or options that exclude each other.
        AssertionError: arguments of another kind, or a solve that failed (``SolveFailed``).
    """
    return solved(Problem.of(func, y0, t, rtol, atol, method, options, event_fn))


@opaque
def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """The solution of odeint between t0 and t1 as a function of time.

    Any method of odeint but ``scipy_solver``, and tuples, are possible; the function takes a time
    or a vector of times.
    """
    t = torch.stack([torch.as_tensor(x, dtype=torch.float64).reshape(()) for x in (t0, t1)])
    problem = Problem.of(func, y0, t, rtol, atol, method, options, None)
    chosen = method_of(problem)
    if chosen.solver is None:
        raise ValueError("scipy_solver has no dense output: choose another method for odeint_dense")
    chosen.check(problem)
    return _solution(problem, chosen, Save(dense=True)).path


@opaque
def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve from t0 until ``event_fn`` passes through zero.

    Args:
        func, y0: as in ``odeint``.
        t0: where to start, a tensor with one element.
        event_fn: ``(t, y)`` to values; the solve ends where one of them passes through zero.
        reverse_time: solve backwards.
        odeint_interface: ``odeint`` or ``odeint_adjoint``.
        **kwargs: further arguments of it.

    Returns:
        Time of the event, and the values at the start and there; both are differentiable in all
        that they depend on, parameters of ``event_fn`` included.
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


def solved(problem: Problem) -> Any:
    """What odeint returns for a problem."""
    method = method_of(problem)
    method.check(problem)
    if len(problem.t) == 1:
        alone = tuple(x.unsqueeze(0) for x in problem.start.parts)
        return alone if problem.start.is_tuple else alone[0]
    if method.solver is None:
        return solve_with_scipy(problem)
    if problem.event_fn is not None:
        return _until_event(problem, method)
    given = ("step_size", "grid_constructor", "max_order")
    if not method.adaptive and problem.t.requires_grad and torch.is_grad_enabled():
        if "max_order" not in method.options and not any(k in problem.options for k in given):
            return _interval_by_interval(problem, method)
    return _solution(problem, method, Save(times=problem.t)).ys


def ended(problem: Problem) -> Any:
    """The value at the last time, and nothing kept on the way there."""
    method = method_of(problem)
    method.check(problem)
    if method.solver is None:
        values = solve_with_scipy(problem)
        return tuple(x[-1] for x in values) if problem.start.is_tuple else values[-1]
    return _solution(problem, method, Save(end=True)).y1


def _solution(
    problem: Problem,
    method: Method,
    save: Save,
    event: Iterable[Event] = (),
    max_steps: int | None = None,
) -> Solution:
    """Solve with the core over the span of the problem's times."""
    assert method.solver is not None
    t, options, dt = problem.t, problem.options, None
    if method.adaptive:
        solver, controller = method.solver(problem), adaptive_controller(problem)
        dt = options.get("first_step")
        most = options.get("max_num_steps", _MOST_STEPS)
    elif problem.event_fn is not None:
        solver, controller = fixed_solver(problem, method), Constant()
        dt, most = options["step_size"], _MOST_FIXED
    else:
        solver, controller = fixed_solver(problem, method), fixed_grid(problem)
        most = _MOST_STEPS
    gradient = Watched(Direct(), problem.callbacks) if problem.callbacks else None
    try:
        return solve(
            ODE(lenient(problem.func)),
            problem.start.y0,
            (t[0], t[-1]),
            dt=dt,
            solver=solver,
            controller=controller,
            save=save,
            event=tuple(event) or None,
            gradient=gradient,
            max_steps=int(most) if max_steps is None else max_steps,
            throw=True,
            compile=options.get("compile"),
        )
    except SolveError as error:
        raise translated(error) from None


def _interval_by_interval(problem: Problem, method: Method) -> Any:
    """A grid that is the times themselves, each step tied to both of its times.

    The derivative with respect to an inner time is then that of the discretisation.
    """
    parts = [problem.start.y0]
    for i in range(len(problem.t) - 1):
        piece = problem.over(problem.t[i : i + 2], parts[-1])
        parts.append(_solution(piece, method, Save(end=True)).y1)
    if not problem.start.is_tuple:
        return torch.stack(parts)
    return tuple(torch.stack(x) for x in zip(*parts, strict=True))


def _until_event(problem: Problem, method: Method) -> tuple[Tensor, Any]:
    """Solve until an event, in windows that grow, because nobody knows when it will be."""
    assert problem.event_fn is not None
    if not method.adaptive:
        assert "step_size" in problem.options, (
            "Event handling for fixed step solvers currently requires `step_size` to be provided in options."
        )
    events = _events(problem)
    begin = problem
    reach = _WINDOW * float((problem.t[1] - problem.t[0]).detach().abs())
    if not method.adaptive:
        reach = 2 * _MOST_FIXED * abs(float(problem.options["step_size"]))
    left = int(problem.options.get("max_num_steps", _MOST_STEPS))
    while True:
        end = begin.t[0].detach().to(torch.float64) + begin.direction * reach
        first = begin.t[0].to(torch.float64)
        piece = begin.over(torch.stack([first, end]), begin.start.y0)
        most = left if method.adaptive else None
        sol = _solution(piece, method, Save(end=True), events, most)
        assert sol.t1 is not None
        if sol.which is not None and sol.which.numel():
            break
        left, reach = left - sol.stats.steps, reach * _WINDOW
        begin = begin.over(torch.stack([sol.t1, sol.t1 + begin.direction]), sol.y1)
    pairs = zip(problem.start.parts, (sol.y1 if problem.start.is_tuple else (sol.y1,)), strict=True)
    ys = tuple(torch.stack([a, b]) for a, b in pairs)
    return sol.t1.to(problem.t.dtype), ys if problem.start.is_tuple else ys[0]


def _events(problem: Problem) -> list[Event]:
    """One event for each value of ``event_fn``: the first to pass through zero ends the solve."""
    event_fn = problem.event_fn
    assert event_fn is not None
    with torch.no_grad():
        count = event_fn(problem.t[0].to(real_dtype(problem.start.dtype)), problem.start.y0).numel()

    def component(i: int) -> Callable[..., Tensor]:
        return lambda t, y: event_fn(t, y).reshape(-1)[i]

    return [Event(component(i), checks=1) for i in range(count)]
