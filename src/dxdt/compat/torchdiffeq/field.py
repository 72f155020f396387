"""The user's field and norm as the solver core takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from dxdt.diffeq import PID, Controller, Gradient
from dxdt.diffeq.control.controller import Decision, Scale

__all__ = ["Measured", "Watched", "lenient"]


def lenient(func: Callable[..., Any]) -> Callable[..., Any]:
    """The user's field with its value brought to the dtype and shape of the state, as torchdiffeq does.

    A function, because the compiler knows functions by their code.
    """

    def field(t: Tensor, y: Any) -> Any:
        value = func(t, y)
        if isinstance(y, Tensor):
            return _fitted(value, y)
        return tuple([_fitted(v, x) for v, x in zip(value, y, strict=True)])

    return field


def _fitted(value: Any, y: Tensor) -> Any:
    if not isinstance(value, Tensor) or (value.dtype is y.dtype and value.shape == y.shape):
        return value
    if value.is_complex() and not y.is_complex():
        return value  # the core says what is wrong
    value = value.to(y.dtype)
    if value.shape == y.shape:
        return value
    return value.reshape(y.shape) if value.numel() == y.numel() else value.expand(y.shape)


@final
@dataclass(frozen=True)
class Measured(Controller):
    """A PID controller whose norm sees the state as the user gave it.

    Args:
        inner: chooses the steps.
        norm: maps a tensor or tuple to a number.
    """

    inner: PID
    norm: Callable[[Any], Any]

    adaptive = True
    state_size = PID.state_size

    def scale(self, layout: Any) -> Scale:
        return self.inner.scale(layout)._replace(norm=self.measure(layout))

    def measure(self, layout: Any) -> Callable[[Tensor], Tensor]:
        norm = self.norm

        def measure(ratio: Tensor) -> Tensor:
            value = norm(layout.unpack(ratio))
            return torch.as_tensor(value, device=ratio.device).abs().reshape(1)

        return measure

    def start(self, span: Any, dt: Any, order: float | None) -> tuple[Any, tuple[Any, ...]]:
        return self.inner.start(span, dt, order)

    def split(self) -> tuple[Controller, Any]:
        inner, table = self.inner.split()
        return Measured(cast(PID, inner), self.norm), table

    def decide(self, span: Any, error: Any, t: Any, dt: Any, state: tuple[Any, ...]) -> Decision:
        return self.inner.decide(span, error, t, dt, state)


@final
@dataclass(frozen=True, eq=False)
class Watched(Gradient):
    """A gradient whose attempted steps are shown to torchdiffeq's callbacks.

    Args:
        inner: the rule that differentiates.
        callbacks: ``callback_step``, ``callback_accept_step``, ``callback_reject_step``.
    """

    shows = True

    inner: Gradient
    callbacks: dict[str, Callable[..., Any]]

    def run(self, loop: Any, plan: Any, inputs: Any, dt: Any, recorder: Any) -> Any:
        layout = plan.equation.layout

        def watched(plan: Any, carry: Any, observe: Any) -> Any:
            def look(carry: Any, attempt: Any, after: Any) -> None:
                self._tell(layout, attempt)
                if observe is not None:
                    observe(carry, attempt, after)

            return loop(plan, carry, look)

        return self.inner.run(watched, plan, inputs, dt, recorder)

    def _tell(self, layout: Any, attempt: Any) -> None:
        at = attempt.at
        t, dt = (torch.tensor(float(x), dtype=torch.float64) for x in (at.t, abs(at.dt)))
        ended = "callback_accept_step" if bool(attempt.ok) else "callback_reject_step"
        for name in ("callback_step", ended):
            if name in self.callbacks:
                self.callbacks[name](t, layout.unpack(at.y), dt)
