"""What drives a stochastic solve: a seeded path that answers for increments.

    W = W(t + dt) - W(t),        H = (1/dt) int_t^{t+dt} (W(s) - W(t) - (s - t)/dt W) ds.

H is the space-time Levy area: N(0, |dt|/12), independent of W. With dt < 0 (a backward solve) W
changes sign and H does not. A driver is a value; `bind` gives it the shape of one solve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.ops import random
from dxdt.ops.times import to_host

__all__ = [
    "Bound",
    "Correlated",
    "Driver",
    "Increment",
    "Levy",
    "Onward",
    "SpaceTime",
    "Ticks",
    "fresh",
    "mix",
    "settle",
]

# Beyond the nodes of the tree of `Brownian` and the cells of `Increments`.
_FRESH = 1 << 50
_STREAM = 1 << 40

Ticks: TypeAlias = Any
"""A float64 clock of shape (R,): a numpy array on the host, a tensor in a compiled loop."""


@final
class SpaceTime:
    """The driver gives H beside W: pass this class as `levy`."""


Levy: TypeAlias = type[SpaceTime] | None


class Increment(NamedTuple):
    """What a driver did over [t, t + dt]: W and H of shape (R, size), H None where not asked."""

    dt: Ticks
    W: Tensor
    H: Tensor | None


class Bound(Protocol):
    """A driver with the shape of one solve."""

    def increment(self, t: Ticks, dt: Ticks, step: Any = 0) -> Increment:
        """The increment over [t, t + dt] of each row; exactly zero where dt is zero."""
        ...

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Standard normals (R, size) beside the path and independent of it: a function of
        (seed, row, step, stream) alone, for methods that need more noise than the path has."""
        ...


class Driver(Protocol):
    """The random path of a solve."""

    adaptive: ClassVar[bool]
    """Whether steps may be chosen while solving."""

    @property
    def levy(self) -> Levy: ...

    def bind(
        self,
        t0: float | np.ndarray,
        t1: float | np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        row_offset: int = 0,
    ) -> Any: ...


def settle(x: Any, device: torch.device) -> Any:
    """An eager clock on the CPU as a numpy array, which is faster; any other as it is."""
    if isinstance(x, Tensor) and device.type == "cpu" and not torch.compiler.is_compiling():
        return to_host(x)
    return x


def fresh(seed: Tensor, row: Tensor, step: Any, stream: int, size: int, dtype: torch.dtype) -> Tensor:
    """The normals of `Bound.normals` for rows (R,), in a step that is an int or one for each row."""
    if isinstance(step, np.ndarray):
        step = torch.from_numpy(step.astype(np.int64)).to(row.device)
    node = (step if isinstance(step, Tensor) else int(step)) + (_FRESH + stream * _STREAM)
    return random.normals(seed, row, node, size, dtype=torch.float64).to(dtype)


def mix(values: Float[Tensor, "*shape m"], matrix: Float[Tensor, "n m"]) -> Float[Tensor, "*shape n"]:
    """The product matrix @ values, in a fixed order: its bits do not depend on the batch size."""
    columns = matrix.unbind(1)
    total = values[..., :1] * columns[0]
    for j, column in enumerate(columns[1:], 1):
        total = total + values[..., j : j + 1] * column
    return total


class _Around:
    """What a driver made of another has from it."""

    driver: Any

    @property
    def adaptive(self) -> bool:
        """Whether steps may be chosen while solving."""
        return self.driver.adaptive

    @property
    def levy(self) -> Levy:
        """What is given beside W."""
        return self.driver.levy

    @property
    def span(self) -> tuple[float, float] | None:
        """The interval of the path where it has one of its own, else None."""
        return getattr(self.driver, "span", None)


@final
@dataclass(frozen=True, eq=False)
class Onward(_Around):
    """The rows of a driver from row `first` on, for solves of a part of the batch.

    Args:
        driver: of the whole batch.
        first: number of the part's first row.
    """

    driver: Any
    first: int

    def bind(
        self,
        t0: float | np.ndarray,
        t1: float | np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        row_offset: int = 0,
    ) -> Any:
        """Give the path the shape of one solve; see `Brownian.bind`."""
        return self.driver.bind(t0, t1, rows, size, dtype, device, row_offset + self.first)


@final
@dataclass(frozen=True, eq=False)
class Correlated(_Around):
    """A driver with correlated components, L W with covariance L L^T dt.

    Args:
        driver: an independent driver.
        matrix: L of shape (n, m), for example a Cholesky factor of the covariance.

    Raises:
        ValueError: the matrix is not a matrix, or has other than n rows for a noise of size n.
    """

    driver: Any
    matrix: Float[Tensor, "n m"]

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise ValueError(
                f"Correlated: the factor has shape {tuple(self.matrix.shape)}; give a matrix of shape (n, m)"
            )

    def bind(
        self,
        t0: float | np.ndarray,
        t1: float | np.ndarray,
        rows: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        row_offset: int = 0,
    ) -> _BoundCorrelated:
        """Give the path the shape of one solve; see `Brownian.bind`."""
        n, m = self.matrix.shape
        if n != size:
            raise ValueError(
                f"Correlated: the factor has {n} rows but the noise has size {size}; give a matrix of shape ({size}, m)"
            )
        inner = self.driver.bind(t0, t1, rows, m, dtype, device, row_offset)
        return _BoundCorrelated(inner, self.matrix.to(device=device, dtype=dtype))


class _BoundCorrelated:
    def __init__(self, inner: Any, matrix: Tensor) -> None:
        self.inner = inner
        self.matrix = matrix

    def increment(self, t: Ticks, dt: Ticks, step: Any = 0) -> Increment:
        """The increment of L W, and of H likewise."""
        inner = self.inner.increment(t, dt, step)
        return Increment(dt, mix(inner.W, self.matrix), None if inner.H is None else mix(inner.H, self.matrix))

    @property
    def ahead(self) -> Callable[[int, int], _BoundCorrelated] | None:
        """The path in a run of cells drawn at once, where the inner path can; see `Increments`."""
        ahead = getattr(self.inner, "ahead", None)
        return None if ahead is None else lambda first, steps: _BoundCorrelated(ahead(first, steps), self.matrix)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Normals beside the path, which are not correlated; see `Bound`."""
        return self.inner.normals(step, stream, size)

    def value(self, t: Any) -> Tensor:
        """L (W(t) - W(t0)); see `Brownian`."""
        return mix(self.inner.value(t), self.matrix)
