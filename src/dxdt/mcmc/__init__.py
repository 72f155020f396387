"""Markov chain Monte Carlo: kernels for many chains at once, and what the chains are worth."""

from dxdt.mcmc.chain import Chains, march, run_chains
from dxdt.mcmc.compose import Mixture, Repeat, Sequence
from dxdt.mcmc.diagnostics import Summary, autocorrelation, ess, ess_bulk, ess_tail, mcse, rhat, summary
from dxdt.mcmc.draws import Draws
from dxdt.mcmc.export import to_arviz
from dxdt.mcmc.hmc import HMC, UnderdampedLangevin
from dxdt.mcmc.integrated import LangevinSDE
from dxdt.mcmc.kernel import Info, Kernel, State
from dxdt.mcmc.langevin import MALA, UnadjustedLangevin
from dxdt.mcmc.ratio import Energy, LineIntegral, Ratio
from dxdt.mcmc.scaled import Scaled, ScaledTarget, in_units
from dxdt.mcmc.target import Density, Local, Score, Target
from dxdt.mcmc.warm_up import WarmUp, adapted, settled, warm_up

__all__ = [
    "HMC",
    "MALA",
    "Chains",
    "Density",
    "Draws",
    "Energy",
    "Info",
    "Kernel",
    "LangevinSDE",
    "LineIntegral",
    "Local",
    "Mixture",
    "Ratio",
    "Repeat",
    "Scaled",
    "ScaledTarget",
    "Score",
    "Sequence",
    "State",
    "Summary",
    "Target",
    "UnadjustedLangevin",
    "UnderdampedLangevin",
    "WarmUp",
    "adapted",
    "autocorrelation",
    "ess",
    "ess_bulk",
    "ess_tail",
    "in_units",
    "march",
    "mcse",
    "rhat",
    "run_chains",
    "settled",
    "summary",
    "to_arviz",
    "warm_up",
]
