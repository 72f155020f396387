"""Data as latents and back: the probability flow up to the prior and down again.

The flow is a map without loss, x_{t1} = F(x_{t0}), under which the data become the prior; what is natural
between or around latents is natural between or around data.

Source: Song et al., "Score-based generative modeling through stochastic differential equations" (2021),
section 4.3 and appendix D.5; Song et al., "Denoising diffusion implicit models" (2021), section 5.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq.control.controller import Grid
from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.entry import solve
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffusion.denoisers.denoiser import DenoiserLike
from dxdt.diffusion.processes.process import Prior
from dxdt.diffusion.sampling.predictor import Predictor
from dxdt.diffusion.sampling.reclocked import clocked
from dxdt.diffusion.sampling.reverse import ProbabilityFlow
from dxdt.ops.opaque import opaque

__all__ = ["decode", "encode", "interpolate", "span_of"]


@opaque
def encode(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    *,
    steps: int | None = None,
    solver: Solver | None = None,
    t0: float | None = None,
    t1: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    log_snr: bool | None = None,
    mu: Tensor | None = None,
    **options: Any,
) -> Float[Tensor, "batch *shape"]:
    """Return the latent x_{t1} of each datum: the probability flow from t0 up to t1.

    Args:
        denoiser: any denoiser.
        x0: data, on the scale the denoiser was trained on.
        steps: steps of equal length in time; without it the solver chooses by `rtol` and `atol`.
        solver: `Tsit5()` by default; with `DDIM()` and `steps` this is DDIM inversion.
        t0, t1: the ends; those of the process by default.
        log_snr: solve in log(a / c) instead of t; by default for tabulated schedules, whose rates jump.
        mu: mean of the process, where it has one.
        options: anything else that `dxdt.solve` takes (per_sample, gradient, progress, ...).

    Raises:
        ValueError: x0 is no batch, the ends are out of order, or t1 is where a bridge ends in one point.
    """
    ends = span_of("encode", denoiser, t0, t1)
    return _follow("encode", denoiser, x0, ends, steps, solver, rtol, atol, log_snr, mu, options)


@opaque
def decode(
    denoiser: DenoiserLike,
    latent: Float[Tensor, "batch *shape"],
    *,
    temperature: float = 1.0,
    steps: int | None = None,
    solver: Solver | None = None,
    t0: float | None = None,
    t1: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    log_snr: bool | None = None,
    mu: Tensor | None = None,
    **options: Any,
) -> Float[Tensor, "batch *shape"]:
    """Return the datum x_{t0} of each latent: the probability flow from t1 down to t0.

    `encode` and `decode` undo each other to the tolerances; `x_{t0}` is not denoised, so that they do.

    Args:
        latent: x_{t1}, from `encode`, `log_likelihood` or the prior.
        temperature: factor of the latent's distance from the mean of the prior; below one, samples are more
            typical and less diverse.
        denoiser, steps, solver, t0, t1, rtol, atol, log_snr, mu, options: as in `encode`.

    Raises:
        ValueError: as `encode`, or the temperature is not positive.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"decode: temperature={temperature} is no scale of a latent; give a positive number.")
    start, end = span_of("decode", denoiser, t0, t1)
    if temperature != 1:
        centre = _prior(denoiser, mu).mean
        latent = centre + temperature * (latent - centre)
    return _follow("decode", denoiser, latent, (end, start), steps, solver, rtol, atol, log_snr, mu, options)


