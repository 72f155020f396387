"""Neural ordinary differential equations: a network's value is the end, or the course, of a solve.

    y(t0) = y0,    dy/dt = f_theta(t, y)

The field is any module f(t, y), for instance `nn.MLPField` or `nn.ConcatSquashField`.

Source: Chen et al., "Neural ordinary differential equations" (2018); for added dimensions, Dupont
et al., "Augmented neural ODEs" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from dxdt.diffeq.control.controller import Controller
from dxdt.diffeq.entry import solve
from dxdt.diffeq.gradients.gradient import Gradient
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.equation import ODE
from dxdt.diffeq.request import ELSEWHERE, chosen_controller, is_list_of_times
from dxdt.diffeq.solution import Solution
from dxdt.ops.options import options_of, refuse_unknown
from dxdt.ops.tree import Tree

__all__ = ["Augmented", "NeuralODE", "check_options", "checked_times"]


@final
class NeuralODE(nn.Module):
    """The solution of dy/dt = f(t, y) as a module.

    Args:
        field: f, a module or function of (t, y, *args).
        solver: one-step method, `Tsit5()` by default.
        controller: step sizes, as in `dxdt.solve`.
        rtol, atol: tolerances of a step, in place of a controller; the defaults are those of `dxdt.solve`.
        gradient: how to differentiate the solve, `Direct()` by default.
        options: anything else that `dxdt.solve` takes (dt, per_sample, max_steps, progress, ...).

    Raises:
        TypeError: `dxdt.solve` has no such option.
        ValueError: these options give no way to choose steps.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        *,
        solver: Solver | None = None,
        controller: Controller | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("NeuralODE", options, taken=("args", "save"))
        self.field = field
        self.solver = Tsit5() if solver is None else solver
        self.controller = chosen_controller(controller, self.solver, options.get("dt"), rtol, atol)
        self.gradient = gradient
        self.options = options

    def solution(self, y0: Tree, t: Any, *args: Any) -> Solution:
        """Return the whole `Solution`; `y0` and `t` as in `forward`."""
        return solve(
            ODE(self.field),
            y0,
            checked_times(t, "NeuralODE"),
            args=args,
            solver=self.solver,
            controller=self.controller,
            gradient=self.gradient,
            **self.options,
        )

    def forward(self, y0: Tree, t: Any, *args: Any) -> Any:
        """Return the value at the end of a span, or at every one of given times.

        Args:
            y0: state at the first time, (*batch, features), or a tree of tensors.
            t: a pair (t0, t1) for y(t1), or a tensor (T,) of at least two times for
                (T, *batch, features), y0 first; with `per_sample=True` also (T, batch).
            args: passed to the field after (t, y).

        Raises:
            ValueError: `t` is neither, or its times are not monotone.
        """
        found = self.solution(y0, t, *args)
        return found.ys if is_list_of_times(t) else found.y1


def check_options(name: str, options: Mapping[str, Any], taken: Iterable[str]) -> None:
    """Refuse options of a model that `dxdt.solve` does not take, or that the model gives itself.

    Raises:
        TypeError: there is no such option; the nearest one is named.
    """
    refuse_unknown(name, options, [option for option in options_of(solve) if option not in taken], ELSEWHERE)


def checked_times(t: Any, name: str) -> Any:
    """The time argument of a model, a pair or times to save at.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(t, Tensor) and not is_list_of_times(t):
        raise ValueError(
            f"{name}: times of shape {tuple(t.shape)} are no list of at least two times; "
            "pass a pair (t0, t1) or a tensor (T,)."
        )
    if not isinstance(t, Tensor) and len(t) < 2:
        raise ValueError(f"{name}: {len(t)} times are no span; pass a pair (t0, t1) or a tensor (T,).")
    return t


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
