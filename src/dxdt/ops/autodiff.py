"""Derivatives of fields: Jacobian-vector products, their transposes, and the divergence.

A field maps (B, *shape) to (B, *shape) and each row of its value depends on the same row of its
argument only. One forward and one transposed pass then give, for a direction d,

    <d, J^T d>   of every row at once,

and the divergence tr J is the sum of these over a basis (exact), or their mean over random d with
E[d d^T] = I (unbiased).

Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989); Skilling,
"The eigenvalues of mega-dimensional matrices" (1989); Grathwohl et al., "FFJORD" (2019), 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.eager_transforms import enable_inplace_requires_grad

from dxdt.ops.random import rademacher

__all__ = [
    "Exact",
    "Hutchinson",
    "Trace",
    "derivative",
    "divergence",
    "jacobian",
    "jvp",
    "value_and_traces",
    "vjp",
]


def jvp(f: Callable[[Tensor], Any], y: Tensor, v: Tensor) -> tuple[Any, Any]:
    """Return f(y) and J v by forward differentiation; f may return a tree of tensors."""
    value, product, *_ = torch.func.jvp(f, (y,), (v,))
    return value, product


def vjp(f: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return f(y) and the map w -> J^T w by reverse differentiation."""
    value, pull, *_ = torch.func.vjp(f, y)
    return value, lambda w: pull(w)[0]


def jacobian(
    f: Callable[[Tensor], Tensor], y: Float[Tensor, "R n"]
) -> tuple[Float[Tensor, "R m"], Float[Tensor, "R m n"]]:
    """Return f(y) and the derivative of each row of it by the same row of y.

    All passes are one call, mapped over the rows of an identity: transposed ones, or forward ones where f has more
    values than arguments. The derivative can be differentiated itself, where gradients are recorded or a transform
    is active.
    """
    if _functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling():
        value, pull = vjp(f, y)
        if value.shape[-1] > y.shape[-1]:
            return value, _pushed(f, y)
        rows = torch.func.vmap(lambda e: pull(e.expand(value.shape)))(_basis(value))
        return value, rows.movedim(0, -2)
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        at = y.view_as(y) if graph and y.requires_grad else y.detach().requires_grad_()
        value = f(at.view_as(at))  # a view, which f may write into
    if not value.requires_grad:
        return value, value.new_zeros(*value.shape, y.shape[-1])
    if value.shape[-1] > y.shape[-1]:
        return (value if graph else value.detach()), _pushed(f, y)
    rows = _pulled(value, at, _basis(value)[:, None].expand(-1, *value.shape), graph)
    return (value, rows.movedim(0, -2)) if graph else (value.detach(), rows.movedim(0, -2).detach())


