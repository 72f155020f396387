"""Cotangents on the way back through the accepted steps of a solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dxdt.diffeq.loop.plan import After, Carry, Plan
from dxdt.diffeq.loop.saving import Served
from dxdt.diffeq.methods.solver import State
from dxdt.ops.times import Ticks

__all__ = ["Cotangents", "added", "vjp_of"]


@dataclass
class Cotangents:
    """Cotangents on the way back: of what a step hands on, and of the answers still to be met."""

    y: Tensor
    solver: State
    origin: Tensor | None
    values: Tensor | None
    starts: Tensor | None
    coefficients: Tensor | None
    times: Tensor | None
    used: int
    level: int
    event: int

    @classmethod
    def of(cls, given: tuple[Tensor | None, ...], carry: Carry) -> Cotangents:
        y, values, starts, coefficients, times, origin = given
        y = torch.zeros_like(carry.y) if y is None else y
        if carry.origin is not None and origin is None:
            origin = torch.zeros_like(carry.origin)
        lengths = (0 if x is None else x.shape[0] for x in (values, coefficients, times))
        solver = tuple(torch.zeros_like(s) for s in carry.solver)
        return cls(y, solver, origin, values, starts, coefficients, times, *lengths)

    def entries(self) -> list[Tensor]:
        return [self.y, *self.solver, *(() if self.origin is None else (self.origin,))]

    def enter(self, kept: list[Tensor]) -> None:
        self.y = kept[0]
        self.solver = tuple(kept[1 : 1 + len(self.solver)])
        self.origin = None if self.origin is None else kept[-1]

    def of_step(
        self, plan: Plan, ok: Ticks, after: After, served: Served
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Outputs of a step, their cotangents, and the cotangent of its start as a value of the path."""
        outs = [after.y, *after.solver, *(() if after.origin is None else (after.origin,))]
        pulls = [_masked(plan, ok, g) for g in self.entries()]
        if served.values is not None and self.values is not None:
            outs.append(served.values)
            pulls.append(self.values[self.used - len(served.values) : self.used])
            self.used -= len(served.values)
        if served.time is not None and self.times is not None:
            self.event -= 1
            outs.append(served.time)
            pulls.append(_masked(plan, ok, self.times[self.event]))
        start = None
        if served.coefficients is not None and self.coefficients is not None:
            self.level -= 1
            mask = torch.as_tensor(ok, device=self.y.device).reshape(-1, 1)
            outs.append(served.coefficients)
            pulls.append(torch.where(mask, self.coefficients[self.level], 0.0))
            start = None if self.starts is None else torch.where(mask, self.starts[self.level], 0.0)
        return outs, pulls, start


def _masked(plan: Plan, ok: Ticks, g: Tensor) -> Tensor:
    return g if ok.all() else plan.span.clock.choose(ok, g, torch.zeros_like(g))


def vjp_of(outs: list[Tensor], inputs: list[Tensor], cots: list[Tensor]) -> list[Tensor | None]:
    """Cotangents of the inputs from those of the outputs, None where there is no path."""
    live = [(o, c) for o, c in zip(outs, cots, strict=True) if o.requires_grad]
    if not live:
        return [None] * len(inputs)
    return list(torch.autograd.grad([o for o, _ in live], inputs, [c for _, c in live], allow_unused=True))


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two cotangents, None standing for zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
