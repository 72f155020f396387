"""Paths: anything defined over an interval."""

from dxdt.paths.brownian import Brownian
from dxdt.paths.driver import Correlated, Driver, Increment, Levy, SpaceTime
from dxdt.paths.increments import Increments
from dxdt.paths.levy import Davie, Foster, levy_area
from dxdt.paths.path import Path
from dxdt.paths.splines import Piecewise, fill, hermite, linear, natural, rectilinear

__all__ = [
    "Brownian",
    "Correlated",
    "Davie",
    "Driver",
    "Foster",
    "Increment",
    "Increments",
    "Levy",
    "Path",
    "Piecewise",
    "SpaceTime",
    "fill",
    "hermite",
    "levy_area",
    "linear",
    "natural",
    "rectilinear",
]
