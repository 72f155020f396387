"""Learning with differential equations: one solver core for neural ODEs, SDEs and diffusion."""

from dxdt.paths import Brownian, Correlated, Increments, SpaceTime
from dxdt.solve import *  # noqa: F403
from dxdt.solve import __all__ as _solve_names

__version__ = "0.1.0"

__all__ = [*_solve_names, "Brownian", "Correlated", "Increments", "SpaceTime", "__version__"]
