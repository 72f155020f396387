"""Learning with differential equations: one solver core for neural ODEs, SDEs and diffusion."""

import importlib
from types import ModuleType

from dxdt import diffeq as _room
from dxdt.diffeq import *  # noqa: F403
from dxdt.models import regularise
from dxdt.moved import install as _keep_old_names
from dxdt.paths import Brownian, Correlated, Increments, SpaceTime

__version__ = "0.1.0"

__all__ = ["Brownian", "Correlated", "Increments", "SpaceTime", "__version__", "regularise"]
__all__ += _room.__all__

_keep_old_names()

_LATER = ("compat", "diffeq", "diffusion", "implicit", "interop", "lab", "mcmc", "models", "nn", "paths")


def __getattr__(name: str) -> ModuleType:
    """Import a room when it is first named, so that `import dxdt` stays quick."""
    if name in _LATER:
        return importlib.import_module(f"dxdt.{name}")
    raise AttributeError(f"module 'dxdt' has no attribute {name!r}; the rooms are {', '.join(_LATER)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
