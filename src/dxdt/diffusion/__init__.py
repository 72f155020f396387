"""Diffusion models: processes, denoisers, training objectives, sampling and likelihoods."""

from dxdt.diffusion.bridge import BrownianBridge, OUBridge
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
from dxdt.diffusion.exploding import EDM, VE
from dxdt.diffusion.flow import RectifiedFlow
from dxdt.diffusion.likelihood import (
    BitsPerDim,
    Levels,
    Likelihood,
    bits_per_dim,
    log_likelihood,
)
from dxdt.diffusion.mean_reverting import OUVE, Denoising, MeanReverting
from dxdt.diffusion.objective import (
    DenoisingScoreMatching,
    Mixed,
    UniformLogSNR,
    UniformTime,
    low_discrepancy,
)
from dxdt.diffusion.process import Prior, Process
from dxdt.diffusion.reverse import ProbabilityFlow, Reverse, ReverseSDE, reverse
from dxdt.diffusion.reversion import ConstantCurve, CosineCurve, LinearCurve, Reversion
from dxdt.diffusion.sample import integrate, prior_noise, sample
from dxdt.diffusion.schedule import Constant, Cosine, Linear, Scaled, Schedule
from dxdt.diffusion.table import (
    LogAlpha,
    LogSigma,
    Table,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)
from dxdt.diffusion.transition import Pinned, Transition
from dxdt.diffusion.variance import VP, SubVP

__all__ = [
    "EDM",
    "OUVE",
    "VE",
    "VP",
    "AngularVelocity",
    "BitsPerDim",
    "BrownianBridge",
    "Constant",
    "ConstantCurve",
    "Cosine",
    "CosineCurve",
    "Data",
    "Denoiser",
    "DenoiserLike",
    "Denoising",
    "DenoisingScoreMatching",
    "Index",
    "Levels",
    "Likelihood",
    "Linear",
    "LinearCurve",
    "LogAlpha",
    "LogSigma",
    "MeanReverting",
    "Mixed",
    "MixtureOracle",
    "Noise",
    "OUBridge",
    "Pinned",
    "Posterior",
    "Prior",
    "ProbabilityFlow",
    "Process",
    "RectifiedFlow",
    "Reverse",
    "ReverseSDE",
    "Reversion",
    "Scaled",
    "Schedule",
    "Score",
    "SubVP",
    "Table",
    "Transition",
    "UniformLogSNR",
    "UniformTime",
    "Velocity",
    "bits_per_dim",
    "cosine_betas",
    "gaussian_oracle",
    "integrate",
    "linear_betas",
    "log_likelihood",
    "log_snr",
    "low_discrepancy",
    "prior_noise",
    "reverse",
    "sample",
    "scaled_linear_betas",
    "zero_terminal_snr",
]
