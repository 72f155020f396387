"""The front door: check a problem, plan it, let the gradient rule run the loop, hand out the solution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Never

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.checks import check_export, check_noise, check_span, check_values
from dxdt.diffeq.compiled.context import is_compiling
from dxdt.diffeq.compiled.solve import compiled
from dxdt.diffeq.control.controller import Controller, Span
from dxdt.diffeq.diagnosis import diagnosis
from dxdt.diffeq.gradients.gradient import Direct, Gradient, Inputs, Outcome
from dxdt.diffeq.loop.advance import run
from dxdt.diffeq.loop.dense import DensePath
from dxdt.diffeq.loop.event import Event, Watch
from dxdt.diffeq.loop.plan import After, Attempt, Carry, Ends, Plan
from dxdt.diffeq.loop.save import Save, SaveTimes
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.mixed_clocks import tell_mixed_clocks
from dxdt.diffeq.problem.equation import Equation, Meter, Outlook, Rows, StochasticEquation, constants
from dxdt.diffeq.problem.span import Interval, rounding, times_of
from dxdt.diffeq.problem.status import Status
from dxdt.diffeq.programs.eager_fallback import warn_once
from dxdt.diffeq.progress import Progress, meter_of
from dxdt.diffeq.request import ELSEWHERE, chosen_controller, chosen_solver, expect, first_step, span_and_save
from dxdt.diffeq.solution import Solution, SolveError, Stats
from dxdt.diffeq.vmap import fold, has_values, refuse_rule
from dxdt.ops.opaque import opaque
from dxdt.ops.options import options_of, refuse_unknown
from dxdt.ops.times import HOST, SINGLE, START, moments
from dxdt.ops.tree import Layout, Tree, tree_map

__all__ = ["solve"]

_CODES = {s.code: s for s in Status}
_OK = frozenset(s for s in Status if s.ok)
_MAPPED = (
    "a solve inside torch.vmap has no compiled form: make the mapped axis a batch and solve with per_sample=True, "
    "outside torch.vmap"
)


@opaque
def solve(
    equation: Equation,
    y0: Tree,
    t: Any = None,
    *,
    args: Any = (),
    dt: float | Tensor | None = None,
    solver: Solver | None = None,
    controller: Controller | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    save: Any = None,
    event: Event | Sequence[Event] | None = None,
    gradient: Gradient | None = None,
    params: Iterable[Tensor] | None = None,
    driver: Any = None,
    per_sample: bool = False,
    max_steps: int = 4096,
    throw: bool | None = None,
    progress: bool | Progress | None = None,
    compile: bool | None = None,
    **unknown: Never,
) -> Solution:
    """Solve a differential equation from y0 over a span of time.

    Args:
        equation: ``ODE(f)``, ``SDE(f, g)``, or anything with the same methods.
        y0: initial state: a tensor, or a tree of tensors, real or complex, of any float dtype.
        t: the span ``(t0, t1)``; t1 < t0 solves backwards. A tensor of times, or more than two in a sequence, is
            where to save, from the first to the last. With ``per_sample`` each time may be a ``(B,)`` tensor.
        args: extra arguments of the fields, after ``(t, y)``.
        dt: length of a step, or of the first step where the controller is adaptive.
        solver: one-step method (default ``Tsit5()``; with noise by its kind, its calculus and the driver:
            ``EulerMaruyama()`` or ``StochasticHeun()``, with Levy areas ``ShARK()``, ``SRIW1()`` or ``SPaRK()``).
        controller: step sizes (default ``PID(rtol, atol)``, or ``Constant()`` where only dt is given); a grid of steps
            is ``Grid(times)``.
        rtol, atol: relative and absolute tolerance of a step, in place of a controller (default 1e-4 and 1e-6).
        save: times at which to keep the solution, or a ``Save``; by default the end.
        event: ``Event`` or several: where to stop, or to start again from a reset state.
        gradient: how to differentiate (default ``Direct()``).
        params: tensors the fields depend on besides args and the parameters of modules.
        driver: random path of a stochastic equation.
        per_sample: axis 0 of every leaf is a batch, and each sample has its own clock, steps, save
            times and status.
        max_steps: attempted steps of a sample.
        throw: raise ``SolveError`` on failure; by default jointly yes, per sample no (a warning).
        progress: a progress bar, or an object with ``update`` and ``close``.
        compile: run generated code for many steps at a time (a first call of some seconds for each
            new field, shape and method; then far faster for small and medium fields). Where a solve
            has no compiled form it runs eager, with one warning that says why. By default as the block of
            ``dxdt.compiling()`` around it says.

    Returns:
        The solution; values are time first, ``(T, *y.shape)``.

    Raises:
        TypeError, ValueError: the problem is not well posed; the message says what to change.
        SolveError: the solve failed (see ``throw``).
    """
    # All that was given, so that no option is lost where the solve is made again on rows.
    given = {name: value for name, value in locals().items() if name != "unknown"}
    if unknown:
        refuse_unknown("solve", unknown, options_of(solve), ELSEWHERE)
    args = args if isinstance(args, tuple) else (args,)
    if solver is None:
        solver = chosen_solver(equation, driver, controller, dt, rtol is not None or atol is not None)
    expect(solver, Solver, "solver", "dxdt.Tsit5()")
    t, save, controller = span_and_save(t, save, solver, controller, dt, rtol is not None or atol is not None)
    wanted = is_compiling() if compile is None else compile
    problem: dict[str, Any] = {**given, "args": args, "solver": solver, "t": t, "save": save, "controller": controller}
    folded = fold(equation, y0, t, problem, per_sample)
    if folded is not None:
        if wanted:
            warn_once(_MAPPED, getattr(equation, "fields", ()) or equation)
        on_rows: dict[str, Any] = {**problem, **folded.problem, "compile": False}
        return folded.unfold(solve(**on_rows))
    layout = Layout.of(y0, per_sample=per_sample)
    interval = Interval.of(t, layout)
    check_span(interval, layout, event, isinstance(equation, StochasticEquation))
    layout = interval.seen_by(layout)
    rule = gradient
    gradient = Direct() if gradient is None else gradient
    expect(equation, object, "equation", "dxdt.ODE(field)")
    expect(gradient, Gradient, "gradient", "dxdt.Direct()")
    refuse_rule(gradient)
    if interval.still.all():
        gradient, wanted = Direct(), False  # no step is taken, so none is formed again or compiled
    if not layout.rows or not layout.size:
        wanted = False  # there is nothing to save time on
    controller = chosen_controller(controller, solver, dt, rtol, atol)
    if isinstance(controller, Controller):
        controller = controller.fitted(interval.t0, interval.t1, interval.eps)
    dt_row = first_step(controller, solver, dt, interval, layout)
    if torch.compiler.is_exporting():
        check_export(controller, event, gradient)
    save = save if isinstance(save, Save) else Save(end=True) if save is None else Save(times=save)
    recorder = _recorder(save, interval, layout)
    y = layout.pack(y0).resolve_neg()
    check_values(y, max_steps, equation)
    solver.check(equation)
    controller = check_noise(equation, solver, driver, controller, dt_row)
    meter = Meter()
    rows = Rows(equation, layout, args, meter=meter)
    if isinstance(equation, StochasticEquation):
        rows.noise = _bind(solver, driver, equation, interval, layout)
    span = Span(HOST, interval.t0, interval.t1) if per_sample else Span(SINGLE, interval.t0[0], interval.t1[0])
    ends = None if interval.tensors is None else Ends(*interval.tensors)
    found = (*rows.parameters(), *(params or ())) if torch.is_grad_enabled() else ()
    parameters = tuple({id(p): p for p in found}.values())
    inputs = Inputs(y, ends, recorder.moments, args, parameters)
    watch = _watch(event, rows)
    needs_dense = recorder.dense or recorder.times is not None or watch is not None
    scale = controller.scale(layout)
    times = None
    if solver.facts.prepares and watch is None and not controller.jumps:
        times = controller.ends(span, dt_row)
    rows.outlook = Outlook(times, needs_dense, scale is not None, scale)
    plan = Plan(rows, solver, controller, span, scale, needs_dense, max_steps, watch=watch)
    tell_mixed_clocks(plan, y)
    why = partial(diagnosis, replace(rows, meter=None), solver)
    outcome = compiled(plan, inputs, rule, dt_row, recorder) if wanted else None
    if outcome is not None:
        outcome = _at_rest(outcome, gradient, rows, inputs, interval)
        return _finish(outcome, recorder, save, layout, interval, args, inputs, meter.evaluations, throw, why)
    loop = _loop(progress, span)
    outcome = gradient.run(loop, plan, inputs, dt_row, recorder)
    if plan.scale is None and has_values(outcome.y) and not bool(torch.isfinite(outcome.y.detach()).all()):
        # Fixed steps are not looked at while they run: find where the bad rows failed, and stop them there.
        meter.evaluations = 0
        recorder = _recorder(save, interval, layout)
        plan = Plan(rows, solver, controller, span, None, needs_dense, max_steps, check=True, watch=watch)
        outcome = gradient.run(loop, plan, inputs, dt_row, recorder)
    outcome = _at_rest(outcome, gradient, rows, inputs, interval)
    return _finish(outcome, recorder, save, layout, interval, args, inputs, meter.evaluations, throw, why)


def _at_rest(outcome: Outcome, gradient: Gradient, rows: Rows, inputs: Inputs, interval: Interval) -> Outcome:
    """Give the rows that begin where they end their derivatives for both ends: f(t, y) and -f(t, y)."""
    if inputs.ends is None or gradient.continuous or not interval.still.any():
        return outcome
    t0, t1 = inputs.ends
    still = torch.from_numpy(interval.still)[:, None].to(inputs.y.device)
    (start,) = moments(interval.t0 if rows.layout.per_sample else interval.t0[0], 0 * interval.t0, START, rows.layout)
    slope = torch.where(still, rows.drift(start, inputs.y), 0.0)
    return outcome._replace(y=outcome.y + slope * (t1 - t0).to(slope.dtype)[:, None])


def _watch(event: Event | Sequence[Event] | None, rows: Rows) -> Watch | None:
    events = () if event is None else tuple(event) if isinstance(event, Sequence) else (event,)
    for e in events:
        if not isinstance(e, Event):
            raise TypeError(
                f"event has an entry of type {type(e).__name__}: wrap your condition as dxdt.Event(condition)"
            )
    return Watch(rows, events) if events else None


def _bind(solver: Solver, driver: Any, equation: StochasticEquation, interval: Interval, layout: Layout) -> Any:
    with constants():
        return solver.bind(driver, equation, interval.t0, interval.t1, layout)


def _recorder(save: Save, interval: Interval, layout: Layout) -> Recorder:
    recorder = Recorder(every=save.every if save.steps else 0, dense=save.dense)
    if save.times is not None:
        times, recorder.moments = times_of(save.times, layout, "save")
        sign = np.where(interval.t1 < interval.t0, -1.0, 1.0)
        columns = times if times.shape[1] == layout.rows else np.broadcast_to(times, (len(times), layout.rows))
        place = columns * sign
        if (np.diff(place, axis=0) < 0).any():
            raise ValueError("save has times that are not in the direction of the solve: sort them from t0 to t1")
        low, high = interval.t0 * sign, interval.t1 * sign
        slack = interval.slack(rounding(save.times))
        if (place < low - slack).any() or (place > high + slack).any():
            raise ValueError(
                f"save has times outside the span from {interval.t0.min():g} to {interval.t1.max():g}: "
                f"ask for times inside it, or solve further"
            )
        columns = np.clip(place, low, high) * sign
        recorder.times = SaveTimes(
            columns if times.shape[1] > 1 or layout.rows > 1 and np.ptp(columns, axis=1).any() else columns[:, :1], sign
        )
        recorder.times.begin(interval.t0)
    return recorder


def _loop(progress: bool | Progress | None, span: Span) -> Callable[..., Carry]:
    if progress is None or progress is False:
        return run
    bar = meter_of(progress)
    total = np.abs(span.t1 - span.t0)

    def watched(plan: Plan, carry: Carry, observe: Callable[[Carry, Attempt, After], Any] | None) -> Carry:
        def look(carry: Carry, attempt: Attempt, after: After) -> None:
            if observe is not None:
                observe(carry, attempt, after)
            bar.update(float((np.abs(carry.t - span.t0) / total).min()))

        try:
            return run(plan, carry, look)
        finally:
            bar.close()

    return watched


def _finish(
    outcome: Outcome,
    recorder: Recorder,
    save: Save,
    layout: Layout,
    interval: Interval,
    args: tuple[Any, ...],
    inputs: Inputs,
    evaluations: int,
    throw: bool | None,
    why: Callable[[Carry, int], str],
) -> Solution:
    carry = _as_rows(outcome.carry)
    status = [_CODES[code] for code in carry.status.tolist()]
    ok = np.array([s in _OK for s in status])
    parts = _Parts(layout)
    if save.start:
        parts.add(interval.t0[None], np.ones_like(ok)[None], inputs.y[None])
    if recorder.times is not None or recorder.every:
        parts.add(*_middle(outcome, recorder, layout, interval, inputs))
    if save.end:
        last = outcome.y
        if not ok.all():
            last = HOST.choose(ok, last, torch.full_like(last, float("nan")))
        parts.add(carry.t[None], ok[None], last[None])
    ts, reached, ys = parts.joined()
    values = None if ys is None else layout.unpack(ys)
    if save.fn is not None and values is not None:
        values = _apply(save.fn, ts, values, args, layout)
    path = _path(outcome, recorder, layout, interval) if save.dense else None
    joint = not layout.per_sample
    counts = [carry.attempts, carry.accepted, carry.attempts - carry.accepted]
    steps, accepted, rejected = (c.item() if joint else torch.from_numpy(c.copy()) for c in counts)
    stats = Stats(steps, accepted, rejected, evaluations)
    end = _end(outcome, carry, status, inputs, joint)
    times, events = _events(outcome, recorder)
    solution = Solution(
        ts,
        values,
        status[0] if joint else status,
        stats,
        reached,
        path,
        end,
        times[:, 0] if joint and times is not None else times,
        events[:, 0] if joint and events is not None else events,
    )
    _report(solution, status, layout, throw, carry, why)
    return solution


def _end(outcome: Outcome, carry: Carry, status: list[Status], inputs: Inputs, joint: bool) -> Tensor:
    """Where each row, or the joint solve, ended: at an event its time, at the end of the span the user's t1."""
    if inputs.ends is None and outcome.origin is None:
        end = torch.from_numpy(np.array(carry.t[0] if joint else carry.t))
        return end if outcome.y.device.type == "cpu" else end.to(outcome.y.device)
    end = torch.as_tensor(np.array(carry.t), device=outcome.y.device)
    if inputs.ends is not None:
        arrived = torch.tensor([s is Status.SUCCESS for s in status], dtype=torch.bool, device=end.device)
        end = torch.where(arrived, inputs.ends.t1, end)
    if outcome.origin is not None:
        stopped = torch.tensor([s is Status.EVENT for s in status], dtype=torch.bool, device=end.device)
        end = torch.where(stopped, outcome.origin, end)
    return end[0] if joint else end


