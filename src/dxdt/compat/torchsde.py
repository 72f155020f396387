"""torchsde's Brownian sources on dxdt's: the same arguments and shapes, another generator.

`bm(ta, tb)` is W(tb) - W(ta); on request also U = int_ta^tb (W(s) - W(ta)) ds and the Levy area A.
Differences, all on purpose: the path depends on the entropy alone, never on the order of queries;
Levy areas have the right variances; times outside the interval by rounding are served without a
warning; caches and pools are accepted and unused. For one entropy the numbers are not torchsde's.

Not covered: Levy areas that add up over sub-intervals (each interval asked has its own, of the
right law); the solvers of torchsde.
"""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from dxdt.paths import Brownian, Davie, Foster, Levy, SpaceTime, levy_area

__all__ = ["BrownianInterval", "BrownianTree"]

Scalar: TypeAlias = float | Tensor

_LEVY: dict[str, Levy] = {
    "none": None,
    "space-time": SpaceTime,
    "davie": SpaceTime,
    "foster": SpaceTime,
}
_AREAS = {"davie": Davie(), "foster": Foster()}
# float32 times of a float32 caller: one unit in the last place, and a little.
_ROUNDING = 1e-6
_DEPTH, _DEEPEST, _BELOW_STEP = 24, 40, 6


