"""The random numbers of chains: functions of seed, chain, step and stream alone.

A chain's numbers do not depend on how many others run beside it, and a run that is taken up again at step k
draws what it would have drawn: nothing but the number of the step has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dxdt.ops.random import normals, rademacher, uniform

__all__ = ["Draws"]

_STREAM = 1 << 40
_EVERYONE = -1
_MASK = (1 << 64) - 1


def _mixed(seed: int, part: int) -> int:
    """A seed of its own for each part: two rounds of splitmix64 (Steele, Lea, Flood, 2014)."""
    z = (seed + (part + 1) * 0x9E3779B97F4A7C15) & _MASK
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of one step of all chains.

    Attributes:
        seed: names the run, or the part of a composition.
        rows: numbers of the chains (chains,), int64.
        step: number of the step.
    """

    seed: int
    rows: Tensor
    step: int = 0

    @classmethod
    def of(cls, seed: int, x: Tensor, first: int = 0) -> Draws:
        """Return the numbers of the chains at `x`, the first of which has number `first`."""
        return cls(seed, torch.arange(first, first + len(x), device=x.device))

    def at(self, step: int) -> Draws:
        """Return those of another step."""
        return replace(self, step=step)

    def part(self, number: int) -> Draws:
        """Return those of a part of a composition, independent of all other parts'."""
        return replace(self, seed=_mixed(self.seed, number))

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Return standard normals shaped like `like` (chains, *shape), in its dtype."""
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        z = normals(self.seed, self.rows, self.step + 2 * stream * _STREAM, like[0].numel(), dtype=dtype)
        return z.reshape(like.shape).to(like)

    def sign(self, like: Tensor, stream: int = 0) -> Tensor:
        """Return signs -1 or +1 shaped like `like` (chains, *shape), in its dtype."""
        entry = torch.arange(like[0].numel(), device=like.device)
        node = self.step + 2 * stream * _STREAM
        return torch.as_tensor(rademacher(self.seed, self.rows[:, None], node, entry)).reshape(like.shape).to(like)

    def uniform(self, stream: int = 0) -> Tensor:
        """Return uniforms in (0, 1), one a chain, float64."""
        node = self.step + (2 * stream + 1) * _STREAM
        return uniform(self.seed, self.rows, node, 0, dtype=torch.float64)

    def shared(self, stream: int = 0) -> float:
        """Return one uniform number for all chains, whatever their numbers."""
        node = self.step + (2 * stream + 1) * _STREAM
        return float(uniform(self.seed, _EVERYONE, node, 0, dtype=torch.float64))

    def named(self, stream: int = 0) -> int:
        """Return a seed of this step for what draws by itself, such as the path of a solve."""
        return _mixed(_mixed(self.seed, self.step + 2 * _STREAM), stream)
