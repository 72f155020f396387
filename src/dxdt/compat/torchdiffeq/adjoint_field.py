"""The right-hand side of the adjoint state as the compiler takes it, and the norms of that state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from dxdt.compat.torchdiffeq.problem import Problem, Start, largest_rms
from dxdt.diffeq.programs.pullback import hold
from dxdt.ops.reach import Reach

__all__ = ["AdjointNorm", "EntriesNorm", "Shapes", "traceable"]


@dataclass(frozen=True)
class Shapes:
    """How a state lies in a flat tensor; equal for equal shapes, so that programs are shared.

    Attributes:
        parts: shape and dtype of each entry of a tuple, or None for a tensor.
    """

    parts: tuple[tuple[torch.Size, torch.dtype], ...] | None

    @classmethod
    def of(cls, start: Start) -> Shapes:
        """Those of a state."""
        return cls(tuple((x.shape, x.dtype) for x in start.parts) if start.is_tuple else None)

    def shaped(self, flat: Tensor) -> Any:
        """The state that lies in a vector."""
        if self.parts is None:
            return flat
        out, at = [], 0
        for shape, dtype in self.parts:
            out.append(flat[at : at + shape.numel()].view(shape).to(dtype))
            at += shape.numel()
        return tuple(out)

    def flat(self, y: Any, like: Tensor) -> Tensor:
        """The vector in which a state lies, in the dtype and shape of ``like``."""
        value = y if self.parts is None else torch.cat([x.reshape(-1).to(like.dtype) for x in y])
        return value.to(like.dtype).reshape(like.shape)


@dataclass(frozen=True)
class AdjointNorm:
    """Norm of ``(t, y, adjoint of y, *adjoints of parameters)``: the largest of the norms of its entries.

    Args:
        shapes: of y.
        norm: of a state.
        full: whether the adjoints of the parameters count.
    """

    shapes: Shapes
    norm: Callable[[Any], Any]
    full: bool

    def __call__(self, parts: tuple[Tensor, ...]) -> Tensor:
        t, y, adjoint, *rest = parts
        values = [torch.as_tensor(self.norm(self.shapes.shaped(x)), device=x.device).abs() for x in (y, adjoint)]
        value = torch.stack([t.abs(), *values]).amax()
        return torch.maximum(value, largest_rms(tuple(rest))) if self.full and rest else value


@dataclass(frozen=True)
class EntriesNorm:
    """A user's norm of the adjoint state of a tuple, which sees the entries one by one.

    Args:
        shapes: of y.
        norm: of ``(t, *y, *adjoint of y, *adjoints of parameters)``.
    """

    shapes: Shapes
    norm: Callable[[Any], Any]

    def __call__(self, parts: tuple[Tensor, ...]) -> Any:
        t, y, adjoint, *rest = parts
        return self.norm((t, *self.shapes.shaped(y), *self.shapes.shaped(adjoint), *rest))


def traceable(problem: Problem, params: Sequence[Tensor], time: bool) -> Callable[..., tuple[Tensor, ...]]:
    """-a df/dt, f, -a df/dy, -a df/dtheta as a function of ``(t, (t part, y, a, *sums))`` without autograd.

    Raises:
        CannotCompile: a parameter belongs to no module of the field.
    """
    func, shapes = problem.func, Shapes.of(problem.start)
    reach = Reach(func)
    holder, names = hold(func, iter((*reach.modules, *reach.owners)), tuple(params))
    held = tuple(p.detach() for p in params)

    def right(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, adjoint = state[1], state[2]

        def field(t: Tensor, y: Tensor, *inner: Tensor) -> Tensor:
            named = dict(zip(names, inner, strict=True))
            return shapes.flat(functional_call(holder, named, (0, t, shapes.shaped(y))), y)

        if time:
            value, pull = torch.func.vjp(field, t, y, *held)[:2]
            lead, *rest = pull(-adjoint)
        else:
            value, pull = torch.func.vjp(lambda y, *inner: field(t, y, *inner), y, *held)[:2]
            lead, rest = torch.zeros_like(state[0]), list(pull(-adjoint))
        return lead, value, *rest

    return right
