"""What a vector field depends on besides its arguments, found by walking the graph of one evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq.gradients.gradient import Inputs
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.loop.probe import Seeds

__all__ = ["captured", "lost"]


def captured(plan: Plan, inputs: Inputs) -> None:
    """Walk the graph of one evaluation, and refuse what a recomputing rule would lose.

    Raises:
        ValueError: the field uses a tensor that requires a gradient and is not an input of the
            solve, or draws random numbers (a second evaluation would differ).
    """
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs.tensors()]
    params = len(inputs.params)
    inputs = inputs.rebuilt([*leaves[: len(leaves) - params], *inputs.params])
    plan = inputs.plan(plan)
    y = inputs.y.detach().requires_grad_()
    seeds = Seeds(y.device)
    strangers = _strangers(plan, inputs, y)
    if seeds.used:
        raise ValueError(
            "the field draws random numbers (dropout?), so forming its steps again would give other values: "
            "call .eval() on it, or use gradient=dxdt.Direct()"
        )
    if strangers:
        # A field that differentiates inside may end its graph in leaves of its own, which are new each time.
        again = {id(x) for x in _strangers(plan, inputs, y)}
        for x in strangers:
            if id(x) in again:
                raise lost(x)


def _strangers(plan: Plan, inputs: Inputs, y: Tensor) -> list[Tensor]:
    """Tensors in which the graph of one evaluation ends and that are no inputs of the solve."""
    with torch.enable_grad():
        values = plan.equation.probe(plan.span.t0, y)
        if plan.watch is not None:
            values = (*values, *plan.watch.probe(plan.span.t0, y))
    given = (y, *inputs.tensors())
    known = {id(x) for x in given}
    # What an input was made of is the business of the graph around the solve.
    made = {x.grad_fn for x in given if x.grad_fn is not None}
    return [x for x in _leaves_of(values, made) if id(x) not in known]


def lost(x: Tensor) -> ValueError:
    """The error of a field that uses a tensor whose gradient would be lost."""
    return ValueError(
        f"the field uses a tensor of shape {tuple(x.shape)} that requires a gradient but is not an input of "
        f"the solve, so its gradient would be lost: pass it in args=, list it in params=, make it a parameter "
        f"of the field's module, or use gradient=dxdt.Direct()"
    )


def _leaves_of(values: Iterable[Tensor], ends: Iterable[Any]) -> Iterable[Tensor]:
    """Tensors that a graph ends in, which is not followed beyond some of its nodes."""
    stack = [v.grad_fn for v in values if v.grad_fn is not None]
    seen: set[Any] = set(ends)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        stack.extend(n for n, _ in node.next_functions if n is not None)
