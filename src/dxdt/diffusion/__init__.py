"""Diffusion models: processes, denoisers, training objectives, sampling and likelihoods."""

from dxdt.diffusion.bridge import BrownianBridge, OUBridge
from dxdt.diffusion.clock import Clock, Index, LogScale, log_snr, noise_to_signal
from dxdt.diffusion.covariance import covariance_product, posterior_covariance
from dxdt.diffusion.denoiser import Conditioned, Denoiser, DenoiserLike, Preconditioned
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
from dxdt.diffusion.oracle import GaussianOracle, JointOracle, MixtureOracle, gaussian_oracle
from dxdt.diffusion.parameterisation import (
    AngularVelocity,
    Data,
    Debiased,
    Noise,
    Parameterisation,
    Residual,
    Score,
    Velocity,
)
from dxdt.diffusion.posterior import Place, Posterior
from dxdt.diffusion.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    Preconditioning,
    SelfPreconditioned,
    VEPreconditioning,
    VPPreconditioning,
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
from dxdt.diffusion.threshold import Clip, Dynamic, Thresholded
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
    "Clip",
    "Clock",
    "Conditioned",
    "Constant",
    "ConstantCurve",
    "Cosine",
    "CosineCurve",
    "Data",
    "Debiased",
    "Denoiser",
    "DenoiserLike",
    "Denoising",
    "DenoisingScoreMatching",
    "Dynamic",
    "EDMPreconditioning",
    "GaussianOracle",
    "IDDPMPreconditioning",
    "Index",
    "JointOracle",
    "Levels",
    "Likelihood",
    "Linear",
    "LinearCurve",
    "LogAlpha",
    "LogScale",
    "LogSigma",
    "MeanReverting",
    "Mixed",
    "MixtureOracle",
    "Noise",
    "OUBridge",
    "Parameterisation",
    "Pinned",
    "Place",
    "Posterior",
    "Preconditioned",
    "Preconditioning",
    "Prior",
    "ProbabilityFlow",
    "Process",
    "RectifiedFlow",
    "Residual",
    "Reverse",
    "ReverseSDE",
    "Reversion",
    "Scaled",
    "Schedule",
    "Score",
    "SelfPreconditioned",
    "SubVP",
    "Table",
    "Thresholded",
    "Transition",
    "UniformLogSNR",
    "UniformTime",
    "VEPreconditioning",
    "VPPreconditioning",
    "Velocity",
    "bits_per_dim",
    "cosine_betas",
    "covariance_product",
    "gaussian_oracle",
    "integrate",
    "linear_betas",
    "log_likelihood",
    "log_snr",
    "low_discrepancy",
    "noise_to_signal",
    "posterior_covariance",
    "prior_noise",
    "reverse",
    "sample",
    "scaled_linear_betas",
    "zero_terminal_snr",
]
