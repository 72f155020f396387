"""What a diffusers scheduler's configuration says about the diffusion a network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffusion import (
    VE,
    VP,
    AngularVelocity,
    Clock,
    Data,
    Index,
    Linear,
    Noise,
    Parameterisation,
    Process,
    Score,
    Table,
    cosine_betas,
    linear_betas,
    noise_to_signal,
    scaled_linear_betas,
    zero_terminal_snr,
)

__all__ = ["Training", "alphas_cumprod_of", "training_of"]

_DISCRETE = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
_ANSWERS: dict[str, Parameterisation] = {"epsilon": Noise(), "sample": Data(), "v_prediction": AngularVelocity()}
_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": lambda levels, low, high: cosine_betas(levels),
}
# Where the default differs from 1e-4 to 0.02.
_OTHER_ENDS = {
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
}


@final
@dataclass(frozen=True)
class Training:
    """The diffusion, what the network answers, and what it is told about the time."""

    process: Process
    parameterisation: Parameterisation
    clock: Clock


def alphas_cumprod_of(config: Mapping[str, Any], where: str = "scheduler") -> Tensor:
    """Return the cumulative products of 1 - beta of every level, float64.

    Raises:
        ValueError: the schedule is not known.
    """
    name = str(config.get("_class_name", ""))
    levels = int(config.get("num_train_timesteps", 1000))
    if (given := config.get("trained_betas")) is not None:
        betas = torch.tensor(given, dtype=torch.float64)
    else:
        low, high = (0.00085, 0.012) if name in _OTHER_ENDS else (0.0001, 0.02)
        low, high = float(config.get("beta_start", low)), float(config.get("beta_end", high))
        kind = config.get("beta_schedule", "linear")
        if kind == "sigmoid":
            betas = torch.linspace(-6, 6, levels, dtype=torch.float64).sigmoid() * (high - low) + low
        elif kind in _BETAS:
            betas = _BETAS[kind](levels, low, high)
        else:
            raise ValueError(
                f"{where}: beta_schedule={kind!r} is not known; {', '.join(_BETAS)}, sigmoid and trained_betas are."
            )
    products = torch.cumprod(1 - betas, 0)
    return zero_terminal_snr(products) if config.get("rescale_betas_zero_snr") else products


def training_of(config: Mapping[str, Any], where: str = "scheduler") -> Training:
    """Return what a scheduler's configuration says about the training.

    Level i of N becomes t = (i + 1) / N of a VP process through the tabulated products; score-SDE schedulers become
    their continuous processes.

    Raises:
        ValueError: the scheduler, its schedule or its prediction type is not known.
    """
    name = str(config.get("_class_name", ""))
    if name == "ScoreSdeVeScheduler":
        low, high = float(config.get("sigma_min", 0.01)), float(config.get("sigma_max", 1348.0))
        return Training(VE(low, high), Score(), noise_to_signal)
    if name == "ScoreSdeVpScheduler":
        low, high = float(config.get("beta_min", 0.1)), float(config.get("beta_max", 20.0))
        return Training(VP(Linear(low, high)), Noise(), Index(float(config.get("num_train_timesteps", 2000)) - 1))
    if name not in _DISCRETE:
        raise ValueError(
            f"{where}: scheduler {name or 'without a name'} says nothing that is known about the training; "
            "pass process=..., parameterisation=... and clock=... instead."
        )
    answer = config.get("prediction_type", "epsilon")
    if answer not in _ANSWERS:
        raise ValueError(f"{where}: prediction_type={answer!r} is not known; {', '.join(_ANSWERS)} are.")
    table = Table.from_alphas_cumprod(alphas_cumprod_of(config, where))
    return Training(VP(table), _ANSWERS[answer], Index.levels(table.levels))
