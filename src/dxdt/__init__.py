"""Learning with differential equations: one solver core for neural ODEs, SDEs and diffusion."""

from dxdt import solve as _room
from dxdt.models import regularise
from dxdt.paths import Brownian, Correlated, Increments, SpaceTime
from dxdt.solve import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["Brownian", "Correlated", "Increments", "SpaceTime", "__version__", "regularise"]
__all__ += _room.__all__
