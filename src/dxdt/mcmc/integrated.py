"""Langevin dynamics over a span of time, by any solver of stochastic equations that takes given steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from dxdt.diffeq import SDE, Additive, EulerMaruyama, Ito, Solver, solve
from dxdt.mcmc.draws import Draws
from dxdt.mcmc.kernel import Info, Moving, State
from dxdt.mcmc.langevin import positive
from dxdt.mcmc.target import Target

__all__ = ["LangevinSDE"]


class _Increment(NamedTuple):
    dt: Any
    W: Tensor
    H: Tensor


@final
@dataclass(frozen=True, eq=False)
class _Path:
    """The random path of one kernel step: each chain's part of it follows from its own number.

    Attributes:
        draws: of the kernel step.
        x: the chains (chains, *shape).
        still: leading numbers of the state that have no noise.
    """

    draws: Draws
    x: Tensor
    still: int

    adaptive: ClassVar[bool] = False
    levy: ClassVar[Any] = True

    def bind(self, t0: Any, t1: Any, rows: int, size: int, dtype: torch.dtype, device: Any, row_offset: int = 0) -> Any:
        """Return itself: the shape is known."""
        return self

    def _normals(self, stream: int) -> Tensor:
        z = self.draws.normal(self.x, stream).reshape(1, -1)
        return torch.cat((z.new_zeros(1, self.still), z), 1) if self.still else z

    def increment(self, t: Any, dt: Any, step: Any = 0) -> _Increment:
        """Return W and the space-time Levy area H over the step with a number."""
        length, number = abs(float(dt)), int(step)
        w = math.copysign(math.sqrt(length), float(dt)) * self._normals(2 * number + 1)
        return _Increment(dt, w, math.sqrt(length / 12) * self._normals(2 * number + 2))

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """Return normals beside the path."""
        return self._normals(-1 - 1024 * int(step) - stream)


class _Counted:
    """The score of a target, as a drift."""

    def __init__(self, target: Target, friction: float | None) -> None:
        self.target, self.friction, self.evaluations = target, friction, 0

    def drift(self, t: Tensor, y: Any) -> Any:
        self.evaluations += 1
        if self.friction is None:
            return 0.5 * self.target(y).score
        x, p = y
        return p, self.target(x).score - self.friction * p

    def diffusion(self, t: Tensor, y: Any) -> Any:
        if self.friction is None:
            return torch.ones_like(y)
        x, p = y
        return torch.zeros_like(x), torch.full_like(p, math.sqrt(2 * self.friction))


@final
@dataclass(frozen=True)
class LangevinSDE(Moving):
    """Langevin dynamics over `steps` steps of length h, without a correction.

        dx = score / 2 dt + dW,    or    dx = p dt,  dp = (score - friction p) dt + sqrt(2 friction) dW

    The bias is that of the solver: `ShARK()` and `SRA1()` have weak order two at two evaluations a step.

    Args:
        step_size: h.
        steps: in a move of the kernel.
        solver: of equations with additive noise, on given steps.
        friction: of the underdamped equation, whose momentum is kept from move to move; None for the other.

    Raises:
        ValueError: h or the friction is not positive, or there is no step; on stepping, the solver does not fit.
    """

    step_size: float
    steps: int = 1
    solver: Solver = EulerMaruyama()  # noqa: RUF009
    friction: float | None = None

    def __post_init__(self) -> None:
        positive("LangevinSDE", step_size=self.step_size, steps=self.steps)
        if self.friction is not None:
            positive("LangevinSDE", friction=self.friction)

    def init(self, target: Target, x: Tensor) -> State:
        """Return the state at `x`; the score is asked when it is needed."""
        return State(x)

    def step(self, target: Target, state: State, draws: Draws) -> tuple[State, Info]:
        x = state.x
        field = _Counted(target, self.friction)
        start: Any = x
        if self.friction is not None:
            start = (x, draws.normal(x, 0) if state.momentum is None else state.momentum)
        path = _Path(draws, x, 0 if self.friction is None else x.numel())
        equation = SDE(field.drift, field.diffusion, Additive(), Ito())
        span = (0.0, self.step_size * self.steps)
        end = solve(equation, start, span, dt=self.step_size, solver=self.solver, driver=path, max_steps=self.steps + 1)
        if self.friction is None:
            return State(end.y1, None, state.momentum), Info(field.evaluations)
        x, p = end.y1
        return State(x, None, p), Info(field.evaluations)
