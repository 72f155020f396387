"""How a solver's steps become recipes: which of them start, follow or land, and with what weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.coefficients import (
    HEAD,
    adams,
    adams_corrected,
    adams_moulton,
    inside,
    line,
    moved,
    shifted,
)
from dxdt.diffeq.methods.exponential.options import Preserving
from dxdt.diffeq.methods.exponential.tables import Course, Formula, Recipe
from dxdt.diffeq.methods.exponential.weights import NoisePrediction, Rule, largest_step
from dxdt.diffeq.problem.affine import Knots, SemiLinear
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import Ticks

__all__ = ["course"]

_THIRDS = (1 / 3, 2 / 3)


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps that recipes are made for; all of shape ``(N, C)``, ``back`` with the history's axis.

    Attributes:
        s, t: where they begin and end.
        back: where earlier steps began, newest first.
        valid: how many of those there are.
        left: how many steps there are to come, this one among them.
        dense, errors: whether values inside the step, and error estimates, are wanted.
    """

    equation: SemiLinear
    s: Knots
    t: Knots
    back: Knots
    valid: Tensor
    left: Tensor
    dense: bool
    errors: bool


def course(solver: Any, eq: Rows, y: Tensor, t: Any, dt: Ticks | None = None, gaps: Tensor | None = None) -> Course:
    """The recipes of a grid ``t``, ``(N + 1, C)``, or of one step from t to t + dt with a history of gaps."""
    equation = eq.affine
    wants = eq.outlook.dense, eq.outlook.errors
    if dt is None:
        with torch.no_grad():
            steps = _of_grid(equation, np.asarray(t, dtype=np.float64), solver.memory, *wants)
    else:
        steps = _of_step(equation, t, dt, gaps, solver.memory, eq.layout.rows, *wants)
    _refuse_points(equation, steps)
    _warn_unstable(solver, equation, steps)
    recipes = _inner(solver, steps) if solver.single else _multistep(solver, steps)
    return Course(recipes, eq.layout.rows, not eq.layout.per_sample, y)


def _of_grid(equation: SemiLinear, times: np.ndarray, memory: int, dense: bool, errors: bool) -> _Steps:
    knots = Knots.at(equation, torch.from_numpy(times))
    count = len(times) - 1
    number = torch.arange(count)
    behind = (number[:, None] - 1 - torch.arange(memory)).clamp(min=0)
    back = Knots(*(x[behind].transpose(1, 2) for x in knots))
    # An answer where nothing is known says nothing about a polynomial in lam.
    first = torch.isinf(knots.lam[0]).long()
    valid = (number[:, None] - first).clamp(0, memory)
    left = (count - number)[:, None].expand_as(valid)
    return _Steps(equation, knots.part(slice(-1)), knots.part(slice(1, None)), back, valid, left, dense, errors)


