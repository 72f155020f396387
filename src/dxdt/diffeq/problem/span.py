"""The span of a solve: where each row begins and ends, and the grid it may be given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.times import to_host
from dxdt.ops.tree import Layout

__all__ = ["Interval", "numbers", "rounding", "times_of"]

_EPS = float(np.finfo(np.float64).eps)
# Lengths of the span from zero, beyond which less than four digits of a float32 are left for the times in it.
_FAR = 1e3


@dataclass(frozen=True, eq=False)
class Interval:
    """The parsed ``t`` of a solve.

    Attributes:
        t0, t1: ends on the host, float64 ``(R,)``.
        tensors: the ends as float64 tensors ``(R,)`` where one requires a gradient, else None.
        eps: rounding of the ends as they were given.
    """

    t0: np.ndarray
    t1: np.ndarray
    tensors: tuple[Tensor, Tensor] | None
    eps: float = _EPS

    @property
    def still(self) -> np.ndarray:
        """Rows that begin where they end, ``(R,)``."""
        return self.t0 == self.t1

    def seen_by(self, layout: Layout) -> Layout:
        """A layout whose fields see time in float64 where float32 cannot tell the parts of a step apart."""
        largest, length = np.abs(self.t0).max(initial=0.0), np.abs(self.t1 - self.t0).max(initial=0.0)
        if layout.time_dtype is torch.float64 or largest <= _FAR * length:
            return layout
        return replace(layout, time_dtype=torch.float64)

    def slack(self, eps: float) -> np.ndarray:
        """How far times that were given with a rounding may lie outside, ``(R,)``."""
        largest = np.maximum(np.abs(self.t0), np.abs(self.t1))
        finite = np.where(np.isfinite(largest), largest, 0.0)
        length = np.where(np.isfinite(largest), np.abs(self.t1 - self.t0), 0.0)
        return 1e-9 * length + 4 * max(eps, self.eps) * finite

    @classmethod
    def of(cls, t: Any, layout: Layout) -> Interval:
        """Parse a pair ``(t0, t1)`` of numbers or ``(B,)`` tensors, or a tensor ``(2,)`` or ``(2, B)``.

        Raises:
            ValueError: a shape that does not fit, or ends that are not finite (t1 may be infinite).
        """
        if type(t) is tuple and len(t) == 2 and type(t[0]) is float is type(t[1]) and _is_span(*t):
            return cls(np.full(layout.rows, t[0]), np.full(layout.rows, t[1]), None)
        if t is None:
            raise ValueError("solve has no t: give the span as a pair (t0, t1)")
        if isinstance(t, (str, int, float, complex)) or not (hasattr(t, "__len__") or hasattr(t, "__iter__")):
            raise TypeError(f"t is {t!r}: give the span as a pair (t0, t1)")
        points = (
            list(t) if not isinstance(t, (Tensor, np.ndarray)) else [t[i] for i in range(t.shape[0] if t.ndim else 0)]
        )
        if len(points) != 2:
            raise ValueError(f"t has {len(points)} times: give the span as a pair (t0, t1), or times to save at")
        host = np.stack([_row(p, layout) for p in points])
        _check(host)
        t0, t1 = (np.array(np.broadcast_to(x, layout.rows)) for x in (host[0], host[-1]))
        return cls(t0, t1, _tensors(points, layout), max(rounding(p) for p in points))


def times_of(times: Any, layout: Layout, what: str) -> tuple[np.ndarray, Tensor | None]:
    """Requested times as ``(T, 1 or R)`` on the host, and as a tensor where it requires a gradient.

    Raises:
        ValueError: no times, a shape that does not fit, or times that are not finite.
    """
    tensor = times if isinstance(times, Tensor) else torch.as_tensor(numbers(times, what))
    fits = tensor.dim() == 1 or (tensor.dim() == 2 and layout.per_sample and tensor.shape[1] == layout.rows)
    if not fits or tensor.shape[0] == 0:
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}: give at least one time as a vector (T,)"
            + (f", or (T, {layout.rows}) with one column for each sample" if layout.per_sample else "")
        )
    tensor = tensor if tensor.dim() == 2 else tensor[:, None]
    host = numbers(tensor, what)
    if not np.isfinite(host).all():
        raise ValueError(f"{what} has times that are not finite: remove them")
    differentiable = tensor.requires_grad and torch.is_grad_enabled()
    return host, tensor.to(layout.device, torch.float64) if differentiable else None


def rounding(times: Any) -> float:
    """The unit of rounding of the dtype in which times were given: that of float64 for numbers."""
    if isinstance(times, Tensor):
        return torch.finfo(times.dtype).eps if times.dtype.is_floating_point else _EPS
    if isinstance(times, np.ndarray | np.generic):
        kind = np.dtype(times.dtype)
        return float(np.finfo(kind).eps) if kind.kind == "f" else _EPS  # pyright: ignore[reportCallIssue, reportArgumentType]
    return max((rounding(x) for x in times), default=_EPS) if isinstance(times, list | tuple) else _EPS


def numbers(value: Any, what: str) -> np.ndarray:
    """Real numbers, or a tensor of them, on the host in float64.

    Raises:
        TypeError: anything else.
    """
    if not (isinstance(value, Tensor) and value.is_complex()):
        try:
            return to_host(value) if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            pass
    raise TypeError(
        f"{what} has {' '.join(repr(value).split())[:60]}, which is not real: give real numbers, or a tensor of them"
    )


def _row(point: Any, layout: Layout) -> np.ndarray:
    value = numbers(point, "t")
    if value.ndim == 0:
        return np.broadcast_to(value, (layout.rows if layout.per_sample else 1,))
    if value.shape == (1,) and not layout.per_sample:
        return value
    if not (layout.per_sample and value.shape == (layout.rows,)):
        raise ValueError(
            f"t has an end of shape {value.shape}: give a number"
            + (f", or one for each of the {layout.rows} samples" if layout.per_sample else ", or set per_sample=True")
        )
    return value


def _is_span(t0: float, t1: float) -> bool:
    """Whether a pair of numbers needs no further look."""
    return isfinite(t0) and isfinite(t1) and t0 != t1


def _check(host: np.ndarray) -> None:
    if np.isnan(host).any() or not np.isfinite(host[0]).all():
        raise ValueError("t has times that are not finite: give a finite t0, and a t1 that is a number or infinite")


def _tensors(points: list[Any], layout: Layout) -> tuple[Tensor, Tensor] | None:
    ends = points[0], points[-1]
    if not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in ends)):
        return None
    t0, t1 = (torch.as_tensor(x, device=layout.device).to(torch.float64).expand(layout.rows) for x in ends)
    return t0, t1
