"""What samplers are given, looked at before any work: each wrong thing is one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.request import expect
from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.sampling.ancestral import Ancestral
from dxdt.diffusion.sampling.grid import TimeGrid
from dxdt.diffusion.sampling.reverse_diffusion import ReverseDiffusion

__all__ = ["ELSEWHERE", "check_denoiser", "check_landing", "check_rules", "check_shape", "check_steps", "usual_tau"]

ELSEWHERE = {
    "eta": "tau",
    "generator": "seed",
    "method": "solver",
    "n_steps": "steps",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "sampler": "solver",
    "schedule": "grid",
    "sigmas": "grid",
    "timesteps": "grid",
}
"""What diffusers, k-diffusion and others call the options of sampling."""


def check_denoiser(name: str, denoiser: Any) -> None:
    """Raise TypeError for what is no denoiser, such as a plain network."""
    if isinstance(denoiser, type):
        raise TypeError(f"{name}: the denoiser is the class {denoiser.__name__}; make one of it.")
    if not callable(denoiser) or not isinstance(getattr(denoiser, "process", None), Process):
        kind = "a plain network" if isinstance(denoiser, nn.Module) else f"a {type(denoiser).__name__}"
        raise TypeError(
            f"{name}: {kind} is no denoiser, for it does not say to which process it belongs; wrap it, as "
            "diffusion.Denoiser(network, diffusion.VP())."
        )


def check_rules(solver: Any, grid: Any) -> None:
    """Raise TypeError for a solver or a grid that is a word, a class or something else."""
    if solver is not None:
        expect(solver, Solver, "solver", "dxdt.Exponential()")
    if grid is not None:
        expect(grid, TimeGrid, "grid", "dxdt.diffusion.Karras()")


def check_shape(name: str, shape: Any) -> None:
    """Raise TypeError or ValueError for a shape that is none of a batch."""
    remedy = "give (batch, *data shape), as (16, 3, 32, 32)."
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"{name}: shape={shape!r} is no shape; {remedy}")
    if len(shape) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"{name}: shape={tuple(shape)!r} is none of a batch; {remedy}")


def check_steps(name: str, steps: Any) -> None:
    """Raise TypeError or ValueError for a number of steps that is none."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
        raise TypeError(f"{name}: steps={steps!r} is no whole number; give one, or a tolerance in its place.")
    if steps is not None and steps < 1:
        raise ValueError(f"{name}: steps={steps} goes nowhere; give at least 1.")


def usual_tau(solver: Solver | None) -> float:
    """The share of noise where none is given: 1 for methods of stochastic equations, 0 for all others."""
    if solver is None:
        return 0.0
    noise = solver.facts.noise
    stochastic = solver.facts.stochastic and noise is not None and bool(noise.calculus)
    return float(stochastic or isinstance(solver, (Ancestral, ReverseDiffusion)))


def check_landing(solver: Solver, equation: Any, x: Tensor, end: Tensor) -> None:
    """Raise ValueError for a solver that asks for the flow at the data, t = 0, where it is not finite.

    Methods of one evaluation and exponential integrators land there without asking.
    """
    if solver.facts.semilinear or solver.facts.stages < 2 or bool((end > 0).all()):
        return
    with torch.no_grad():
        slope = equation.drift(end.expand(len(x)).to(x.dtype), x)
    if not bool(torch.isfinite(slope).all()):
        raise ValueError(
            f"integrate: {type(solver).__name__} asks for the flow at t0=0, where it is singular; stop above it, as at "
            f"the t0 of the process, or take Exponential() or Euler(), which land on the data."
        )
