"""Where the clocks of a solve live: on the host (eager loop) or beside the data (compiled loop).

A clock is a float64 or boolean vector with one entry per row of the state. Every rule that moves
clocks (controllers, the loop) is written once against the few functions below, which exist three
times: for numpy scalars (a joint solve, one clock), for numpy arrays (a clock per sample), and for
tensors (a compiled loop). The eager loop keeps its clocks on the host: scalar arithmetic costs
nothing beside a tensor dispatch, and the one transfer per step is the error norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.tree import Layout

__all__ = [
    "DEVICE",
    "HOST",
    "SINGLE",
    "Clock",
    "Ticks",
    "beside",
    "factors",
    "from_host",
    "hosted",
    "moments",
    "placed",
    "scaled_sum",
    "to_host",
]

Ticks: TypeAlias = Any
"""A clock vector: a numpy array on the host, a tensor in a compiled loop."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class Clock(Protocol):
    """Arithmetic on clocks, and the two crossings between clocks and data."""

    def where(self, mask: Ticks, a: Ticks, b: Ticks) -> Ticks: ...
    def minimum(self, a: Ticks, b: Ticks) -> Ticks: ...
    def maximum(self, a: Ticks, b: Ticks) -> Ticks: ...
    def isfinite(self, a: Ticks) -> Ticks: ...
    def full(self, like: Ticks, value: float) -> Ticks: ...
    def column(self, values: np.ndarray, like: Ticks) -> Ticks: ...
    def table(self, values: np.ndarray, index: Ticks) -> Ticks: ...
    def count(self, like: Ticks) -> Ticks: ...
    def read(self, values: Tensor) -> Ticks: ...
    def choose(self, mask: Ticks, new: Tensor, old: Tensor) -> Tensor: ...


def to_host(values: Tensor) -> np.ndarray:
    """Values of a tensor as a float64 array; transforms of ``torch.func`` are looked through.

    Raises:
        RuntimeError: the tensor is mapped by ``torch.vmap``, so that it has no single value.
    """
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if functorch.peek_interpreter_stack() is None:
        return values.detach().cpu().numpy().astype(np.float64)
    while functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            raise RuntimeError(
                "a solve inside torch.vmap that must look at its values (to adapt steps, to find events) cannot "
                "do so inside another transform: put the vmap inside it. Instead of vmap(grad(f)) over y write "
                "grad(lambda ys: vmap(f)(ys).sum())(ys), for the gradient of each sample for shared parameters w "
                "jacrev(lambda w: vmap(lambda y: f(w, y))(ys))(w); or make the axis a batch and solve with "
                "per_sample=True"
            )
        values = functorch.get_unwrapped(values)
    with torch._C._DisableFuncTorch():
        return values.detach().cpu().numpy().astype(np.float64)


def from_host(values: np.ndarray, like: Tensor) -> Tensor:
    """Numbers of the host as a tensor of the dtype and device of ``like``."""
    host = torch.from_numpy(values.astype(_NUMPY[like.dtype]))
    return host if like.device.type == "cpu" else host.to(like.device)


def beside(like: Tensor, *places: np.ndarray) -> tuple[Tensor, ...]:
    """Arrays of the host on the device of ``like``: places, masks, clocks."""
    return tuple(torch.from_numpy(x).to(like.device) for x in places)


def hosted(values: Sequence[Tensor]) -> list[Tensor]:
    """Clocks and counts on the host, brought there together; those that are there stay what they are."""
    return list(values) if all(x.device.type == "cpu" for x in values) else _moved(values, torch.device("cpu"))


