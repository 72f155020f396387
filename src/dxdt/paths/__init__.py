"""Paths: anything defined over an interval."""

from dxdt.paths.brownian import Brownian
from dxdt.paths.driver import Correlated, Driver, Increment, Levy, SpaceTime
from dxdt.paths.increments import Increments
from dxdt.paths.path import Path

__all__ = [
    "Brownian",
    "Correlated",
    "Driver",
    "Increment",
    "Increments",
    "Levy",
    "Path",
    "SpaceTime",
]
