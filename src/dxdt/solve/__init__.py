"""Solving differential equations: dy = f(t, y) dt + g(t, y) dX(t)."""

from dxdt.solve.backsolve import Backsolve
from dxdt.solve.checkpointed import Checkpointed
from dxdt.solve.compiling import compiling
from dxdt.solve.controller import PI, PID, Clip, Constant, Controller, Grid, I, max_norm, rms
from dxdt.solve.conversion import Converted, to_ito, to_stratonovich
from dxdt.solve.equation import ODE, SDE, Ito, Stratonovich
from dxdt.solve.event import Event, SteadyState
from dxdt.solve.explicit import (
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
from dxdt.solve.exponential import Exponential
from dxdt.solve.exponential_options import Corrector, Inside, Preserving, Rising
from dxdt.solve.exponential_weights import (
    B1,
    B2,
    DataPrediction,
    Exact,
    InLogSNR,
    InRatio,
    InTime,
    NoisePrediction,
    largest_step,
)
from dxdt.solve.gradient import Direct, Gradient
from dxdt.solve.high_order import Dopri8, Vern7
from dxdt.solve.low_storage import LowStorage, LowStorage3, LowStorage4
from dxdt.solve.multistep import AdamsBashforth, AdamsBashforthMoulton
from dxdt.solve.near_reversible import EES25
from dxdt.solve.noise import Additive, Commutative, Diagonal, General, Scalar, Sum
from dxdt.solve.noisy import Noisy
from dxdt.solve.progress import TextProgress
from dxdt.solve.reversible import (
    AsynchronousLeapfrog,
    McCallumFoster,
    ReversibleHeun,
    ReversibleSolver,
)
from dxdt.solve.reversible_gradient import Reversible
from dxdt.solve.revisit import Revisit
from dxdt.solve.save import Save
from dxdt.solve.semilinear import SemiLinear
from dxdt.solve.solution import Solution, SolveError, Stats, Status
from dxdt.solve.solve import solve
from dxdt.solve.solver import Solver
from dxdt.solve.stochastic import (
    EulerHeun,
    EulerMaruyama,
    Milstein,
    Stochastic,
    StochasticHeun,
    StochasticMidpoint,
)
from dxdt.solve.stochastic_area import SRA1, SRIW1, ShARK, SPaRK
from dxdt.solve.symplectic import (
    BlanesMoan4,
    BlanesMoan6,
    SemiImplicitEuler,
    Separable,
    StoermerVerlet,
    Symplectic,
    Yoshida4,
)
from dxdt.solve.tableau import Tableau
from dxdt.solve.wrappers import HalfStep

__all__ = [
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
    "Diagonal",
    "Direct",
    "Dopri5",
    "Dopri8",
    "EES25",
    "Euler",
    "EulerHeun",
    "EulerMaruyama",
    "Event",
    "Exact",
    "Exponential",
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