@opaque
def interpolate(
    denoiser: DenoiserLike,
    x: Float[Tensor, "batch *shape"],
    y: Float[Tensor, "batch *shape"],
    weights: Sequence[float] | Float[Tensor, " k"],
    *,
    mu: Tensor | None = None,
    **options: Any,
) -> Float[Tensor, "k batch *shape"]:
    """Return data between x and y: latents on the great circle from one's to the other's, decoded.

        z_w = (sin((1 - w) angle) z_x + sin(w angle) z_y) / sin(angle)

    for latents z around the mean of the prior; straight where they are parallel. Weight 0 gives back x and
    weight 1 gives back y, to the tolerances.

    Args:
        weights: of y, from 0 to 1.
        denoiser, mu, options: as in `encode` and `decode`.

    Raises:
        ValueError: x and y have different shapes, or a weight is not in [0, 1].

    Source: Shoemake, "Animating rotation with quaternion curves" (1985).
    """
    if x.shape != y.shape:
        raise ValueError(
            f"interpolate: x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} are no pairs; "
            "give batches of the same shape."
        )
    w = torch.as_tensor(weights, dtype=torch.float64, device=x.device)
    if w.ndim != 1 or len(w) == 0 or not bool(((w >= 0) & (w <= 1)).all()):
        raise ValueError(f"interpolate: weights {weights} do not lie between x and y; give a list from 0 to 1.")
    temperature = options.pop("temperature", 1.0)
    n = len(x)
    both = None if mu is None else mu.expand_as(x).repeat(2, *(1,) * (x.ndim - 1))
    latent = encode(denoiser, torch.cat((x, y)), mu=both, **options)
    centre = _prior(denoiser, mu).mean
    z = slerp(latent[:n] - centre, latent[n:] - centre, w) + centre
    many = None if mu is None else mu.expand_as(x).repeat(len(w), *(1,) * (x.ndim - 1))
    data = decode(denoiser, z.flatten(0, 1), temperature=temperature, mu=many, **options)
    return data.reshape(len(w), *x.shape)


def slerp(
    x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"], w: Float[Tensor, " k"]
) -> Float[Tensor, "k batch *shape"]:
    """Return points of the great circles through each pair, straight lines where there is no one circle."""
    u, v = x.flatten(1).double(), y.flatten(1).double()
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()
    sine, w = angle.sin(), w[:, None]
    curved = sine > 1e-6
    scale = torch.where(curved, sine, 1.0)
    left = torch.where(curved, ((1 - w) * angle).sin() / scale, 1 - w)
    right = torch.where(curved, (w * angle).sin() / scale, w)
    shape = (*left.shape, *(1,) * (x.ndim - 1))
    return left.reshape(shape).to(x) * x + right.reshape(shape).to(x) * y


def span_of(name: str, denoiser: DenoiserLike, t0: float | None, t1: float | None) -> tuple[float, float]:
    """Return the ends of a flow, those of the process by default.

    Raises:
        ValueError: they are out of order or outside the process, or nothing of the data is left at t1.
    """
    process = denoiser.process
    start, end = process.t0 if t0 is None else t0, process.t1 if t1 is None else t1
    if not 0 <= start < end <= process.t1:
        raise ValueError(
            f"{name}: times from {start:g} to {end:g} are no span of {type(process).__name__}; "
            f"give 0 <= t0 < t1 <= {process.t1:g}."
        )
    if end == process.t1 and process.prior_std == 0:
        raise ValueError(
            f"{name}: {type(process).__name__} ends in one point, in which no datum is told from another; "
            f"give t1 below {process.t1:g}."
        )
    return start, end


def _prior(denoiser: DenoiserLike, mu: Tensor | None) -> Prior:
    return denoiser.process.prior(mu)


def _follow(
    name: str,
    denoiser: DenoiserLike,
    x: Tensor,
    ends: tuple[float, float],
    steps: int | None,
    solver: Solver | None,
    rtol: float,
    atol: float,
    log_snr: bool | None,
    mu: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Solve the probability flow between two times."""
    if x.ndim < 2:
        raise ValueError(f"{name}: data of shape {tuple(x.shape)} have no batch axis; give (batch, *shape).")
    if steps is not None and steps < 1:
        raise ValueError(f"{name}: steps={steps} goes nowhere; give at least 1.")
    if log_snr is None and solver is not None and (solver.facts.semilinear or isinstance(solver, Predictor)):
        log_snr = False  # they know the clock of the process, and steps that jumps of its rates do not disturb
    equation, ends = clocked(name, ProbabilityFlow(denoiser, 0.0, mu), ends, log_snr)
    given: dict[str, Any] = {"controller": PID(rtol, atol)}
    if steps is not None:
        given = {"controller": Grid(torch.linspace(*ends, steps + 1, dtype=torch.float64).numpy()), "max_steps": steps}
    return solve(equation, x, ends, solver=Tsit5() if solver is None else solver, **(given | options)).y1
