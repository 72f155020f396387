"""Neural stochastic differential equations: networks for drift and diffusion, sampled by a solve.

    y(t0) = y0,    dy = f_theta(t, y) dt + g_theta(t, y) dW

Sources: Tzen and Raginsky, "Neural stochastic differential equations" (2019); Kidger, Foster, Li,
Oberhauser, Lyons, "Neural SDEs as infinite-dimensional GANs" (2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
from torch import Tensor, nn

from dxdt.diffeq.control.controller import Constant, Controller, Grid
from dxdt.diffeq.entry import solve
from dxdt.diffeq.gradients.gradient import Gradient
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.methods.stochastic import EulerMaruyama, StochasticHeun
from dxdt.diffeq.problem.equation import SDE, Ito, Stratonovich
from dxdt.diffeq.problem.noise import Diagonal, Noise
from dxdt.diffeq.request import is_list_of_times
from dxdt.diffeq.solution import Solution
from dxdt.models.neural_ode import check_options, checked_times
from dxdt.ops.times import to_host
from dxdt.paths import Driver, Increments

__all__ = ["NeuralSDE"]


@final
class NeuralSDE(nn.Module):
    """Sample paths of dy = f(t, y) dt + g(t, y) dW as a module, one path a row, named by a seed.

    Args:
        drift: f, a module or function of (t, y, *args).
        diffusion: g, likewise; what it returns is set by the noise.
        dt: longest step; steps end exactly at every time that is asked for.
        noise: structure of g, `Diagonal()` by default.
        calculus: `Ito()` by default, or `Stratonovich()`.
        solver: one-step method; `EulerMaruyama()` by default, `StochasticHeun()` in Stratonovich
            calculus.
        path: makes the driver from a seed, `Increments` by default; `Brownian` for a path that does
            not depend on the steps.
        controller: adaptive steps (with `path=Brownian`), dt being the first; None for a grid.
        gradient: how to differentiate the solve, `Direct()` by default.
        options: anything else that `dxdt.solve` takes (max_steps, progress, compile, ...).

    Raises:
        TypeError: `dxdt.solve` has no such option.
        ValueError: dt is not positive.
    """

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        *,
        dt: float,
        noise: Noise | None = None,
        calculus: Ito | Stratonovich | None = None,
        solver: Solver | None = None,
        path: Callable[[int], Driver] = Increments,
        controller: Controller | None = None,
        gradient: Gradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("NeuralSDE", options, taken=("args", "save", "driver"))
        if not dt > 0:
            raise ValueError(f"NeuralSDE(dt={dt}): give the longest step, a number above zero")
        self.drift, self.diffusion, self.dt = drift, diffusion, dt
        self.noise = Diagonal() if noise is None else noise
        self.calculus = Ito() if calculus is None else calculus
        default = StochasticHeun() if isinstance(self.calculus, Stratonovich) else EulerMaruyama()
        self.solver = default if solver is None else solver
        self.path, self.controller, self.gradient = path, controller, gradient
        self.options: dict[str, Any] = {"per_sample": True, **options}

    @property
    def equation(self) -> SDE:
        """The equation that is solved."""
        return SDE(self.drift, self.diffusion, noise=self.noise, calculus=self.calculus)

    def solution(self, y0: Tensor, t: Any, *args: Any, seed: int) -> Solution:
        """Return the whole `Solution`; arguments as in `forward`."""
        return solve(
            self.equation,
            y0,
            checked_times(t, "NeuralSDE"),
            dt=None if self.controller is None else self.dt,
            args=args,
            solver=self.solver,
            controller=self._steps(t) if self.controller is None else self.controller,
            gradient=self.gradient,
            driver=self.path(seed),
            **self.options,
        )

    def forward(self, y0: Tensor, t: Any, *args: Any, seed: int) -> Tensor:
        """Return sample paths at the end of a span, or at every one of given times.

        Args:
            y0: states at the first time, (rows, features): each row is driven by a path of its own,
                which does not depend on the other rows.
            t: a pair (t0, t1) for y(t1), numbers or one for each row, or a tensor (T,) of at least two times for
                (T, rows, features), y0 first.
            args: passed to the fields after (t, y).
            seed: names the random paths.

        Raises:
            ValueError: `t` is neither, or its times are not monotone.
        """
        found = self.solution(y0, t, *args, seed=seed)
        return found.ys if is_list_of_times(t) else found.y1

    def _steps(self, t: Any) -> Controller:
        """Equal steps of at most dt between the times."""
        ends = np.stack(np.broadcast_arrays(*(to_host(x) if isinstance(x, Tensor) else x for x in t))).astype(
            np.float64
        )
        gaps = np.abs(np.diff(ends, axis=0))
        if not (np.isfinite(gaps).all() and (gaps > 0).all()):
            return Constant(self.dt)  # the solve says what is wrong with such times
        counts = np.maximum(1, np.ceil(gaps.reshape(len(gaps), -1).max(1) / self.dt * (1 - 1e-9))).astype(int)
        pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(ends, ends[1:], counts, strict=False)]
        return Grid(np.concatenate((*pieces, ends[-1:])))
