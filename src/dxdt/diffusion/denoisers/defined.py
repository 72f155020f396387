"""Where an answer is defined: what a network may be told and may answer on the whole span of a process.

At t1 of a rectified flow, or of a table with zero terminal signal-to-noise ratio, a = 0: nothing is left of the data.
There lam = log(a / c) is minus infinity, and a noise eps with x_t = c eps says nothing about x_0 = (x_t - c eps) / a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dxdt.diffusion.denoisers.noise_label import Clock, diffusion_time, log_snr
from dxdt.diffusion.denoisers.parameterisation import Debiased, Noise, Parameterisation, Score, Velocity
from dxdt.diffusion.processes.process import Process

__all__ = ["check_answer", "check_told", "default_clock", "default_parameterisation", "end_of"]

# Data that are less than this part of x_t cannot be told from it in float32.
_LEAST = 1e-7


def _ends(process: Process) -> Tensor:
    return torch.tensor([process.t0, process.t1], dtype=torch.float64)


def end_of(process: Process) -> Tensor:
    """t1 as float64 ``(1,)``."""
    return _ends(process)[1:]


def _keeps_data(process: Process) -> bool:
    """Whether something is left of the data at t1, or x_t has no noise there either (bridges)."""
    a, c = process.a(end_of(process)), process.c(end_of(process))
    return bool(((a > _LEAST * c) | (c == 0)).all())


def default_clock(process: Process) -> Clock:
    """Half the log signal-to-noise ratio where it is finite at both ends of the process, else the time."""
    return log_snr if bool(torch.isfinite(process.lam(_ends(process))).all()) else diffusion_time


def default_parameterisation(process: Process) -> Parameterisation:
    """The noise, or the velocity where the noise says nothing about the data at t1."""
    return Noise() if _keeps_data(process) else Velocity()


def check_answer(process: Process, parameterisation: Parameterisation) -> None:
    """Refuse an answer that is not defined at the end of a process.

    Raises:
        ValueError: noise or score where nothing is left of the data at t1.
    """
    if isinstance(parameterisation, Noise | Score | Debiased) and not _keeps_data(process):
        raise ValueError(
            f"Denoiser: a network that answers {type(parameterisation).__name__}() says nothing about the data at "
            f"t = {process.t1:g} of {process!r}, where none of it is left in x_t; use Velocity() or Data(), or a "
            f"process that ends before."
        )


def check_told(process: Process, name: str, told: Tensor) -> None:
    """Refuse a number that is not finite and would be told to a network at the end of a process.

    Raises:
        ValueError: such a number.
    """
    if not bool(torch.isfinite(told).all()) and _ends_in_noise(process):
        raise ValueError(
            f"{name} tells the network {float(told[-1]):g} at t = {process.t1:g} of {process!r}, where none of the "
            f"data is left in x_t; use Denoiser(net, process, Velocity()), or a process that ends before."
        )


def _ends_in_noise(process: Process) -> bool:
    return bool((process.c(end_of(process)) > 0).all())
