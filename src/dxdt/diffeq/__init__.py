"""Solving differential equations: dy = f(t, y) dt + g(t, y) dX(t)."""

import warnings
from typing import Any

from dxdt.diffeq.compiled.context import compiling
from dxdt.diffeq.control.controller import Clip, Constant, Controller, Decision, Grid, max_norm, rms
from dxdt.diffeq.control.pid import PI, PID, I
from dxdt.diffeq.control.revisit import Revisit
from dxdt.diffeq.entry import solve
from dxdt.diffeq.gradients.backsolve import Backsolve
from dxdt.diffeq.gradients.checkpointed import Checkpointed
from dxdt.diffeq.gradients.gradient import Direct, Gradient
from dxdt.diffeq.gradients.reversible import Reversible
from dxdt.diffeq.loop.event import Event, SteadyState
from dxdt.diffeq.loop.save import Save
from dxdt.diffeq.methods.adams import AdamsBashforth, AdamsBashforthMoulton
from dxdt.diffeq.methods.explicit import (
    RK4,
    Bosh3,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    Tsit5,
)
from dxdt.diffeq.methods.exponential.integrator import Exponential
from dxdt.diffeq.methods.exponential.options import Corrector, Inside, Preserving, Rising
from dxdt.diffeq.methods.exponential.weights import (
    B1,
    B2,
    DataPrediction,
    ExactWeight,
    InLogSNR,
    InRatio,
    InTime,
    NoisePrediction,
    largest_step,
)
from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.high_order import Dopri8, Vern7
from dxdt.diffeq.methods.implicit.collocation import GaussLegendre4, GaussLegendre6, RadauIIA3, RadauIIA5
from dxdt.diffeq.methods.implicit.dirk import SDIRK2, TRBDF2, ImplicitEuler, ImplicitMidpoint, Trapezoidal
from dxdt.diffeq.methods.implicit.kencarp import KenCarp3, KenCarp4, KenCarp5
from dxdt.diffeq.methods.implicit.kvaerno import Kvaerno3, Kvaerno4, Kvaerno5
from dxdt.diffeq.methods.implicit.newton import StageNewton
from dxdt.diffeq.methods.implicit.rosenbrock import Rodas5P
from dxdt.diffeq.methods.low_storage import LowStorage, LowStorage3, LowStorage4
from dxdt.diffeq.methods.near_reversible import EES25
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.reversible import (
    AsynchronousLeapfrog,
    McCallumFoster,
    ReversibleHeun,
    ReversibleSolver,
)
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.methods.step_doubling import HalfStep
from dxdt.diffeq.methods.stochastic import (
    EulerHeun,
    EulerMaruyama,
    Milstein,
    Stochastic,
    StochasticHeun,
    StochasticMidpoint,
)
from dxdt.diffeq.methods.stochastic_area import SRA1, SRIW1, ShARK, SPaRK
from dxdt.diffeq.methods.symplectic import (
    BlanesMoan4,
    BlanesMoan6,
    SemiImplicitEuler,
    Separable,
    StoermerVerlet,
    Symplectic,
    Yoshida4,
)
from dxdt.diffeq.methods.tableau import Tableau
from dxdt.diffeq.problem.affine import SemiLinear
from dxdt.diffeq.problem.conversion import Converted, to_ito, to_stratonovich
from dxdt.diffeq.problem.equation import ODE, SDE, Equation, Ito, StochasticEquation, Stratonovich
from dxdt.diffeq.problem.noise import Additive, Commutative, Diagonal, General, Scalar, Sum
from dxdt.diffeq.problem.split import SplitODE
from dxdt.diffeq.problem.status import Status
from dxdt.diffeq.progress import TextProgress
from dxdt.diffeq.solution import Solution, SolveError, Stats

__all__ = [
    "SDIRK2",
    "TRBDF2",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "Trapezoidal",
    "Kvaerno3",
    "Kvaerno4",
    "Kvaerno5",
    "KenCarp3",
    "KenCarp4",
    "KenCarp5",
    "GaussLegendre4",
    "GaussLegendre6",
    "RadauIIA3",
    "RadauIIA5",
    "Rodas5P",
    "StageNewton",
    "SplitODE",
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "Additive",
    "AsynchronousLeapfrog",
    "B1",
    "B2",
    "Backsolve",
    "BlanesMoan4",
    "BlanesMoan6",
    "Bosh3",
    "Checkpointed",
    "Clip",
    "Commutative",
    "Constant",
    "Controller",
    "Converted",
    "Corrector",
    "DataPrediction",
    "Decision",
    "Diagonal",
    "Direct",
    "Dopri5",
    "Dopri8",
    "EES25",
    "Equation",
    "Euler",
    "EulerHeun",
    "EulerMaruyama",
    "Event",
    "ExactWeight",
    "Exponential",
    "Facts",
    "General",
    "Gradient",
    "Grid",
    "HalfStep",
    "Heun",
    "I",
    "InLogSNR",
    "InRatio",
    "InTime",
    "Inside",
    "Ito",
    "LowStorage",
    "LowStorage3",
    "LowStorage4",
    "McCallumFoster",
    "Midpoint",
    "Milstein",
    "NoisePrediction",
    "Noisy",
    "ODE",
    "PI",
    "PID",
    "Preserving",
    "RK4",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "ReversibleSolver",
    "Revisit",
    "Rising",
    "RungeKutta",
    "SDE",
    "SPaRK",
    "SRA1",
    "SRIW1",
    "Save",
    "Scalar",
    "SemiImplicitEuler",
    "SemiLinear",
    "Separable",
    "ShARK",
    "Solution",
    "SolveError",
    "Solver",
    "Stats",
    "Status",
    "SteadyState",
    "Stochastic",
    "StochasticEquation",
    "StochasticHeun",
    "StochasticMidpoint",
    "StoermerVerlet",
    "Stratonovich",
    "Sum",
    "Symplectic",
    "Tableau",
    "TextProgress",
    "Tsit5",
    "Vern7",
    "Yoshida4",
    "compiling",
    "largest_step",
    "max_norm",
    "rms",
    "solve",
    "to_ito",
    "to_stratonovich",
]


def __getattr__(name: str) -> Any:
    """Names of version 0.1 that clashed with others."""
    if name == "Exact":
        warnings.warn(
            "dxdt.Exact is dxdt.ExactWeight now; the exact trace is dxdt.diffusion.Exact",
            DeprecationWarning,
            stacklevel=2,
        )
        return ExactWeight
    raise AttributeError(f"module 'dxdt.diffeq' has no attribute {name!r}")
