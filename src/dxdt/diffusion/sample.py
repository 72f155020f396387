"""Sampling: draw from the prior, solve the reverse equation, take the posterior mean at the end.

Noise is named by the seed and the place of a sample in the batch, never by the batch's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion.denoiser import DenoiserLike
from dxdt.diffusion.reverse import ReverseSDE, reverse
from dxdt.ops.random import normals
from dxdt.paths.increments import Increments
from dxdt.solve.controller import PID, Grid
from dxdt.solve.explicit import Tsit5
from dxdt.solve.solution import Solution
from dxdt.solve.solve import solve
from dxdt.solve.solver import Solver
from dxdt.solve.stochastic import EulerMaruyama

_PRIOR = 0x5052494F52  # keeps the prior's draw apart from the path of the same seed


def prior_noise(
    shape: Sequence[int],
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "*shape"]:
    """Return standard normals whose row k depends on (seed, k) only.

    Raises:
        ValueError: `shape` has no batch axis, or an empty one.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"sample: shape {tuple(shape)} is not a batch of samples; give (batch, *data shape).")
    row = torch.arange(shape[0], device=device)
    size = torch.Size(shape[1:]).numel()
    noise = normals(seed ^ _PRIOR, row, 0, size, dtype=dtype)
    return torch.as_tensor(noise).to(dtype).reshape(*shape)  # numpy has no bfloat16


def integrate(
    denoiser: DenoiserLike,
    x1: Float[Tensor, "batch *shape"],
    *,
    steps: int | None = None,
    tau: float = 0.0,
    solver: Solver | None = None,
    seed: int = 0,
    t0: float = 1e-3,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    mu: Tensor | None = None,
    **options: Any,
) -> Solution:
    """Solve the reverse equation from x_{t1} down to x_{t0}.

    Args:
        denoiser: any denoiser.
        x1: draws from the prior.
        steps: steps of equal length in time; without it the solver chooses by `rtol` and `atol`.
        tau: 0 for the probability flow, 1 for the reverse SDE, or between.
        solver: `Tsit5()` for the flow and `EulerMaruyama()` with noise, by default. Methods that are made for
            noise, or bring their own (`EulerMaruyama`, `PredictorCorrector`, `Churn`), follow the flow too.
        seed: names the random path.
        t0: where to stop, above the singular end at 0.
        mu: mean of the process, where it has one.
        options: anything else that `dxdt.solve` takes (save, progress, gradient, ...).

    Raises:
        ValueError: `steps` is below 1 or missing where it is needed, or `t0` not inside (0, t1).
    """
    t1 = denoiser.process.t1
    if not 0 < t0 < t1:
        raise ValueError(f"integrate: t0={t0} is not between 0 and {t1}; choose one that is.")
    if steps is not None and steps < 1:
        raise ValueError(f"integrate: steps={steps} goes nowhere; give at least 1.")
    if steps is None and tau > 0:
        raise ValueError(f"integrate: tau={tau} has noise, whose solvers take given steps; pass steps=500, say.")
    if solver is None:
        solver = EulerMaruyama() if tau > 0 else Tsit5()
    equation = reverse(denoiser, tau, mu)
    if tau == 0 and getattr(solver, "stochastic", False):
        equation = ReverseSDE(denoiser, 0.0, mu)  # a driver without diffusion
    if isinstance(equation, ReverseSDE):
        options.setdefault("driver", Increments(seed))
    if steps is None:
        options.setdefault("controller", PID(rtol, atol))
    else:
        grid = torch.linspace(t1, t0, steps + 1, dtype=torch.float64)
        options.setdefault("controller", Grid(grid.numpy()))
        options.setdefault("max_steps", steps)
    return solve(equation, x1, (t1, t0), solver=solver, **options)


def sample(
    denoiser: DenoiserLike,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    tau: float = 0.0,
    solver: Solver | None = None,
    seed: int = 0,
    t0: float = 1e-3,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    mu: Tensor | None = None,
    denoise: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **options: Any,
) -> Float[Tensor, "*shape"]:
    """Draw samples of the data.

    Args:
        shape: (batch, *data shape).
        denoise: return E[x_0 | x_{t0}] instead of x_{t0}, at one more evaluation.
        dtype, device: of the samples.
        denoiser, steps, tau, solver, seed, t0, rtol, atol, mu, options: as in `integrate`.

    Gradients flow through sampling; wrap the call in `torch.no_grad()` where none are wanted.
    """
    noise = prior_noise(shape, seed, dtype=dtype, device=device)
    x1 = denoiser.process.prior(mu).sample(noise)
    solution = integrate(
        denoiser,
        x1,
        steps=steps,
        tau=tau,
        solver=solver,
        seed=seed,
        t0=t0,
        rtol=rtol,
        atol=atol,
        mu=mu,
        **options,
    )
    x = solution.y1
    if not denoise:
        return x
    return denoiser(x, torch.tensor(t0, dtype=torch.float64, device=x.device), mu).data
