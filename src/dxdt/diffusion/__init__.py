"""Diffusion models: processes, denoisers, training objectives, sampling and likelihoods."""

from dxdt.diffusion.denoiser import (
    AngularVelocity,
    Data,
    Denoiser,
    DenoiserLike,
    Index,
    MixtureOracle,
    Noise,
    Posterior,
    Score,
    Velocity,
    gaussian_oracle,
    log_snr,
)
from dxdt.diffusion.likelihood import (
    BitsPerDim,
    Levels,
    Likelihood,
    bits_per_dim,
    log_likelihood,
)
from dxdt.diffusion.objective import (
    DenoisingScoreMatching,
    Mixed,
    UniformLogSNR,
    UniformTime,
    low_discrepancy,
)
from dxdt.diffusion.process import VE, VP, Linear, Prior, Process, RectifiedFlow, SubVP
from dxdt.diffusion.reverse import ProbabilityFlow, Reverse, ReverseSDE, reverse
from dxdt.diffusion.sample import integrate, prior_noise, sample

__all__ = [
    "VE",
    "VP",
    "AngularVelocity",
    "BitsPerDim",
    "Data",
    "Denoiser",
    "DenoiserLike",
    "DenoisingScoreMatching",
    "Index",
    "Levels",
    "Likelihood",
    "Linear",
    "MixtureOracle",
    "Mixed",
    "Noise",
    "Posterior",
    "Prior",
    "ProbabilityFlow",
    "Process",
    "RectifiedFlow",
    "Reverse",
    "ReverseSDE",
    "Score",
    "SubVP",
    "UniformLogSNR",
    "UniformTime",
    "Velocity",
    "bits_per_dim",
    "gaussian_oracle",
    "integrate",
    "log_likelihood",
    "log_snr",
    "low_discrepancy",
    "prior_noise",
    "reverse",
    "sample",
]
