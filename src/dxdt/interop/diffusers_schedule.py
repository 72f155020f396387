"""What a diffusers scheduler's configuration says about the diffusion a network was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from dxdt.diffusion import (
    EDM,
    VE,
    VP,
    AngularVelocity,
    Clock,
    Data,
    Denoiser,
    EDMPreconditioning,
    Index,
    Linear,
    Noise,
    Parameterisation,
    Preconditioned,
    Preconditioning,
    Process,
    RectifiedFlow,
    Score,
    Table,
    Velocity,
    VPPreconditioning,
    cosine_betas,
    linear_betas,
    log_snr,
    noise_to_signal,
    scaled_linear_betas,
    zero_terminal_snr,
)
from dxdt.interop.entries import Flag, Kind, Maybe, Number, Row, Text, Whole, read_entries, shortened
from dxdt.interop.preconditionings import Negated, ToldLogSigma

__all__ = ["Training", "alphas_cumprod_of", "training_of"]

_DISCRETE = {
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
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "RePaintScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
}
_FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
_SCALED = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
_SCORE = {"ScoreSdeVeScheduler", "ScoreSdeVpScheduler"}
# Where a missing entry means something else than in DDPMScheduler.
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": _NARROW,
    "KDPM2DiscreteScheduler": _NARROW,
    "KDPM2AncestralDiscreteScheduler": _NARROW,
    "DPMSolverSDEScheduler": _NARROW,
    "CogVideoXDDIMScheduler": {**_NARROW, "beta_schedule": "scaled_linear", "snr_shift_scale": 3.0},
    "CogVideoXDPMScheduler": {**_NARROW, "beta_schedule": "scaled_linear", "snr_shift_scale": 3.0},
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0},
    "EDMDPMSolverMultistepScheduler": {"sigma_min": 0.002, "sigma_max": 80.0},
    "ScoreSdeVeScheduler": {"sigma_min": 0.01, "sigma_max": 1348.0},
    "ScoreSdeVpScheduler": {"num_train_timesteps": 2000},
}
_ANSWERS: dict[str, Parameterisation] = {"epsilon": Noise(), "sample": Data(), "v_prediction": AngularVelocity()}
_FLOW_ANSWERS: dict[str, Parameterisation] = {"flow_prediction": Velocity(), "epsilon": Noise(), "sample": Data()}
_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos_cap_v2": lambda levels, low, high: cosine_betas(levels),
    "sigmoid": lambda levels, low, high: (
        torch.linspace(-6, 6, levels, dtype=torch.float64).sigmoid() * (high - low) + low
    ),
}
_BETA, _SIGMA = Number(0, 1), Maybe(Number(1e-12, 1e12))
_KINDS: dict[str, Kind] = {
    "num_train_timesteps": Whole(1, 1_000_000),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": Text(tuple(_BETAS)),
    "trained_betas": Maybe(Row(_BETA)),
    "rescale_betas_zero_snr": Flag(),
    "snr_shift_scale": Number(1e-6, 1e6),
    "prediction_type": Text((*_ANSWERS, "flow_prediction")),
    "use_flow_sigmas": Flag(),
    "timestep_type": Text(("discrete", "continuous")),
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "sigma_data": Number(1e-12, 1e12),
    "beta_min": Number(0, 1e6),
    "beta_max": Number(0, 1e6),
}
_USUAL: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "prediction_type": "epsilon",
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "sigma_min": None,
    "sigma_max": None,
    "sigma_data": 0.5,
    "beta_min": 0.1,
    "beta_max": 20.0,
}


@final
@dataclass(frozen=True)
class Training:
    """The diffusion, what the network answers, and what it is told about the time.

    Attributes:
        process: the diffusion.
        parameterisation, clock: what the network answers and is told.
        preconditioning: how it is scaled around, where it is; parameterisation and clock say nothing then.
    """

    process: Process
    parameterisation: Parameterisation = Noise()  # noqa: RUF009
    clock: Clock = log_snr
    preconditioning: Preconditioning | None = None

    def denoiser(self, net: Callable[..., Tensor] | nn.Module) -> Denoiser | Preconditioned:
        """Return the denoiser of a network that was trained so."""
        if self.preconditioning is not None:
            return Preconditioned(net, self.process, self.preconditioning)
        return Denoiser(net, self.process, self.parameterisation, self.clock)


def _entries(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    name = config.get("_class_name")
    return read_entries(_KINDS, config, where, _USUAL | _DEFAULTS.get(str(name), {}))


def alphas_cumprod_of(config: Mapping[str, Any], where: str = "scheduler") -> Tensor:
    """Return the cumulative products of 1 - beta of every level, float64.

    Raises:
        ValueError: an entry is not what it should be, or the schedule is not known.
    """
    return _products(_entries(config, where))


def _products(said: Mapping[str, Any]) -> Tensor:
    if said["trained_betas"] is not None:
        betas = torch.tensor(said["trained_betas"], dtype=torch.float64)
    else:
        betas = _BETAS[said["beta_schedule"]](said["num_train_timesteps"], said["beta_start"], said["beta_end"])
    products = torch.cumprod(1 - betas, 0)
    # The noise of every level is more by this factor, in variance over signal (CogVideoX).
    shift = said["snr_shift_scale"]
    products = products / (shift + (1 - shift) * products)
    return zero_terminal_snr(products) if said["rescale_betas_zero_snr"] else products


def training_of(config: Mapping[str, Any], where: str = "scheduler") -> Training:
    """Return what a scheduler's configuration says about the training.

    Level i of N becomes t = (i + 1) / N of a VP process through the tabulated products; score-SDE schedulers become
    their continuous processes, those of flow matching straight paths, and those of EDM a preconditioning.

    Raises:
        ValueError: the scheduler is not known, an entry is not what it should be, or entries contradict each other.
    """
    name = config.get("_class_name")
    known = _DISCRETE | _FLOW | _SCALED | _SCORE
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{where}: _class_name={shortened(name)} says nothing that is known about the training; pass process=..., "
            "parameterisation=... and clock=..., all three, and it is not asked."
        )
    said = _entries(config, where)
    if name in _SCORE:
        return _score(name, said, where)
    if name in _SCALED:
        return _scaled(EDMPreconditioning(said["sigma_data"]), said, where)
    if name in _FLOW or said["use_flow_sigmas"] or said["prediction_type"] == "flow_prediction":
        return _flow(name, said, where)
    if said["timestep_type"] == "continuous":
        return _continuous(said, where)
    return _discrete(said, where)


def _score(name: str, said: Mapping[str, Any], where: str) -> Training:
    """Score SDE's continuous VE and VP."""
    if name == "ScoreSdeVeScheduler":
        return Training(VE(*_range(said, where)), Score(), noise_to_signal)
    low, high = said["beta_min"], said["beta_max"]
    if not low <= high:
        raise ValueError(f"{where}: beta_min={low:g} is above beta_max={high:g}; mend the configuration.")
    return Training(VP(Linear(low, high)), Noise(), Index(float(said["num_train_timesteps"]) - 1))