def placed(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Clocks and counts of the host on a device, sent there together; see ``hosted``."""
    return list(values) if all(x.device == device for x in values) else _moved(values, device)


def _moved(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    # All have eight bytes: one transfer for all of them.
    bits = torch.cat([x.contiguous().view(torch.int64).reshape(-1) for x in values]).to(device)
    parts = bits.split([x.numel() for x in values])
    return [part.view(x.dtype).reshape(x.shape) for part, x in zip(parts, values, strict=True)]


class _Single:
    """One clock as numpy scalars: a tenth of the cost of arrays of one element."""

    @staticmethod
    def where(mask: Ticks, a: Ticks, b: Ticks) -> Ticks:
        return a if mask else b

    @staticmethod
    def minimum(a: Ticks, b: Ticks) -> Ticks:
        return np.float64(a if a < b else b)

    @staticmethod
    def maximum(a: Ticks, b: Ticks) -> Ticks:
        return np.float64(a if a > b else b)

    @staticmethod
    def isfinite(a: Ticks) -> Ticks:
        return np.bool_(isfinite(a))

    @staticmethod
    def full(like: Ticks, value: float) -> Ticks:
        return np.float64(value)

    @staticmethod
    def column(values: np.ndarray, like: Ticks) -> Ticks:
        return values

    @staticmethod
    def table(values: np.ndarray, index: Ticks) -> Ticks:
        return values[index, 0]

    @staticmethod
    def count(like: Ticks) -> Ticks:
        return np.int64(0)

    @staticmethod
    def read(values: Tensor) -> Ticks:
        try:
            return np.float64(values.item())
        except RuntimeError:
            to_host(values)
            raise

    @staticmethod
    def choose(mask: Ticks, new: Tensor, old: Tensor) -> Tensor:
        return new if mask else old


class _Host:
    """Clocks as numpy arrays; reading a tensor is the one host sync of a step."""

    @staticmethod
    def where(mask: Ticks, a: Ticks, b: Ticks) -> Ticks:
        return np.where(mask, a, b)

    @staticmethod
    def minimum(a: Ticks, b: Ticks) -> Ticks:
        return np.minimum(a, b)

    @staticmethod
    def maximum(a: Ticks, b: Ticks) -> Ticks:
        return np.maximum(a, b)

    @staticmethod
    def isfinite(a: Ticks) -> Ticks:
        return np.isfinite(a)

    @staticmethod
    def full(like: Ticks, value: float) -> Ticks:
        return np.full(like.shape, value)

    @staticmethod
    def column(values: np.ndarray, like: Ticks) -> Ticks:
        return values[:, None]

    @staticmethod
    def table(values: np.ndarray, index: Ticks) -> Ticks:
        return values[index, np.arange(len(index)) if values.shape[1] > 1 else 0]

    @staticmethod
    def count(like: Ticks) -> Ticks:
        return np.zeros(like.shape, dtype=np.int64)

    @staticmethod
    def read(values: Tensor) -> Ticks:
        return to_host(values)

    @staticmethod
    def choose(mask: Ticks, new: Tensor, old: Tensor) -> Tensor:
        """Rows of ``new`` where ``mask``, of ``old`` elsewhere; no copy where all agree.

        Cotangents meet in one node here whatever the mask, so that the order of their sums, and with
        it the last bits of a row's gradient, does not depend on what the other rows do.
        """
        if mask.all():
            return new.view_as(new) if new.requires_grad else new
        if not mask.any():
            return old
        rows = torch.from_numpy(mask).to(new.device)
        return torch.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), new, old)


class _Device:
    """Clocks as float64 tensors beside the data: no host sync, fixed shapes, traceable."""

    @staticmethod
    def where(mask: Ticks, a: Ticks, b: Ticks) -> Ticks:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            a = torch.full(mask.shape, a, dtype=torch.float64, device=mask.device)
        return torch.where(mask, a, b)

    @staticmethod
    def minimum(a: Ticks, b: Ticks) -> Ticks:
        if isinstance(b, Tensor):
            return torch.minimum(a, b) if isinstance(a, Tensor) else b.clamp(max=a)
        return a.clamp(max=b)

    @staticmethod
    def maximum(a: Ticks, b: Ticks) -> Ticks:
        if isinstance(b, Tensor):
            return torch.maximum(a, b) if isinstance(a, Tensor) else b.clamp(min=a)
        return a.clamp(min=b)

    @staticmethod
    def isfinite(a: Ticks) -> Ticks:
        return torch.isfinite(a)

    @staticmethod
    def full(like: Ticks, value: float) -> Ticks:
        return torch.full_like(like, value, dtype=torch.float64)

    @staticmethod
    def column(values: np.ndarray, like: Ticks) -> Ticks:
        return torch.as_tensor(values, device=like.device)[:, None]

    @staticmethod
    def table(values: np.ndarray, index: Ticks) -> Ticks:
        rows = torch.as_tensor(values, device=index.device).expand(-1, index.shape[0])
        return rows.gather(0, index.unsqueeze(0)).squeeze(0)

    @staticmethod
    def count(like: Ticks) -> Ticks:
        return torch.zeros(like.shape, dtype=torch.int64, device=like.device)

    @staticmethod
    def read(values: Tensor) -> Ticks:
        return values.detach().to(torch.float64)

    @staticmethod
    def choose(mask: Ticks, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)


SINGLE: Clock = _Single()
HOST: Clock = _Host()
DEVICE: Clock = _Device()


class Table(NamedTuple):
    """Constants of a method, as an array for the host and as numbers that a compiler can see."""

    array: np.ndarray
    numbers: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Table:
        """A table of the given numbers."""
        numbers = tuple(float(x) for x in values)
        return cls(np.array(numbers), numbers)


START, END = Table.of([0.0]), Table.of([1.0])
"""The positions 0 and 1 in a step."""


def factors(table: Table | np.ndarray, dt: Ticks, like: Tensor) -> Sequence[Any]:
    """The products ``table[i] * dt`` as factors of rows: a number each for one clock on the host,
    else an ``(R, 1)`` tensor each.

    Formed in float64 and rounded once to the dtype of ``like``.
    """
    if isinstance(dt, Tensor):
        return [(dt * x).to(like.dtype).unsqueeze(-1) for x in _numbers(table)]
    array = table.array if isinstance(table, Table) else table
    if not isinstance(dt, np.ndarray):
        return (array * dt).tolist()
    scaled = (array[:, None] * dt).astype(_NUMPY[like.dtype])[..., None]
    return torch.from_numpy(scaled).to(like.device).unbind(0)


def _numbers(table: Table | np.ndarray) -> Sequence[float]:
    return table.numbers if isinstance(table, Table) else table.tolist()


def scaled_sum(y: Tensor | None, factor: Tensor | float, k: Tensor) -> Tensor:
    """y + factor * k, in one operation."""
    if y is None:
        return k * factor
    return torch.addcmul(y, factor, k) if isinstance(factor, Tensor) else torch.add(y, k, alpha=factor)


def moments(t: Ticks, dt: Ticks, nodes: Table | np.ndarray, layout: Layout) -> Sequence[Tensor]:
    """The times ``t + nodes[i] * dt`` as the field sees them: shape ``()`` jointly, else ``(R,)``.

    Formed in float64 and rounded once to the dtype in which the field sees time.
    """
    if isinstance(dt, Tensor):
        times = [(t + dt * x if x else t).to(layout.time_dtype) for x in _numbers(nodes)]
        return times if layout.per_sample else [x.squeeze(-1) for x in times]
    array = nodes.array if isinstance(nodes, Table) else nodes
    host = t + (array[:, None] if isinstance(dt, np.ndarray) else array) * dt
    times = torch.from_numpy(host.astype(_NUMPY[layout.time_dtype]))
    return (times if layout.device.type == "cpu" else times.to(layout.device)).unbind(0)
