"""odeint_adjoint: the continuous adjoint as one node of the graph.

    da/dt = -a df/dy,    a(t_i) gains dL/dy(t_i) at each output time,
    dL/dtheta = integral of a df/dtheta,

solved backwards between output times beside y, which is set to its stored value at each of them.
The gradient converges with the tolerances; it is not the exact derivative of the discretisation.
The backward pass is itself differentiable (``create_graph=True``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dxdt.compat.torchdiffeq.adjoint_field import AdjointNorm, EntriesNorm, Shapes, traceable
from dxdt.compat.torchdiffeq.odeint import ended, solved
from dxdt.compat.torchdiffeq.problem import CALLBACKS, Problem, Start, real_dtype
from dxdt.diffeq.compiled.context import is_compiling
from dxdt.diffeq.gradients.conditions import Conditions
from dxdt.diffeq.programs.eager_fallback import CannotCompile, warn_once
from dxdt.ops.opaque import opaque

__all__ = ["odeint_adjoint"]


@opaque
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """odeint with memory for the output times only; gradients by the continuous adjoint.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as in ``odeint``.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: the same for the backward
            solve (default: those of the forward one); the norm may be ``'seminorm'``, or a
            function of ``(t, y, adjoint of y, adjoints of the parameters...)``.
        adjoint_params: tensors to differentiate for besides y0 and t (default: the parameters of
            the module ``func``).

    Raises:
        ValueError: ``func`` is no module and ``adjoint_params`` is missing, or adjoint options
            cannot be inferred.
    """
    params = adjoint_params
    if params is None and isinstance(func, nn.Module):
        params = func.parameters()
    if params is None:
        raise ValueError(
            "func must be an instance of nn.Module to specify the adjoint parameters; "
            "alternatively they can be specified explicitly via the `adjoint_params` argument. "
            "If there are no parameters then it is allowable to set `adjoint_params=()`."
        )
    adjoint_method = method if adjoint_method is None else adjoint_method
    if adjoint_method != method and options is not None and adjoint_options is None:
        raise ValueError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. "
            "So as `options` has been passed then `adjoint_options` must be passed as well."
        )
    problem = Problem.of(func, y0, t, rtol, atol, method, options, event_fn)
    inferred = {k: v for k, v in problem.options.items() if k != "norm"}
    back = dict(inferred if adjoint_options is None else adjoint_options)
    back["norm"] = _norm(back.get("norm"), problem)
    # As the solve itself, also where the block of ``compiling`` has been left before the backward pass.
    forward = problem.options.get("compile")
    back.setdefault("compile", is_compiling() if forward is None else forward)
    task = Task(
        problem,
        _per_state(rtol if adjoint_rtol is None else adjoint_rtol, problem),
        _per_state(atol if adjoint_atol is None else adjoint_atol, problem),
        adjoint_method,
        {n: getattr(func, f"{n}_adjoint") for n in CALLBACKS if hasattr(func, f"{n}_adjoint")},
    )
    out = _Adjoint.apply(task, back, problem.start.flat(y0), problem.t, *_wanted(params, adjoint_options))
    if event_fn is None:
        return problem.start.shaped(out, lead=1)
    event_t, ys = out
    return _tied(problem, event_t, problem.start.shaped(ys, lead=1))


def _wanted(params: Iterable[Tensor], options: dict[str, Any] | None) -> tuple[Tensor, ...]:
    given = tuple(params)
    wanted = tuple(p for p in given if p.requires_grad)
    if len(wanted) < len(given) and callable((options or {}).get("norm")):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. For efficiency this will "
            "be excluded from the adjoint pass, and will not appear in the adjoint norm.",
            stacklevel=3,
        )
    return wanted


def _per_state(tolerance: Any, problem: Problem) -> Any:
    """A backward tolerance; one per entry of a tuple has no meaning for the adjoint state."""
    if isinstance(tolerance, (int, float)):
        return tolerance
    given = tolerance if isinstance(tolerance, (tuple, list)) else (tolerance,)
    return min(float(torch.as_tensor(x).min()) for x in given)


def _norm(given: Any, problem: Problem) -> Callable[[Any], Any]:
    """The norm of the adjoint state ``(t, y, adjoint of y, *adjoints of parameters)``."""
    start, shapes = problem.start, Shapes.of(problem.start)
    if given is None:
        return AdjointNorm(shapes, problem.norm(), full=True)
    if isinstance(given, str):
        if given != "seminorm":
            raise ValueError(f"adjoint norm '{given}' is unknown: give 'seminorm' or a function")
        return AdjointNorm(shapes, problem.norm(), full=False)
    return EntriesNorm(shapes, given) if start.is_tuple else given


@dataclass
class Task:
    """What the node remembers besides tensors.

    Attributes:
        problem: the forward problem, without its graph.
        rtol, atol, method: of the backward solve.
        callbacks: of the backward solve.
        conditions: under which the solve was made.
    """

    problem: Problem
    rtol: Any
    atol: Any
    method: str | None
    callbacks: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        self.conditions = Conditions.now((self.problem.func,), self.problem.device)
        # No tensor with a graph may hang on the node: it would hold the graph that holds the node.
        parts = tuple(x.detach() for x in self.problem.start.parts)
        start = Start(parts if self.problem.start.is_tuple else parts[0])
        self.problem = replace(self.problem, start=start, t=self.problem.t.detach())

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The user's field on the flat state."""
        start = self.problem.start
        value = self.problem.func(t, start.shaped(y))
        return start.flat(value).to(y.dtype).reshape(y.shape)

    def forward(self) -> Any:
        """The flat values, and before them the time of the event if there is one."""
        out = solved(self.problem)
        start = self.problem.start
        if self.problem.event_fn is None:
            return _stacked(out, start)
        return out[0], _stacked(out[1], start)

    def pull(
        self,
        time: bool,
        graph: bool,
        t: Tensor,
        y: Tensor,
        adjoint: Tensor,
        params: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """-a df/dt, f, -a df/dy, -a df/dtheta; ``t`` and ``y`` are leaves of the graph."""
        with torch.enable_grad():
            value = self.field(t if time else t.detach(), y)
            wanted = (t, y, *params) if time else (y, *params)
            pulled: Any = [None] * len(wanted)
            if value.requires_grad:
                pulled = torch.autograd.grad(value, wanted, -adjoint, allow_unused=True, create_graph=graph)
        pulled = pulled if time else (None, *pulled)
        pairs = zip(pulled, (t, y, *params), strict=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in pairs]
        return (grads[0], value if graph else value.detach(), *grads[1:])

    def dynamics(
        self, options: dict[str, Any], params: tuple[Tensor, ...], time: bool, graph: bool
    ) -> tuple[Callable[..., tuple[Tensor, ...]], dict[str, Any]]:
        """Right-hand side of the adjoint state, and the options of its solve."""
        if options["compile"]:
            try:
                if graph:
                    raise CannotCompile("second derivatives through odeint_adjoint have no compiled form")
                return traceable(self.problem, params, time), options
            except CannotCompile as error:
                warn_once(str(error), self.problem.func)
        options = {**options, "compile": False}

        def right(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            _, y, adjoint, *_ = state
            # An implicit method differentiates this for the equations of its stages.
            if graph or torch.is_grad_enabled():
                return _Pull.apply(self, time, t, y, adjoint, *params)
            return self.pull(time, False, _leaf(t), _leaf(y), adjoint, params)

        return right, options

    def back(
        self,
        options: dict[str, Any],
        right: Callable[..., Any],
        state: tuple[Tensor, ...],
        t: Tensor,
    ) -> list[Tensor]:
        """The adjoint state at the earlier of two times, from that at the later."""
        problem = Problem(
            *(right, Start(state), t, self.rtol, self.atol, self.method, options, None),
            self.callbacks,
        )
        return list(ended(problem))


class _Pull(torch.autograd.Function):
    """``Task.pull``, differentiable: the derivatives in it are partial, whatever y depends on."""

    @staticmethod
    def forward(ctx: Any, task: Task, time: bool, t: Tensor, y: Tensor, adjoint: Tensor, *params: Tensor) -> Any:
        ctx.task, ctx.time = task, time
        ctx.save_for_backward(t, y, adjoint, *params)
        return task.pull(time, False, _leaf(t), _leaf(y), adjoint, params)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        *state, params = (*ctx.saved_tensors[:3], ctx.saved_tensors[3:])
        t, y, adjoint = (_leaf(x) for x in state)
        values = ctx.task.pull(ctx.time, True, t, y, adjoint, params)
        live = [(v, g) for v, g in zip(values, given, strict=True) if v.requires_grad]
        pulled: Any = [None] * (3 + len(params))
        if live:
            outs, cots = zip(*live, strict=True)
            pulled = torch.autograd.grad(outs, (t, y, adjoint, *params), cots, allow_unused=True)
        return (None, None, *pulled)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _stacked(ys: Any, start: Start) -> Tensor:
    if not start.is_tuple:
        return ys
    return torch.cat([y.reshape(y.shape[0], -1).to(start.dtype) for y in ys], dim=1)


class _Adjoint(torch.autograd.Function):
    """The solve as one node, which exposes ``adjoint_options``."""

    @staticmethod
    def forward(ctx: Any, task: Task, options: dict[str, Any], y0: Tensor, t: Tensor, *params: Tensor) -> Any:
        ctx.task, ctx.adjoint_options = task, options
        with torch.no_grad():
            out = task.forward()
        task.conditions.settle()
        ys, event_t = (out, None) if task.problem.event_fn is None else (out[1], out[0])
        ctx.save_for_backward(t, ys, event_t, *params)
        if event_t is not None:
            ctx.mark_non_differentiable(event_t)
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        task: Task = ctx.task
        with task.conditions.held():
            return _Adjoint.pulled(ctx, task, given)

    @staticmethod
    def pulled(ctx: Any, task: Task, given: tuple[Tensor, ...]) -> Any:
        """Cotangents of the inputs from those of the outputs."""
        t, ys, event_t, *params = ctx.saved_tensors
        times = t if event_t is None else torch.stack([t[0].to(event_t.dtype), event_t])
        graph = torch.is_grad_enabled()
        with torch.set_grad_enabled(graph):
            timed = ctx.needs_input_grad[3]
            right, options = task.dynamics(ctx.adjoint_options, tuple(params), timed, graph)
            g = given[-1]
            real = real_dtype(ys.dtype)
            adjoint, sums = g[-1], [torch.zeros_like(p) for p in params]
            lead = torch.zeros((), dtype=real, device=ys.device)
            moved: list[Tensor] = []
            for i in range(len(times) - 1, 0, -1):
                if timed:
                    slope = task.field(times[i].to(real), ys[i])
                    effect = _dot(g[i], slope)
                    moved.append(effect)
                    lead = lead - effect
                state = (lead, ys[i], adjoint, *sums)
                pair = times[i - 1 : i + 1].flip(0)
                pair = pair if graph else pair.detach()
                lead, _, adjoint, *sums = task.back(options, right, state, pair)
                adjoint = adjoint + g[i - 1]
            grad_t = None
            if timed:
                grad_t = torch.stack([lead, *reversed(moved)]).to(t.dtype)
                if event_t is not None:
                    grad_t = torch.stack([lead.to(t.dtype), torch.zeros_like(t[1])])
        return (None, None, adjoint, grad_t, *sums)


def _tied(problem: Problem, event_t: Tensor, ys: Any) -> tuple[Tensor, Any]:
    """Time and state of the event with their derivatives by the implicit function theorem.

    The node holds the time fixed. With c the value of event_fn that is nearest to zero,
    t* = t - c / (dc/dt along the solution) has the right derivative, and y moves with it.
    """
    event_fn, start = problem.event_fn, problem.start
    assert event_fn is not None
    if not torch.is_grad_enabled():
        return event_t, ys
    parts: tuple[Tensor, ...] = ys if start.is_tuple else (ys,)

    def condition(t: Tensor, *last: Tensor) -> Tensor:
        return event_fn(t, last if start.is_tuple else last[0]).reshape(-1)

    last = tuple(y[-1] for y in parts)
    fixed = tuple(y.detach() for y in last)
    time = event_t.detach().to(real_dtype(start.dtype))
    with torch.no_grad():
        slope = problem.func(time, fixed if start.is_tuple else fixed[0])
        slopes = tuple(slope) if start.is_tuple else (slope,)
        slopes = tuple(k.to(y.dtype).reshape(y.shape) for k, y in zip(slopes, fixed, strict=True))
        which = int(condition(time, *fixed).abs().argmin())
    rate = _rate(condition, which, time, fixed, slopes)
    value = condition(time, *last)[which]
    shift = (value.detach() - value) / torch.where(rate == 0, 1.0, rate)
    tied = tuple(
        torch.stack([y[0], end + k * shift.to(real_dtype(end.dtype))])
        for y, end, k in zip(parts, last, slopes, strict=True)
    )
    return event_t + shift.to(event_t.dtype), tied if start.is_tuple else tied[0]


def _rate(
    condition: Callable[..., Tensor],
    which: int,
    time: Tensor,
    y: tuple[Tensor, ...],
    slopes: tuple[Tensor, ...],
) -> Tensor:
    """dc/dt along the solution."""
    with torch.enable_grad():
        at = [x.detach().requires_grad_() for x in (time, *y)]
        value = condition(*at)[which]
        if not value.requires_grad:
            return torch.zeros_like(time)
        pulled = torch.autograd.grad(value, at, allow_unused=True)
    pairs = zip(pulled, (torch.ones_like(time), *slopes), strict=True)
    terms = [_dot(g, k) for g, k in pairs if g is not None]
    return torch.stack([x.to(time.dtype) for x in terms]).sum()


def _dot(g: Tensor, k: Tensor) -> Tensor:
    """What a cotangent says of a tangent."""
    return (g.conj() * k).sum().real if g.is_complex() else (g * k).sum()
