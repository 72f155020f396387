"""Diffusion models: processes, denoisers, training objectives, sampling and likelihoods."""

from dxdt.diffusion.ancestral import DDIM, Ancestral
from dxdt.diffusion.bridge import BrownianBridge, OUBridge
from dxdt.diffusion.churn import Churn
from dxdt.diffusion.clock import Clock, Index, LogScale, log_snr, noise_to_signal
from dxdt.diffusion.corrector import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from dxdt.diffusion.covariance import covariance_product, posterior_covariance
from dxdt.diffusion.denoiser import Cast, Conditioned, Denoiser, DenoiserLike, Preconditioned
from dxdt.diffusion.exploding import EDM, VE
from dxdt.diffusion.flow import RectifiedFlow
from dxdt.diffusion.grid import CosineTime, Given, Karras, Landing, LogSNR, Quadratic, Time, TimeGrid
from dxdt.diffusion.likelihood import (
    BitsPerDim,
    Levels,
    Likelihood,
    bits_per_dim,
    log_likelihood,
)
from dxdt.diffusion.mean_reverting import OUVE, Denoising, MeanReverting
from dxdt.diffusion.objective import (
    DataWeight,
    DenoisingScoreMatching,
    EDMLoss,
    HalfSum,
    LikelihoodWeight,
    Mean,
    MinSNR,
    NoiseWeight,
    Objective,
    ddpm,
    maximum_likelihood,
    smld,
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
from dxdt.diffusion.predictor import Identity, Predictor
from dxdt.diffusion.process import Prior, Process
from dxdt.diffusion.reverse import ProbabilityFlow, Reverse, ReverseSDE, reverse
from dxdt.diffusion.reverse_diffusion import ReverseDiffusion
from dxdt.diffusion.reversion import ConstantCurve, CosineCurve, LinearCurve, Reversion
from dxdt.diffusion.sample import integrate, prior_noise, sample
from dxdt.diffusion.schedule import Constant, Cosine, Linear, Scaled, Schedule
from dxdt.diffusion.table import (
    LogAlpha,
    LogSigma,
    Smooth,
    Table,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)
from dxdt.diffusion.threshold import Clip, Dynamic, Thresholded
from dxdt.diffusion.time_law import (
    DiscreteTimes,
    LogNormalScale,
    Mixed,
    Tabulated,
    TimeLaw,
    UniformLogSNR,
    UniformTime,
    low_discrepancy,
)
from dxdt.diffusion.transition import Pinned, Transition
from dxdt.diffusion.variance import VP, SubVP

__all__ = [
    "Ancestral",
    "AngularVelocity",
    "AnnealedLangevin",
    "BitsPerDim",
    "BrownianBridge",
    "Churn",
    "Cast",
    "Clip",
    "Clock",
    "Conditioned",
    "Constant",
    "ConstantCurve",
    "Corrector",
    "Cosine",
    "CosineCurve",
    "CosineTime",
    "DDIM",
    "Data",
    "DataWeight",
    "Debiased",
    "Denoiser",
    "DenoiserLike",
    "Denoising",
    "DenoisingScoreMatching",
    "DiscreteTimes",
    "Dynamic",
    "EDM",
    "EDMLoss",
    "EDMPreconditioning",
    "GaussianOracle",
    "Given",
    "HalfSum",
    "IDDPMPreconditioning",
    "Identity",
    "Index",
    "JointOracle",
    "Karras",
    "Landing",
    "Langevin",
    "Levels",
    "Likelihood",
    "LikelihoodWeight",
    "Linear",
    "LinearCurve",
    "LogAlpha",
    "LogNormalScale",
    "LogSNR",
    "LogScale",
    "LogSigma",
    "Mean",
    "MeanReverting",
    "MinSNR",
    "Mixed",
    "MixtureOracle",
    "Noise",
    "NoiseWeight",
    "OUBridge",
    "OUVE",
    "Objective",
    "Parameterisation",
    "Pinned",
    "Place",
    "Posterior",
    "Preconditioned",
    "Preconditioning",
    "Predictor",
    "PredictorCorrector",
    "Prior",
    "ProbabilityFlow",
    "Process",
    "Quadratic",
    "RectifiedFlow",
    "Residual",
    "Reverse",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversion",
    "Scaled",
    "Schedule",
    "Score",
    "Smooth",
    "SelfPreconditioned",
    "SubVP",
    "Table",
    "Tabulated",
    "Thresholded",
    "Time",
    "TimeGrid",
    "TimeLaw",
    "Transition",
    "UniformLogSNR",
    "UniformTime",
    "VE",
    "VEPreconditioning",
    "VP",
    "VPPreconditioning",
    "Velocity",
    "bits_per_dim",
    "cosine_betas",
    "covariance_product",
    "ddpm",
    "gaussian_oracle",
    "integrate",
    "linear_betas",
    "log_likelihood",
    "log_snr",
    "low_discrepancy",
    "maximum_likelihood",
    "noise_to_signal",
    "posterior_covariance",
    "prior_noise",
    "reverse",
    "sample",
    "scaled_linear_betas",
    "smld",
    "zero_terminal_snr",
]
