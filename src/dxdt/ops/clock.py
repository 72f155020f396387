"""Where the clocks of a solve live: on the host (eager loop) or beside the data (compiled loop).

A clock is a float64 or boolean vector with one entry per row of the state. Every rule that moves
clocks (controllers, the loop) is written once against the few functions below, which exist for
numpy arrays and for tensors alike. The eager loop keeps its clocks on the host: scalar arithmetic
costs nothing beside a tensor dispatch, and the one transfer per step is the error norm.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["DEVICE", "HOST", "Clock", "Ticks", "factors", "from_host", "moments", "to_host"]

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
    def table(self, values: np.ndarray, like: Ticks) -> Ticks: ...
    def count(self, like: Ticks) -> Ticks: ...
    def read(self, values: Tensor) -> Ticks: ...
    def choose(self, mask: Ticks, new: Tensor, old: Tensor) -> Tensor: ...


def to_host(values: Tensor) -> np.ndarray:
    """Values of a tensor as a float64 array; transforms of ``torch.func`` are looked through.

    Raises:
        RuntimeError: the tensor is mapped by ``torch.vmap``, so that it has no single value.
    """
    values = values.detach()
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            raise RuntimeError(
                "an adaptive solve inside torch.vmap has no single step size: "
                "map with dxdt.solve(..., per_sample=True) instead"
            )
        values = functorch.get_unwrapped(values).detach()
    return values.to("cpu", torch.float64).numpy()


def from_host(values: np.ndarray, like: Tensor) -> Tensor:
    """Numbers of the host as a tensor of the dtype and device of ``like``."""
    return torch.from_numpy(values.astype(_NUMPY[like.dtype])).to(like.device)


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
    def table(values: np.ndarray, like: Ticks) -> Ticks:
        return values

    @staticmethod
    def count(like: Ticks) -> Ticks:
        return np.zeros(like.shape, dtype=np.int64)

    @staticmethod
    def read(values: Tensor) -> Ticks:
        return to_host(values)

    @staticmethod
    def choose(mask: Ticks, new: Tensor, old: Tensor) -> Tensor:
        """Rows of ``new`` where ``mask``, of ``old`` elsewhere; no operation where all agree."""
        if mask.all():
            return new
        if not mask.any():
            return old
        rows = torch.from_numpy(mask).to(new.device)
        return torch.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), new, old)


class _Device:
    """Clocks as float64 tensors beside the data: no host sync, fixed shapes, traceable."""

    @staticmethod
    def where(mask: Ticks, a: Ticks, b: Ticks) -> Ticks:
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
    def table(values: np.ndarray, like: Ticks) -> Ticks:
        return torch.as_tensor(values, device=like.device)

    @staticmethod
    def count(like: Ticks) -> Ticks:
        return torch.zeros(like.shape, dtype=torch.int64, device=like.device)

    @staticmethod
    def read(values: Tensor) -> Ticks:
        return values.detach().to(torch.float64)

    @staticmethod
    def choose(mask: Ticks, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (new.ndim - 1)), new, old)


HOST: Clock = _Host()
DEVICE: Clock = _Device()


def factors(table: np.ndarray, dt: Ticks, like: Tensor) -> tuple[Tensor, ...]:
    """The products ``table[i] * dt`` as factors of rows: one ``(R, 1)`` tensor per entry.

    Formed in float64 and cast once to the dtype of ``like``, so that a product of step and
    coefficient is rounded once.
    """
    if isinstance(dt, Tensor):
        scaled = torch.as_tensor(table, dtype=dt.dtype, device=dt.device)[:, None] * dt
        return scaled.to(like.dtype).unsqueeze(-1).unbind(0)
    scaled = (table[:, None] * dt).astype(_NUMPY[like.dtype])[..., None]
    return torch.from_numpy(scaled).to(like.device).unbind(0)


def moments(t: Ticks, dt: Ticks, nodes: np.ndarray, joint: bool, like: Tensor) -> tuple[Tensor, ...]:
    """The times ``t + nodes[i] * dt`` as the field sees them: shape ``()`` jointly, else ``(R,)``."""
    if isinstance(dt, Tensor):
        c = torch.as_tensor(nodes, dtype=dt.dtype, device=dt.device)
        times = (t + c[:, None] * dt).to(like.dtype)
        return (times.squeeze(-1) if joint else times).unbind(0)
    times = (t + nodes[:, None] * dt).astype(_NUMPY[like.dtype])
    return torch.from_numpy(times[:, 0].copy() if joint else times).to(like.device).unbind(0)
