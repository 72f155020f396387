"""Neural ordinary differential equations: a network's value is the end, or the course, of a solve.

    y(t0) = y0,    dy/dt = f_theta(t, y)

The field is any module f(t, y), for instance `nn.MLPField` or `nn.ConcatSquashField`.

Source: Chen et al., "Neural ordinary differential equations" (2018); for added dimensions, Dupont
et al., "Augmented neural ODEs" (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from dxdt.diffeq.control.controller import Controller
from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.entry import solve
from dxdt.diffeq.gradients.gradient import Gradient
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.equation import ODE
from dxdt.diffeq.solution import Solution

__all__ = ["Augmented", "NeuralODE", "split_times"]


@final
class NeuralODE(nn.Module):
    """The solution of dy/dt = f(t, y) as a module.

    Args:
        field: f, a module or function of (t, y, *args).
        solver: one-step method, `Tsit5()` by default.
        controller: step sizes, `PID(1e-4, 1e-4)` by default.
        gradient: how to differentiate the solve, `Direct()` by default.
        options: anything else that `dxdt.solve` takes (per_sample, max_steps, progress, ...).
    """

    def __init__(
        self,
        field: Callable[..., Any],
        *,
        solver: Solver | None = None,
        controller: Controller | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.field = field
        self.solver = Tsit5() if solver is None else solver
        self.controller = PID(1e-4, 1e-4) if controller is None else controller
        self.gradient = gradient
        self.options = options

    def solution(self, y0: Tensor, t: Any, *args: Any) -> Solution:
        """Return the whole `Solution`; `y0` and `t` as in `forward`."""
        span, save = split_times(t, "NeuralODE")
        return solve(
            ODE(self.field),
            y0,
            span,
            args=args,
            solver=self.solver,
            controller=self.controller,
            gradient=self.gradient,
            save=save,
            **self.options,
        )

    def forward(self, y0: Tensor, t: Any, *args: Any) -> Tensor:
        """Return the value at the end of a span, or at every one of given times.

        Args:
            y0: state at the first time, (*batch, features).
            t: a pair (t0, t1) for y(t1), or a tensor (T,) of at least two times for
                (T, *batch, features), y0 first.
            args: passed to the field after (t, y).

        Raises:
            ValueError: `t` is neither, or its times are not monotone.
        """
        found = self.solution(y0, t, *args)
        return found.ys if isinstance(t, Tensor) else found.y1


def split_times(t: Any, name: str) -> tuple[tuple[Any, Any], Tensor | None]:
    """The span of a model's time argument, and the times to save at where it is a tensor."""
    if isinstance(t, Tensor):
        if t.ndim != 1 or t.shape[0] < 2:
            raise ValueError(
                f"{name}: times of shape {tuple(t.shape)} are no list of at least two times; "
                "pass a pair (t0, t1) or a tensor (T,)."
            )
        return (t[0], t[-1]), t
    ends = tuple(t)
    if len(ends) != 2:
        raise ValueError(
            f"{name}: a sequence of {len(ends)} times is no span; "
            "pass a pair (t0, t1), or a tensor (T,) to get the value at every time."
        )
    return (ends[0], ends[1]), None


@final
class Augmented(nn.Module):
    """A neural ODE in more dimensions than its data: zeros are appended to y0, and dropped again.

    Args:
        model: a `NeuralODE` whose field has features + extra dimensions.
        extra: how many dimensions are added.

    Raises:
        ValueError: `extra` is below 1.

    Source: Dupont et al., "Augmented neural ODEs" (2019), section 4.
    """

    def __init__(self, model: NeuralODE, extra: int) -> None:
        super().__init__()
        if extra < 1:
            raise ValueError(f"Augmented: extra={extra} adds nothing; give at least 1, or use the model itself.")
        self.model = model
        self.extra = extra

    def forward(self, y0: Tensor, t: Any, *args: Any) -> Tensor:
        """Return the first features of the model's value at [y0, 0]; as in `NeuralODE`."""
        padded = F.pad(y0, (0, self.extra))
        return self.model(padded, t, *args)[..., : y0.shape[-1]]
