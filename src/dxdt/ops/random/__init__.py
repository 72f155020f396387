"""Counter-based random numbers: the generator, its constants, and native code for it."""

from dxdt.ops.random.generator import *  # noqa: F403
