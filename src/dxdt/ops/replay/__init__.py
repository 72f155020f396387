"""Traced loops replayed: one turn is compiled by torch and captured, and repeated until the loop ends.

What it is not suited to is told by ``Unsuited``.
"""

from dxdt.ops.replay.backend import replayed, replays
from dxdt.ops.replay.capture import Capture, Graphs, Repetition
from dxdt.ops.replay.parts import Unsuited, take_apart
from dxdt.ops.replay.program import Recent, Replayed

__all__ = ["Capture", "Graphs", "Recent", "Repetition", "Replayed", "Unsuited", "replayed", "replays", "take_apart"]