def _basis(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _pushed(f: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """The columns J e, side by side."""
    columns = torch.func.vmap(lambda e: torch.func.jvp(f, (y,), (e.expand(y.shape),))[1])(_basis(y))
    return columns.movedim(0, -1)


def _pulled(value: Tensor, at: Tensor, cots: Tensor, graph: bool) -> Tensor:
    """J^T of each cotangent, ``(m, R, n)``: mapped where the operations can be, else one by one."""
    if not len(cots):
        return at.new_zeros(0, *at.shape)
    options: dict[str, Any] = dict(create_graph=graph, retain_graph=True, allow_unused=True)
    try:
        rows = torch.autograd.grad(value, at, cots, is_grads_batched=True, **options)[0]
    except (RuntimeError, NotImplementedError):
        parts = [torch.autograd.grad(value, at, cot, **options)[0] for cot in cots]
        rows = None if parts[0] is None else torch.stack(parts)
    # Where the value follows from other tensors alone, nothing says so but this None.
    return at.new_zeros(len(cots), *at.shape) if rows is None else rows


def derivative(f: Callable[[Tensor], Tensor], x: Float[Tensor, " n"]) -> Tensor | None:
    """Return df_i/dx_i for a function whose values depend each on its own entry, or None where f
    does not depend on x differentiably; inside transforms of `torch.func` too.

    Raises:
        RuntimeError: `f` meets both a `vmap` and, outside of it, another transform.
    """
    stack = _functorch.get_interpreter_stack() or ()
    if stack and stack[-1].key() != _functorch.TransformType.Vmap:
        value, slope = jvp(f, x, torch.ones_like(x))
        return slope if value.is_floating_point() else None
    with torch.enable_grad(), enable_inplace_requires_grad(True):
        at = x.detach().requires_grad_()
        value = f(at)
        if _functorch.is_functorch_wrapped_tensor(value):
            raise RuntimeError(
                "an event inside torch.vmap cannot be differentiated by a transform around it: "
                "use torch.autograd.grad, or make the axis a batch and solve with per_sample=True"
            )
        if not value.requires_grad:
            return None
        (slope,) = torch.autograd.grad(value.sum(), at)
    return slope


class Trace(Protocol):
    """How the divergence is measured: which directions, and what their products mean."""

    def directions(self, y: Tensor) -> Float[Tensor, "probes *shape"]:
        """Return the directions for states like `y`, to be kept for a whole solve."""
        ...

    def combine(self, products: Float[Tensor, "probes batch"]) -> Float[Tensor, "batch kept"]:
        """Turn <d, J^T d> for every direction into estimates that are averaged in the end."""
        ...


@final
@dataclass(frozen=True)
class Exact:
    """tr J as the sum over the standard basis: as many transposed passes as entries."""

    def directions(self, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "n batch *shape"]:
        """Return the n standard basis vectors, the same for every row."""
        n = y[0].numel()
        basis = torch.eye(n, dtype=y.dtype, device=y.device).reshape(n, 1, *y.shape[1:])
        return basis.expand(n, *y.shape)

    def combine(self, products: Float[Tensor, "n batch"]) -> Float[Tensor, "batch 1"]:
        """Return their sum."""
        return products.sum(0).unsqueeze(-1)


@final
@dataclass(frozen=True)
class Hutchinson:
    """tr J as a mean over random signs, one estimate for each probe.

    A row's signs depend on (seed, probe, row) only, not on the size of the batch.

    Args:
        probes: number of directions; the spread of their estimates gives a standard error.
        seed: names the directions.
        first: number of the first row, where rows are a part of many.
        before: probes of each row that were drawn before under this seed.

    Raises:
        ValueError: `probes` is below 1.
    """

    probes: int = 1
    seed: int = 0
    first: int = 0
    before: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson: probes={self.probes} measures nothing; give at least 1.")

    def directions(self, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "probes batch *shape"]:
        """Return independent signs for every probe, row and entry."""
        probe = self.before + torch.arange(self.probes, device=y.device)[:, None, None]
        row = self.first + torch.arange(y.shape[0], device=y.device)[:, None]
        entry = torch.arange(y[0].numel(), device=y.device)
        signs = rademacher(self.seed, row, probe, entry, dtype=y.dtype)
        return torch.as_tensor(signs).reshape(self.probes, *y.shape)

    def combine(self, products: Float[Tensor, "probes batch"]) -> Float[Tensor, "batch probes"]:
        """Return every probe's estimate."""
        return products.transpose(0, 1)


def value_and_traces(
    f: Callable[[Tensor], Tensor],
    y: Float[Tensor, "batch *shape"],
    directions: Float[Tensor, "probes batch *shape"],
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "probes batch"]]:
    """Return f(y) and <d, J^T d> for every direction d and row: one forward pass in all."""
    if directions.shape[0] == 1 and _plain(y):
        value, pulled = _value_and_pull(f, y, directions[0])
        return value, (directions * pulled).flatten(2).sum(-1)
    value, pull = vjp(f, y)
    if directions.shape[0] == 1:
        pulled = pull(directions[0]).unsqueeze(0)
    else:
        pulled = torch.func.vmap(pull)(directions)
    return value, (directions * pulled).flatten(2).sum(-1)


def divergence(f: Callable[[Tensor], Tensor], y: Float[Tensor, "batch *shape"], kind: Trace) -> Float[Tensor, " batch"]:
    """Return tr(df/dy) of every row, measured by `kind`."""
    _, products = value_and_traces(f, y, kind.directions(y))
    return kind.combine(products).mean(-1)


def _plain(y: Tensor) -> bool:
    """Whether nothing around a derivative differentiates or traces it, so that it may use the tape of autograd, which
    costs a third less than the transform."""
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
        return False
    return _functorch.peek_interpreter_stack() is None and not y.requires_grad


def _value_and_pull(f: Callable[[Tensor], Tensor], y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """f(y) and J^T w by the tape."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        value = f(at.view_as(at))  # a view, which f may write into
    if not value.requires_grad:
        return value, torch.zeros_like(y)
    (pulled,) = torch.autograd.grad(value, at, w, materialize_grads=True)
    return value.detach(), pulled
