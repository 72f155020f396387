"""Diffusion models: processes, denoisers, training objectives, sampling and likelihoods."""

from dxdt.diffusion.chains import DenoisingMCMC, ProductSpace, dlg, dlg_exact, restart, walk_jump
from dxdt.diffusion.denoisers.covariance import covariance_product, posterior_covariance
from dxdt.diffusion.denoisers.denoiser import Cast, Conditioned, Denoiser, DenoiserLike, Preconditioned
from dxdt.diffusion.denoisers.noise_label import Clock, Index, LogScale, diffusion_time, log_snr, noise_to_signal
from dxdt.diffusion.denoisers.oracle import GaussianOracle, JointOracle, MixtureOracle, gaussian_oracle
from dxdt.diffusion.denoisers.parameterisation import (
    AngularVelocity,
    Data,
    Debiased,
    Noise,
    Parameterisation,
    Residual,
    Score,
    Velocity,
)
from dxdt.diffusion.denoisers.posterior import Place, Posterior
from dxdt.diffusion.denoisers.preconditioning import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    Preconditioning,
    SelfPreconditioned,
    VEPreconditioning,
    VPPreconditioning,
)
from dxdt.diffusion.denoisers.round_mixture import RoundMixture
from dxdt.diffusion.denoisers.threshold import Clip, Dynamic, Thresholded
from dxdt.diffusion.evaluation.encode import decode, encode, interpolate
from dxdt.diffusion.evaluation.likelihood import (
    BitsPerDim,
    Law,
    Levels,
    Likelihood,
    Marginal,
    bits_per_dim,
    log_likelihood,
)
from dxdt.diffusion.processes.bridge import BrownianBridge, OUBridge
from dxdt.diffusion.processes.exploding import EDM, VE
from dxdt.diffusion.processes.flow import RectifiedFlow
from dxdt.diffusion.processes.mean_reverting import OUVE, Denoising, MeanReverting
from dxdt.diffusion.processes.process import Prior, Process
from dxdt.diffusion.processes.reversion import ConstantCurve, CosineCurve, LinearCurve, Reversion
from dxdt.diffusion.processes.schedule import Constant, Cosine, Linear, Scaled, Schedule
from dxdt.diffusion.processes.table import (
    LogAlpha,
    LogSigma,
    Smooth,
    Table,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)
from dxdt.diffusion.processes.transition import Pinned, Transition
from dxdt.diffusion.processes.variance import VP, SubVP
from dxdt.diffusion.sampling.ancestral import DDIM, Ancestral
from dxdt.diffusion.sampling.churn import Churn
from dxdt.diffusion.sampling.corrector import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from dxdt.diffusion.sampling.grid import Angle, CosineTime, Given, Karras, Landing, LogSNR, Quadratic, Time, TimeGrid
from dxdt.diffusion.sampling.predictor import Identity, Predictor
from dxdt.diffusion.sampling.profile import Profile, Varying, Window
from dxdt.diffusion.sampling.reclocked import InLogSNR
from dxdt.diffusion.sampling.reverse import ProbabilityFlow, Reverse, ReverseSDE, reverse
from dxdt.diffusion.sampling.reverse_diffusion import ReverseDiffusion
from dxdt.diffusion.sampling.sample import Samples, draw, integrate, prior_noise, sample
from dxdt.diffusion.training.objective import (
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
from dxdt.diffusion.training.time_law import (
    DiscreteTimes,
    LogNormalScale,
    Mixed,
    Tabulated,
    TimeLaw,
    UniformLogSNR,
    UniformTime,
    low_discrepancy,
)
from dxdt.ops.autodiff import Exact, Hutchinson

__all__ = [
    "DDIM",
    "EDM",
    "OUVE",
    "VE",
    "VP",
    "Ancestral",
    "Angle",
    "AngularVelocity",
    "AnnealedLangevin",
    "BitsPerDim",
    "BrownianBridge",
    "Cast",
    "Churn",
    "Clip",
    "Clock",
    "Conditioned",
    "Constant",
    "ConstantCurve",
    "Corrector",
    "Cosine",
    "CosineCurve",
    "CosineTime",
    "Data",
    "DataWeight",
    "Debiased",
    "Denoiser",
    "DenoiserLike",
    "Denoising",
    "DenoisingMCMC",
    "DenoisingScoreMatching",
    "DiscreteTimes",
    "Dynamic",
    "Exact",
    "EDMLoss",
    "EDMPreconditioning",
    "GaussianOracle",
    "Given",
    "HalfSum",
    "Hutchinson",
    "IDDPMPreconditioning",
    "Identity",
    "InLogSNR",
    "Index",
    "JointOracle",
    "Karras",
    "Landing",
    "Langevin",
    "Law",
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
    "Marginal",
    "Mean",
    "MeanReverting",
    "MinSNR",
    "Mixed",
    "MixtureOracle",
    "Noise",
    "NoiseWeight",
    "OUBridge",
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
    "ProductSpace",
    "Profile",
    "Quadratic",
    "RectifiedFlow",
    "Residual",
    "Reverse",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversion",
    "RoundMixture",
    "Samples",
    "Scaled",
    "Schedule",
    "Score",
    "SelfPreconditioned",
    "Smooth",
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
    "VEPreconditioning",
    "VPPreconditioning",
    "Varying",
    "Velocity",
    "Window",
    "bits_per_dim",
    "cosine_betas",
    "covariance_product",
    "ddpm",
    "decode",
    "dlg",
    "dlg_exact",
    "draw",
    "encode",
    "gaussian_oracle",
    "integrate",
    "interpolate",
    "linear_betas",
    "log_likelihood",
    "diffusion_time",
    "log_snr",
    "low_discrepancy",
    "maximum_likelihood",
    "noise_to_signal",
    "posterior_covariance",
    "prior_noise",
    "restart",
    "reverse",
    "sample",
    "scaled_linear_betas",
    "smld",
    "walk_jump",
    "zero_terminal_snr",
]