class _Source:
    """What both share: a bound path, its shape, and one answer for an interval."""

    def __init__(
        self,
        t0: Scalar,
        t1: Scalar,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        entropy: int,
        depth: int,
        approximation: str,
        W: Tensor | None,
        H: Tensor | None,
    ) -> None:
        self._t0, self._t1 = float(t0), float(t1)
        self._shape, self._dtype, self._device = tuple(shape), dtype, device
        self._entropy, self._approximation = entropy, approximation
        rows = math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)
        size = shape[-1] if len(shape) > 1 else 1
        self._rows = rows
        known = (None if x is None else x.detach().reshape(rows, size) for x in (W, H))
        w, h = known
        path = Brownian(entropy, _LEVY[approximation], depth=depth, w=w, h=h)
        self._bound = path.bind(self._t0, self._t1, rows, size, dtype, device)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(t0={self._t0:.3f}, t1={self._t1:.3f}, size={self._shape}, "
            f"dtype={self._dtype}, device={self._device!r}, entropy={self._entropy}, "
            f"levy_area_approximation={self._approximation!r})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the answers."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the answers live."""
        return self._device

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the answers."""
        return self._shape

    @property
    def entropy(self) -> int:
        """The seed."""
        return self._entropy

    @property
    def levy_area_approximation(self) -> str:
        """'none', 'space-time', 'davie' or 'foster'."""
        return self._approximation

    def size(self) -> tuple[int, ...]:
        """The shape of the answers."""
        return self._shape

    def _answer(self, ta: Scalar, tb: Scalar | None, return_U: bool, return_A: bool) -> Any:
        start, end = (self._t0, ta) if tb is None else (ta, tb)
        a, b = self._inside(float(start)), self._inside(float(end))
        if a > b:
            raise RuntimeError(
                f"Query times ta={a:.3f} and tb={b:.3f} must respect ta <= tb; exchange them and negate the answer"
            )
        noise = self._bound.increment(np.full(self._rows, a), np.full(self._rows, b - a))
        answers: list[Tensor | None] = [noise.W.reshape(self._shape)]
        if return_U:
            U = None if noise.H is None else (b - a) * (0.5 * noise.W + noise.H)
            answers.append(None if U is None else U.reshape(self._shape))
        if return_A:
            answers.append(self._area(noise.W, noise.H, a, b))
        return answers[0] if len(answers) == 1 else tuple(answers)

    def _area(self, W: Tensor, H: Tensor | None, a: float, b: float) -> Tensor | None:
        kind = _AREAS.get(self._approximation)
        if kind is None or H is None:
            return None
        digest = hashlib.blake2b(struct.pack("dd", a, b), digest_size=6).digest()
        row = torch.arange(self._rows, device=self._device)
        dt = torch.full((self._rows,), b - a, dtype=W.dtype, device=W.device)
        node = int.from_bytes(digest, "little")
        area = levy_area(W, H, dt, seed=self._entropy, row=row, node=node, kind=kind)
        if len(self._shape) < 2:
            return W.new_zeros((*self._shape, *self._shape[-1:]))
        return area.reshape(*self._shape, self._shape[-1])

    def _inside(self, t: float) -> float:
        slack = _ROUNDING * max(abs(self._t0), abs(self._t1), self._t1 - self._t0)
        if not self._t0 - slack <= t <= self._t1 + slack:
            warnings.warn(
                f"{type(self).__name__}: t={t} is outside [{self._t0}, {self._t1}] and is put at "
                "its end; build it over the whole interval",
                stacklevel=4,
            )
        return min(max(t, self._t0), self._t1)


def _is_scalar(t: Any) -> bool:
    return isinstance(t, int | float) or (isinstance(t, Tensor) and t.numel() == 1)


def _draw_entropy() -> int:
    """A seed from numpy's global generator, as torchsde takes it."""
    return int(np.random.randint(0, 2**31 - 1))


def _check_times(**times: Scalar | None) -> None:
    for name, t in times.items():
        if t is not None and not _is_scalar(t):
            raise ValueError(f"{name} should be a float or 0-d torch.Tensor, got {t!r}")


def _depth_for(span: float, step: float) -> int:
    if span <= 0 or step <= 0:
        return _DEPTH
    return min(max(math.ceil(math.log2(span / step)), 1), _DEEPEST)


@final
class BrownianInterval(_Source):
    """Brownian motion over [t0, t1] with torchsde's arguments; `bm(ta, tb)` is of shape `size`.

    Args:
        t0: start.
        t1: end, not before t0.
        size: shape of a sample: the last axis is the noise, those before it the batch.
        dtype: torch's default, if None.
        device: the CPU, if None.
        entropy: the seed; drawn from numpy's global generator if None.
        dt: the expected step: the tree resolves a sixty-fourth of it.
        tol: what the tree resolves, if positive.
        pool_size: unused.
        cache_size: unused.
        halfway_tree: needs tol > 0 and no dt; the path never depends on the queries here.
        levy_area_approximation: 'none', 'space-time', 'davie' or 'foster'.
        W: condition on the increment over [t0, t1].
        H: condition on the space-time Levy area over [t0, t1].

    Raises:
        ValueError: arguments that torchsde refuses.
    """

    def __init__(
        self,
        t0: Scalar = 0.0,
        t1: Scalar = 1.0,
        size: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        entropy: int | None = None,
        dt: Scalar | None = None,
        tol: Scalar = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = "none",
        W: Tensor | None = None,
        H: Tensor | None = None,
    ) -> None:
        _check_times(t0=t0, t1=t1, dt=dt)
        if t0 > t1:
            raise ValueError(f"Initial time {t0} should be less than terminal time {t1}")
        if tol < 0 or (halfway_tree and tol == 0):
            raise ValueError(f"tol={tol} should be {'positive' if halfway_tree else 'non-negative'}")
        if halfway_tree and dt is not None:
            raise ValueError("dt is not used with halfway_tree=True; leave it out")
        if levy_area_approximation not in _LEVY:
            raise ValueError(f"levy_area_approximation must be one of {tuple(_LEVY)}, got {levy_area_approximation!r}")
        shape, kind, place = _agree(size, dtype, device, W, H)
        self.dt, self.tol = None if dt is None else float(dt), float(tol)
        self.pool_size, self.cache_size, self.halfway_tree = pool_size, cache_size, halfway_tree
        depth = _depth_for(float(t1) - float(t0), self.tol)
        if self.dt is not None and self.tol == 0:
            depth = min(_depth_for(float(t1) - float(t0), self.dt) + _BELOW_STEP, _DEEPEST)
        entropy = _draw_entropy() if entropy is None else entropy
        super().__init__(t0, t1, shape, kind, place, entropy, depth, levy_area_approximation, W, H)

    def __call__(
        self,
        ta: Scalar,
        tb: Scalar | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:
        """W(tb) - W(ta), or W(ta) - W(t0) without tb; then U and A as asked for.

        Raises:
            RuntimeError: ta > tb.
        """
        return self._answer(ta, tb, return_U, return_A)


def _agree(
    size: tuple[int, ...] | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    W: Tensor | None,
    H: Tensor | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    given = [x for x in (W, H) if x is not None]
    for x in given:
        if not x.is_floating_point():
            raise ValueError(f"W and H should be floating point, got {x.dtype}")
    sizes = {tuple(x.shape) for x in given} | ({tuple(size)} if size is not None else set())
    dtypes = {x.dtype for x in given} | ({dtype} if dtype is not None else set())
    devices = {x.device for x in given} | ({torch.device(device)} if device is not None else set())
    if not sizes:
        raise ValueError("Must either specify size or pass in W or H to implicitly define the size")
    for name, found in (("sizes", sizes), ("dtypes", dtypes), ("devices", devices)):
        if len(found) > 1:
            raise ValueError(f"Multiple {name} found in size, dtype, device, W and H: {found}")
    return (
        sizes.pop(),
        dtypes.pop() if dtypes else torch.get_default_dtype(),
        devices.pop() if devices else torch.device("cpu"),
    )


@final
class BrownianTree(_Source):
    """Brownian motion from w0 at t0, given by its entropy alone, with torchsde's arguments.

    Args:
        t0: start.
        w0: value at t0: its shape, dtype and device are those of the answers.
        t1: end, t0 + 1 if None.
        w1: condition on the value at t1.
        entropy: the seed; drawn from numpy's global generator if None.
        tol: the length that the tree resolves.
        pool_size: unused.
        cache_depth: unused.
        safety: unused.

    Raises:
        ValueError: t0 > t1, tol <= 0, or a w0 that is not floating point.
    """

    def __init__(
        self,
        t0: Scalar,
        w0: Tensor,
        t1: Scalar | None = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:
        t1 = t0 + 1 if t1 is None else t1
        _check_times(t0=t0, t1=t1)
        if t0 > t1:
            raise ValueError(f"Initial time {t0} should be less than terminal time {t1}")
        if tol <= 0:
            raise ValueError(f"tol={tol} should be positive")
        if not w0.is_floating_point():
            raise ValueError(f"w0 should be floating point, got {w0.dtype}")
        self._w0 = w0
        W = None if w1 is None else w1 - w0
        entropy = _draw_entropy() if entropy is None else entropy
        depth = _depth_for(float(t1) - float(t0), tol)
        shape = tuple(w0.shape)
        super().__init__(t0, t1, shape, w0.dtype, w0.device, entropy, depth, "none", W, None)

    def __call__(
        self,
        t: Scalar,
        tb: Scalar | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:
        """W(tb) - W(t); the value w0 + W(t) - W(t0) where only t is given.

        Raises:
            RuntimeError: t > tb.
        """
        answer = self._answer(t, tb, return_U, return_A)
        return answer + self._w0 if tb is None and not return_U and not return_A else answer