def _of_step(
    equation: SemiLinear, t: Ticks, dt: Ticks, gaps: Tensor | None, memory: int, rows: int, dense: bool, errors: bool
) -> _Steps:
    tensors = [x for x in (t, dt, gaps) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    t, dt = (torch.as_tensor(x, dtype=torch.float64, device=device).reshape(-1).expand(rows) for x in (t, dt))
    past = t.new_zeros(rows, memory) if gaps is None else gaps
    ago = t[:, None] - past.cumsum(1)
    knots = Knots.at(equation, torch.cat([t[:, None], (t + dt)[:, None], ago], 1)[None])
    s, end, back = (knots.part((..., i)) for i in (0, 1, slice(2, None)))
    real = (past != 0) & torch.isfinite(back.lam[0])
    valid = real.long().cumprod(1).sum(1)[None] if memory else torch.zeros(1, rows, dtype=torch.int64, device=device)
    left = torch.full_like(valid, 1 << 30)
    return _Steps(equation, s, end, back, valid, left, dense, errors)


def _refuse_points(equation: SemiLinear, steps: _Steps) -> None:
    """A deterministic step cannot leave a point."""
    stuck = (steps.s.a == 0) & (steps.s.c == 0) & (steps.s.t != steps.t.t)
    if not equation.tau and bool(stuck.any()):
        raise ValueError(
            f"Exponential: the state at t = {float(steps.s.t[stuck][0].detach()):g} is a point, which no equation "
            f"without noise can leave: begin at an earlier time with a draw from the process, or solve with tau > 0"
        )


def _warn_unstable(solver: Any, equation: SemiLinear, steps: _Steps) -> None:
    """Say so where noise prediction would amplify."""
    if not isinstance(solver.kind, NoisePrediction) or solver.single:
        return
    reuses = solver.corrector is not None and not solver.corrector.again
    bound = largest_step(solver.order if reuses else solver.ahead, float(equation.tau), reuses)
    h = torch.where(torch.isfinite(steps.s.lam) & (steps.s.lam < 0), steps.t.lam - steps.s.lam, 0.0)
    longest = float(h[torch.isfinite(h)].max())
    if longest > bound + 1e-9:
        warnings.warn(
            f"Exponential(order={solver.order}, NoisePrediction()) with tau={equation.tau:g} takes steps of "
            f"{longest:.3g} in log(a / c), and amplifies errors beyond {bound:.3g}: take more steps, "
            f"or use DataPrediction()",
            RuntimeWarning,
            stacklevel=2,
        )


def _array(mask: Tensor) -> np.ndarray:
    return mask.detach().cpu().numpy()


def _recipe(solver: Any, steps: _Steps, mask: Tensor, stages: list[Knots], made: list[Formula], **rest: Any) -> Recipe:
    opens = steps.s.a == 0
    data = opens if isinstance(solver.kind, NoisePrediction) else torch.zeros_like(opens)
    times = [steps.s.t, *(k.t for k in stages)]
    return Recipe(_array(mask), times, made, rest.get("error"), rest.get("between", ()), steps.s.lam, _array(data))


def _multistep(solver: Any, steps: _Steps) -> list[Recipe]:
    """Steps with enough history, and those that begin."""
    preserving = isinstance(solver.start, Preserving)
    ahead = solver.ahead
    # A step of a method of order k - 1 has a local error of order k, which is all that a beginning needs.
    begins = solver.order - 1
    lands = steps.t.c == 0
    wanted = torch.minimum(steps.valid + 1, steps.left) if solver.lower_final else steps.valid + 1
    m = wanted.clamp(max=ahead)
    short = torch.zeros_like(lands)
    if preserving and begins > 1:
        short = (steps.valid < ahead - 1) | ((steps.s.a == 0) & (solver.order > 2))
        short = short & ~lands
    recipes = [_follow(solver, steps, ~short, m, preserving)]
    if bool(short.any()):
        recipes.append(_begin(solver, steps, short, begins))
    return recipes


def _follow(solver: Any, steps: _Steps, mask: Tensor, m: Tensor, preserving: bool) -> Recipe:
    """Adams, predicted and perhaps corrected; rows that open, land or stand still use one answer."""
    rule: Rule = solver.rule
    m = torch.where((steps.s.a == 0) | (steps.t.c == 0), 1, m)
    again = solver.corrector is not None and solver.corrector.again
    previous = None
    if solver.corrector is not None and not again:
        full = torch.minimum(steps.valid, torch.as_tensor(solver.ahead))
        started = solver.order > 2 and preserving
        previous = torch.where(steps.valid >= solver.memory, full, 0) if started else full

    def predicted(t: Knots) -> Tensor:
        lines = adams(rule, steps.equation, steps.s, t, steps.back, m)
        if previous is None or not bool((previous > 0).any()):
            return lines
        return adams_corrected(rule, steps.equation, lines, steps.s, steps.back, previous)

    lines = [Formula(predicted(steps.t), 1, steps.t.lam)]
    stages: list[Knots] = []
    if again:
        stages.append(steps.t)
        both = adams_moulton(rule, steps.equation, steps.s, steps.t, steps.back, m)
        odd = (steps.s.a == 0) | (steps.t.c == 0)
        alone = torch.cat([lines[0].numbers[..., : HEAD + 1], torch.zeros_like(both[..., :1])], -1)
        alone = torch.nn.functional.pad(alone, (0, both.shape[-1] - alone.shape[-1]))
        lines.append(Formula(torch.where(odd.unsqueeze(-1), alone, both), 2, steps.t.lam))
    between = ()
    if steps.dense:
        between = tuple(_part(steps, theta, predicted, 2 if again else 1) for theta in _THIRDS)
    return _recipe(solver, steps, mask, stages, lines, between=between)


def _part(steps: _Steps, theta: float, formed: Callable[[Knots], Tensor], stages: int) -> Formula:
    """A line to a time inside the step."""
    t = Knots.at(steps.equation, steps.s.t + theta * (steps.t.t - steps.s.t))
    numbers = formed(t)
    if stages > 1:
        gap = torch.zeros_like(numbers[..., : stages - 1])
        numbers = torch.cat([numbers[..., : HEAD + 1], gap, numbers[..., HEAD + 1 :]], -1)
    return Formula(numbers, stages, t.lam)


def _begin(solver: Any, steps: _Steps, mask: Tensor, order: int) -> Recipe:
    """A Runge-Kutta step that needs no history."""
    nodes = (0.5,) if order == 2 else _THIRDS
    return _padded(_stand(solver, steps, mask, nodes), solver.memory)


def _padded(r: Recipe, memory: int) -> Recipe:
    """The recipe with zero weights for the history."""
    lines, between = (
        [f._replace(numbers=torch.nn.functional.pad(f.numbers, (0, memory))) for f in group]
        for group in (r.lines, r.between)
    )
    return Recipe(r.mask, r.times, lines, r.error, between, r.lam, r.data)


def _inner(solver: Any, steps: _Steps) -> list[Recipe]:
    """Runge-Kutta steps, and those that land."""
    lands = steps.t.c == 0
    recipes = [_stand(solver, steps, ~lands, solver.nodes.nodes(solver.order))]
    if bool(lands.any()):
        first = line(inside(solver.rule), steps.equation, steps.s, steps.t, torch.zeros_like(steps.s.t).unsqueeze(-1))
        between = _thirds(steps, lambda t: line(inside(solver.rule), steps.equation, steps.s, t, _none(t)), 1)
        recipes.append(_recipe(solver, steps, lands, [], [Formula(first, 1, steps.t.lam)], between=between))
    return recipes


def _thirds(steps: _Steps, formed: Callable[[Knots], Tensor], stages: int) -> tuple[Formula, ...]:
    return tuple(_part(steps, theta, formed, stages) for theta in _THIRDS) if steps.dense else ()


def _none(t: Knots) -> Tensor:
    return torch.zeros_like(t.t).unsqueeze(-1)


def _stand(solver: Any, steps: _Steps, mask: Tensor, nodes: tuple[float, ...]) -> Recipe:
    """The exponential Runge-Kutta methods of orders 2 and 3 with nodes r1, r2 in lam.

        q_1 at r1 by order 1,   q_2 at r2 through q_0, q_1,   x' through q_0 and the last of them

    Their estimates compare with order 1, and with order 2 through q_0 and q_1.
    """
    equation, s, t = steps.equation, steps.s, steps.t
    rule, exact = inside(solver.rule), inside(solver.rule, exact=True)
    stages = [_knots(equation, s, shifted(s, t, r)) for r in nodes]
    lines = [Formula(line(rule, equation, s, stages[0], _none(s)), 1, stages[0].lam)]
    last = nodes[-1]
    if len(nodes) == 2:
        lines.append(Formula(_through(exact, steps, stages[1], nodes[0] / nodes[1]), 2, stages[1].lam))

    def end(t: Knots) -> Tensor:
        grown = torch.where(steps.t.t == t.t, 1.0, moved(t.lam, s, steps.t))
        numbers = _through(exact if len(nodes) == 2 else rule, steps, t, last * grown)
        if len(nodes) == 1:
            return numbers
        return torch.cat([numbers[..., :-1], torch.zeros_like(numbers[..., :1]), numbers[..., -1:]], -1)

    final = end(t)
    lines.append(Formula(final, len(nodes) + 1, t.lam))
    error = None
    if steps.errors:
        low = line(rule, equation, s, t, _none(s)) if len(nodes) == 1 else _through(exact, steps, t, nodes[0])
        low = torch.nn.functional.pad(low[..., HEAD:], (0, final.shape[-1] - low.shape[-1]))
        error = final[..., HEAD:] - low
    between: tuple[Formula, ...] = ()
    if steps.dense:
        between = tuple(_inside_step(steps, theta, end, len(nodes) + 1) for theta in _THIRDS)
    return _recipe(solver, steps, mask, stages, lines, error=error, between=between)


def _knots(equation: SemiLinear, s: Knots, lam: Tensor) -> Knots:
    """Knots at ``lam``, and those of s where that is its own."""
    found = Knots.at(equation, equation.time(lam))
    return Knots(*(torch.where(lam == s.lam, a, b) for a, b in zip(s, found, strict=True)))


def _inside_step(steps: _Steps, theta: float, formed: Callable[[Knots], Tensor], stages: int) -> Formula:
    t = Knots.at(steps.equation, steps.s.t + theta * (steps.t.t - steps.s.t))
    return Formula(formed(t), stages, t.lam)


def _through(rule: Rule, steps: _Steps, t: Knots, place: Any) -> Tensor:
    """The line to t through the answers at zero and at ``place``."""
    v = torch.as_tensor(place, dtype=torch.float64, device=t.t.device).expand_as(t.t)
    return line(rule, steps.equation, steps.s, t, torch.stack([torch.zeros_like(v), v], -1))