def _events(outcome: Outcome, recorder: Recorder) -> tuple[Tensor | None, Tensor | None]:
    """Times of events and their numbers, ``(K, R)``, each row's in order and then NaN and -1."""
    if outcome.times is None:
        return None, None
    which = np.stack(recorder.crossings)
    order = np.argsort(which < 0, axis=0, kind="stable")
    most = int((which >= 0).sum(0).max())
    order = torch.as_tensor(order[:most], device=outcome.times.device)
    numbers = torch.as_tensor(which, device=order.device).gather(0, order)
    times = outcome.times.gather(0, order)
    return torch.where(numbers >= 0, times, float("nan")), numbers


def _as_rows(carry: Carry) -> Carry:
    """A carry whose clocks are arrays, also where there is one."""
    if carry.t.ndim:
        return carry
    t, status, attempts, accepted = (x.reshape(1) for x in (carry.t, carry.status, carry.attempts, carry.accepted))
    return Carry(t, carry.dt, *carry[2:5], status, attempts, accepted, *carry[8:])


class _Parts:
    """Saved values in the order in which a solution holds them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.ts: list[np.ndarray] = []
        self.reached: list[np.ndarray] = []
        self.ys: list[Tensor] = []

    def add(self, ts: np.ndarray, reached: np.ndarray, ys: Tensor) -> None:
        self.ts.append(ts)
        self.reached.append(reached)
        self.ys.append(ys)

    def joined(self) -> tuple[Tensor, Tensor, Tensor | None]:
        if not self.ys:
            return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool), None
        ts, reached = self._clocks(self.ts), self._clocks(self.reached)
        return ts, reached, self.ys[0] if len(self.ys) == 1 else torch.cat(self.ys)

    def _clocks(self, parts: list[np.ndarray]) -> Tensor:
        host = parts[0] if len(parts) == 1 and parts[0].flags.writeable else np.concatenate(parts)
        clocks = torch.from_numpy(host if self.layout.per_sample else host[:, 0])
        return clocks if self.layout.device.type == "cpu" else clocks.to(self.layout.device)


def _middle(
    outcome: Outcome, recorder: Recorder, layout: Layout, interval: Interval, inputs: Inputs
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Values at given times, or after steps: times ``(T, R)``, reached ``(T, R)``, values ``(T, R, n)``."""
    index = np.concatenate(recorder.index) if recorder.index else np.zeros(0, dtype=np.int64)
    row = np.concatenate(recorder.row) if recorder.row else np.zeros(0, dtype=np.int64)
    pieces = [] if outcome.values is None else [outcome.values]
    if recorder.times is not None:
        times = np.broadcast_to(recorder.times.times, (len(recorder.times.times), layout.rows))
        sign = recorder.times.sign
        starts, owners = np.nonzero(times * sign <= interval.t0 * sign)
        if len(starts):
            index, row = np.concatenate([starts, index]), np.concatenate([owners, row])
            pieces.insert(0, inputs.y[torch.as_tensor(owners, device=inputs.y.device)])
        total = len(times)
    else:
        total = int(np.max(outcome.carry.accepted)) // recorder.every
        times = np.full((total, layout.rows), np.nan)
        if recorder.t:
            times[index, row] = np.concatenate(recorder.t)
    reached = np.zeros((total, layout.rows), dtype=bool)
    reached[index, row] = True
    y = inputs.y
    values = torch.cat(pieces) if pieces else y.new_zeros(0, layout.size)
    if layout.rows == 1 and len(index) == total and (index == np.arange(total)).all():
        return times, reached, values[:, None]
    if not layout.rows:
        return times, reached, y.expand(total, *y.shape)
    empty = y.new_full((total, layout.rows, layout.size), float("nan"))
    where = tuple(torch.as_tensor(x, device=y.device) for x in (index, row))
    return times, reached, empty.index_put(where, values) if len(index) else empty


