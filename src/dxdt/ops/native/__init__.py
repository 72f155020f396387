"""Traced loops as native code: one function of C++ for a whole solve, built in a fraction of a second.

What it is not written for is told by ``Unsupported``; torch's own compiler then takes its place.
"""

from dxdt.ops.native.build import Native, load
from dxdt.ops.native.program import Source, translate
from dxdt.ops.native.values import Unsupported

__all__ = ["Native", "Source", "Unsupported", "load", "translate"]
