"""A call of odeint, checked: the field, the state, the times, and how errors are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq import SolveError, Status

__all__ = ["Problem", "SolveFailed", "Start", "largest_rms", "real_dtype", "rms_of", "translated"]

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class SolveFailed(SolveError, AssertionError):
    """A solve that failed; also an AssertionError, because that is what torchdiffeq raises.

    Attributes:
        solution: what was reached, NaN beyond.
    """


def translated(error: SolveError) -> SolveFailed:
    """The error of the solver core as torchdiffeq's users expect it."""
    status = error.solution.status
    known = {
        Status.STEP_TOO_SMALL: "underflow in dt: ",
        Status.NOT_FINITE: "non-finite values in state `y`: ",
        Status.MAX_STEPS: "max_num_steps exceeded: ",
    }
    return SolveFailed(known.get(status, "") + str(error), error.solution)


@dataclass(frozen=True)
class Start:
    """The initial state, a tensor or a tuple, and the way between it and one flat tensor.

    Attributes:
        y0: as the user gave it.
    """

    y0: Any

    @property
    def is_tuple(self) -> bool:
        """Whether the state is a tuple."""
        return isinstance(self.y0, tuple)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of the state."""
        return self.y0 if self.is_tuple else (self.y0,)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of the state."""
        wide = self.parts[0].dtype
        for part in self.parts[1:]:
            wide = torch.promote_types(wide, part.dtype)
        return wide

    def flat(self, y: Any) -> Tensor:
        """One vector of a tuple; a tensor as it is."""
        if not self.is_tuple:
            return y
        return torch.cat([x.reshape(-1).to(self.dtype) for x in y])

    def shaped(self, flat: Tensor, lead: int = 0) -> Any:
        """The state that lies in a vector; ``lead`` leading axes stay in front."""
        if not self.is_tuple:
            return flat
        out, at = [], 0
        for part in self.parts:
            piece = flat[..., at : at + part.numel()]
            piece = piece.view((*flat.shape[:lead], *part.shape))
            out.append(piece if piece.dtype == part.dtype else piece.to(part.dtype))
            at += part.numel()
        return tuple(out)


@dataclass(frozen=True)
class Problem:
    """What there is to solve.

    Attributes:
        func: the user's field.
        start: the initial state.
        t: times ``(T,)``.
        rtol, atol: a number, a tensor, or a tuple with one for each entry of the state.
        method: torchdiffeq's name.
        options: a copy of the user's options.
        event_fn: where to stop, or None.
        callbacks: the callables among the attributes of ``func`` that watch steps.
    """

    func: Callable[..., Any]
    start: Start
    t: Tensor
    rtol: Any
    atol: Any
    method: str | None
    options: dict[str, Any]
    event_fn: Callable[..., Any] | None = None
    callbacks: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])

    @classmethod
    def of(
        cls,
        func: Callable[..., Any],
        y0: Any,
        t: Any,
        rtol: Any,
        atol: Any,
        method: str | None,
        options: dict[str, Any] | None,
        event_fn: Callable[..., Any] | None,
        suffix: str = "",
    ) -> Problem:
        """Check the arguments of odeint.

        Raises:
            AssertionError, TypeError, ValueError: where torchdiffeq raises them.
        """
        assert isinstance(y0, (Tensor, tuple)), "y0 must be either a torch.Tensor or a tuple"
        start = Start(y0)
        if event_fn is not None and len(t) != 2:
            raise ValueError(f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}.")
        t = _times(t, start.parts[0].device)
        rtol, atol = (_tolerance(n, x, start) for n, x in (("rtol", rtol), ("atol", atol)))
        callbacks = {name: getattr(func, name + suffix) for name in CALLBACKS if hasattr(func, name + suffix)}
        return cls(func, start, t, rtol, atol, method, dict(options or {}), event_fn, callbacks)

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        return self.start.parts[0].device

    @property
    def direction(self) -> float:
        """-1.0 where the times decrease."""
        return -1.0 if len(self.t) > 1 and bool(self.t[1] < self.t[0]) else 1.0

    def over(self, t: Tensor, y0: Any) -> Problem:
        """The same problem over other times, from another state."""
        return replace(self, t=t, start=Start(y0))

    def norm(self) -> Callable[[Any], Tensor]:
        """Norm of a state: the user's, RMS, or the largest RMS among the entries of a tuple."""
        given = self.options.get("norm")
        return given if given is not None else largest_rms if self.start.is_tuple else rms_of


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the parts of complex numbers, or of real numbers."""
    return dtype.to_real() if dtype.is_complex else dtype


def rms_of(x: Tensor) -> Tensor:
    """Root mean square of the moduli."""
    return torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5


def largest_rms(parts: tuple[Tensor, ...]) -> Tensor:
    """The largest of the root mean squares of several tensors."""
    return torch.stack([rms_of(x) for x in parts]).amax()


def _times(t: Any, device: torch.device) -> Tensor:
    assert isinstance(t, Tensor), "t must be a torch.Tensor"
    if not t.is_floating_point():
        raise TypeError(f"`t` must be a floating point Tensor but is a {t.type()}")
    assert t.dim() == 1, "t must be one dimensional"
    assert t.numel() > 0, "t must have at least one time"
    steps = t.detach().diff()
    monotone = bool((steps > 0).all()) or bool((steps < 0).all())
    assert monotone, "t must be strictly increasing or decreasing"
    return t if t.device == device else t.to(device)


def _tolerance(name: str, tolerance: Any, start: Start) -> Any:
    if isinstance(tolerance, Tensor):
        assert not tolerance.requires_grad, f"{name} cannot require gradient"
    if not start.is_tuple or isinstance(tolerance, (int, float)):
        return tolerance
    if isinstance(tolerance, Tensor):
        return tuple(tolerance) if tolerance.dim() else tolerance
    tolerance = tuple(tolerance)
    assert len(tolerance) == len(start.parts), f"If using tupled {name} it must have the same length as the tuple y0"
    return tolerance
