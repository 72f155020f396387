"""Learning with differential equations: one solver core for neural ODEs, SDEs and diffusion."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dxdt.moved import install as _keep_old_names

if TYPE_CHECKING:
    from dxdt import diffeq as _room
    from dxdt.diffeq import *  # noqa: F403
    from dxdt.models import NeuralODE, NeuralSDE, regularise
    from dxdt.paths import Brownian, Correlated, Increments, SpaceTime

    __all__ = ["Brownian", "Correlated", "Increments", "NeuralODE", "NeuralSDE", "SpaceTime"]
    __all__ += ["__version__", "regularise"]
    __all__ += _room.__all__

__version__ = "0.1.0"

_keep_old_names()

_ROOMS = ("compat", "diffeq", "diffusion", "implicit", "interop", "lab", "mcmc", "models", "nn", "paths")
_FORMER = ("Exact",)
_FROM_MODELS = ("NeuralODE", "NeuralSDE")
_FROM_PATHS = ("Brownian", "Correlated", "Increments", "SpaceTime")


def __getattr__(name: str) -> Any:
    """Import when a name is first asked for, so that the command line answers before torch is loaded."""
    if name in _ROOMS:
        return importlib.import_module(f"dxdt.{name}")
    # What Python itself asks modules for (`__path__`, `__wrapped__`) is no reason to import anything.
    if name == "__all__" or not name.startswith("_"):
        everyday = _everyday()
        if name in everyday:
            # An old module of the same name, imported before, stays (see dxdt.moved).
            globals().update({k: v for k, v in everyday.items() if k not in globals()})
            return everyday[name]
        if name in _FORMER:
            return getattr(importlib.import_module("dxdt.diffeq"), name)
    raise AttributeError(f"module 'dxdt' has no attribute {name!r}; the rooms are {', '.join(_ROOMS)}")


def _everyday() -> dict[str, Any]:
    """The names of this door, and what each stands for."""
    room, paths = (importlib.import_module(f"dxdt.{name}") for name in ("diffeq", "paths"))
    found = {name: getattr(room, name) for name in room.__all__}
    found.update({name: getattr(paths, name) for name in _FROM_PATHS})
    models = importlib.import_module("dxdt.models")
    found.update({name: getattr(models, name) for name in _FROM_MODELS})
    found["regularise"] = importlib.import_module("dxdt.models.regularise")
    found["__all__"] = sorted([*found, "__version__"])
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_everyday()})