def _range(said: Mapping[str, Any], where: str) -> tuple[float, float]:
    low, high = said["sigma_min"], said["sigma_max"]
    if low is None or high is None or not low < high:
        raise ValueError(
            f"{where}: sigma_min={low} and sigma_max={high} are no range of noise; mend the configuration."
        )
    return low, high


def _scaled(preconditioning: Preconditioning, said: Mapping[str, Any], where: str) -> Training:
    """Networks scaled around as those of EDM, whose velocity is minus what EDM lets them answer."""
    answer = said["prediction_type"]
    if answer not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{where}: prediction_type={answer!r} has no meaning under EDM's scaling; epsilon and v_prediction have."
        )
    velocity = answer == "v_prediction"
    return Training(
        EDM(*_range(said, where)), preconditioning=Negated(preconditioning) if velocity else preconditioning
    )


def _flow(name: str, said: Mapping[str, Any], where: str) -> Training:
    """Straight paths x_t = (1 - t) x_0 + t eps, whose networks are told t times the number of levels."""
    answer = "flow_prediction" if name in _FLOW else said["prediction_type"]
    if answer not in _FLOW_ANSWERS:
        raise ValueError(
            f"{where}: prediction_type={answer!r} has no meaning on the straight paths of use_flow_sigmas=True; "
            f"{', '.join(_FLOW_ANSWERS)} have."
        )
    return Training(RectifiedFlow(), _FLOW_ANSWERS[answer], Index(float(said["num_train_timesteps"])))


def _continuous(said: Mapping[str, Any], where: str) -> Training:
    """Networks that see x / sqrt(1 + sigma^2) and are told log(sigma) / 4."""
    products = _products(said)
    sigma = ((1 - products) / products).sqrt()
    ends = {"sigma_min": sigma[0].item(), "sigma_max": sigma[-1].item()}
    said = {**said, **{key: end for key, end in ends.items() if said[key] is None}}
    if said["prediction_type"] == "epsilon":
        return Training(EDM(*_range(said, where)), preconditioning=ToldLogSigma(VPPreconditioning()))
    return _scaled(EDMPreconditioning(1.0), said, where)


def _discrete(said: Mapping[str, Any], where: str) -> Training:
    """A VP process through the levels of a table."""
    products = _products(said)
    answer = _ANSWERS[said["prediction_type"]]
    if products[-1] == 0 and len(products) > 1 and isinstance(answer, Noise):
        warnings.warn(
            f"{where}: the last level is pure noise (rescale_betas_zero_snr, or a last beta of 1), where a network "
            "that answers epsilon says nothing about the data; sampling starts at the level before.",
            stacklevel=3,
        )
        products = products[:-1]
    try:
        table = Table.from_alphas_cumprod(products)
    except ValueError as error:
        raise ValueError(
            f"{where}: beta_start={said['beta_start']:g}, beta_end={said['beta_end']:g}, num_train_timesteps="
            f"{said['num_train_timesteps']} or trained_betas make no schedule ({error}); mend the configuration."
        ) from error
    return Training(VP(table), answer, Index.levels(table.levels))
