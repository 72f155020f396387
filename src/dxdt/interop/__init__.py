"""Checkpoints of other libraries, and our own, as denoisers; nothing in a file is ever executed."""

from dxdt.interop.checkpoint import load_own, save
from dxdt.interop.diffusers_folder import load_diffusers
from dxdt.interop.diffusers_schedule import Training, training_of
from dxdt.interop.edm import load_edm
from dxdt.interop.load import load
from dxdt.interop.net import MeanPart
from dxdt.interop.scheduler import Scheduler, SchedulerStep
from dxdt.interop.score_sde import Descending, load_score_sde
from dxdt.interop.wrap import wrap

__all__ = [
    "Descending",
    "MeanPart",
    "Scheduler",
    "SchedulerStep",
    "Training",
    "load",
    "load_diffusers",
    "load_edm",
    "load_own",
    "load_score_sde",
    "save",
    "training_of",
    "wrap",
]
