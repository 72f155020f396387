"""Traced loops replayed: one turn is compiled by torch and captured, and repeated until the loop ends.

What it is not suited to is told by ``Unsuited``.
"""

from dxdt.compiler.cuda.capture import Capture, Graphs, Repetition
from dxdt.compiler.cuda.devices import replayed, replays
from dxdt.compiler.cuda.replay import Recent, Replayed
from dxdt.compiler.cuda.split_loop import Unsuited, take_apart

__all__ = ["Capture", "Graphs", "Recent", "Repetition", "Replayed", "Unsuited", "replayed", "replays", "take_apart"]
