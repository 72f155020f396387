"""Traced loops as native code: one function of C++ for a whole solve, built in a fraction of a second.

What it is not written for is told by ``Unsupported``; torch's own compiler then takes its place.
"""

from dxdt.compiler.native.buffers import Unsupported
from dxdt.compiler.native.build import Native, load
from dxdt.compiler.native.program import Source, translate

__all__ = ["Native", "Source", "Unsupported", "load", "translate"]