def _apply(fn: Callable[..., Tree], ts: Tensor, values: Tree, args: tuple[Any, ...], layout: Layout) -> Tree:
    kept = [fn(t.to(layout.time_dtype), tree_map(lambda leaf, i=i: leaf[i], values), *args) for i, t in enumerate(ts)]
    return tree_map(lambda *leaves: torch.stack(leaves), *kept)


def _path(outcome: Outcome, recorder: Recorder, layout: Layout, interval: Interval) -> DensePath:
    y = outcome.y
    if outcome.coefficients is None or outcome.starts is None:
        zero = torch.zeros(1, layout.rows, dtype=torch.float64, device=y.device)
        start = torch.from_numpy(interval.t0)[None].to(y.device)
        return DensePath(layout, start, zero, start, y[None], y.new_zeros(1, 1, layout.rows, layout.size))
    clocks = recorder.starts, recorder.lengths, recorder.ends
    starts, lengths, ends = (torch.from_numpy(np.stack(x)).to(y.device) for x in clocks)
    return DensePath(layout, starts, lengths, ends, outcome.starts, outcome.coefficients)


def _report(
    solution: Solution,
    status: list[Status],
    layout: Layout,
    throw: bool | None,
    carry: Carry,
    why: Callable[[Carry, int], str],
) -> None:
    failed = [i for i, s in enumerate(status) if not s.ok]
    if not failed or throw is False:
        return
    first = failed[0]
    place = f"(at t = {carry.t[first]:g}, step {carry.attempts[first]})"
    if layout.per_sample:
        message = f"{len(failed)} of {layout.rows} samples failed; sample {first} {status[first].value} {place}"
    else:
        message = f"the solve {status[0].value} {place}"
    if status[first] is Status.MAX_STEPS and has_values(carry.y):
        message += why(carry, first)
    if throw or not layout.per_sample:
        raise SolveError(message, solution)
    warnings.warn(message, RuntimeWarning, stacklevel=4)
