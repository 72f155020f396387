"""Denoising MCMC: chains in the product space of data and noise level."""

from dxdt.diffusion.chains.classifier import ClassifierPosterior, LevelClassifier
from dxdt.diffusion.chains.denoising_mcmc import ChainDraw, Counts, DenoisingMCMC, Progress, Run
from dxdt.diffusion.chains.diagnostics import Drift, LevelTest, duplicates, level_drift, level_test, round_trips
from dxdt.diffusion.chains.factories import dlg, dlg_exact, edm_churn, predictor_corrector, restart, walk_jump
from dxdt.diffusion.chains.integrator import (
    Integrator,
    euler_maruyama,
    kar1,
    kar2,
    probability_flow,
    reverse_diffusion,
    rk45,
)
from dxdt.diffusion.chains.level_posterior import DensityPosterior, LevelPosterior, LevelTable, Told
from dxdt.diffusion.chains.levels import DiscreteLevels, LevelPrior, LogNormalLevels, LogUniform, PowerLaw
from dxdt.diffusion.chains.moves import (
    DiffusiveGibbs,
    FromPrior,
    LevelGibbs,
    LevelKernel,
    LevelRule,
    LevelWalk,
    SwapLevels,
    ToLevel,
    WithinLevel,
)
from dxdt.diffusion.chains.product_space import AtLevel, LevelState, ProductSpace, Rescaled
from dxdt.diffusion.chains.score_posterior import DataPosterior, ResidualPosterior, ScorePosterior, level_slope
from dxdt.diffusion.chains.start import Chosen, Last, LowestLevel, Selection, Start, StartFromData, StartFromNoise
from dxdt.diffusion.chains.transport import Flow, Renoise, Reversal, Transport, UpDown

__all__ = [
    "AtLevel",
    "Chosen",
    "ClassifierPosterior",
    "Counts",
    "DataPosterior",
    "DenoisingMCMC",
    "DensityPosterior",
    "DiffusiveGibbs",
    "DiscreteLevels",
    "Drift",
    "Flow",
    "FromPrior",
    "Integrator",
    "Last",
    "LevelClassifier",
    "LevelGibbs",
    "LevelKernel",
    "LevelPosterior",
    "LevelPrior",
    "LevelRule",
    "LevelState",
    "LevelTable",
    "LevelTest",
    "LevelWalk",
    "LogNormalLevels",
    "LogUniform",
    "LowestLevel",
    "PowerLaw",
    "ProductSpace",
    "Progress",
    "Renoise",
    "Rescaled",
    "ResidualPosterior",
    "Reversal",
    "Run",
    "ScorePosterior",
    "Selection",
    "Start",
    "StartFromData",
    "StartFromNoise",
    "SwapLevels",
    "ToLevel",
    "Told",
    "Transport",
    "UpDown",
    "ChainDraw",
    "WithinLevel",
    "dlg",
    "dlg_exact",
    "duplicates",
    "edm_churn",
    "euler_maruyama",
    "kar1",
    "kar2",
    "level_drift",
    "level_slope",
    "level_test",
    "predictor_corrector",
    "probability_flow",
    "restart",
    "reverse_diffusion",
    "rk45",
    "round_trips",
    "walk_jump",
]
