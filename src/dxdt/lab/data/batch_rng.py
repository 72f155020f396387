"""What is random in a step of training, named by the seed, the step and the place in the batch.

Nothing is carried from step to step, so training resumes exactly; and nothing depends on how many
processes share the batch, so their losses are those of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dxdt.ops.random import bits, key, normals, philox, uniform

_MASK = (1 << 64) - 1
_ORDER = 0x4F52444552
_GENERATOR = 0x47454E


def stream(seed: int, name: str) -> int:
    """Return the seed of one stream of draws, such as "noise", of a run's seed."""
    value = seed & _MASK
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3 + 0x9E3779B97F4A7C15) & _MASK
    return value


@final
@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, for some rows of its batch.

    Attributes:
        seed: names the run.
        step: counted from 0.
        rows: places in the whole batch of the samples at hand, int64.
        batch: samples in the whole batch.
    """

    seed: int
    step: int
    rows: Int[Tensor, " rows"]
    batch: int

    def uniform(self, name: str, *shape: int) -> Float[Tensor, "rows *shape"]:
        """Return uniforms on (0, 1), float32, one block of `shape` for each row."""
        size = torch.Size(shape).numel()
        rows = self.rows[:, None].cpu().numpy()
        block = np.arange(-(-size // 4))
        # The four words of a block at once; each gives the midpoint of one of 2^23 cells.
        words = philox((block, rows, self.step, self.step >> 32), key(stream(self.seed, name)))
        cells = np.stack(np.broadcast_arrays(*words), -1).reshape(len(rows), -1)[:, :size] >> 9
        u = ((cells + 0.5) * 2.0**-23).astype(np.float32)
        return torch.from_numpy(u).to(self.rows.device).reshape(len(rows), *shape)

    def normal(self, name: str, shape: Sequence[int]) -> Float[Tensor, "rows *shape"]:
        """Return standard normals, float32, one block of `shape` for each row."""
        z = normals(stream(self.seed, name), self.rows, self.step, torch.Size(shape).numel())
        return torch.as_tensor(z).reshape(len(self.rows), *shape)

    def even(self, name: str) -> Float[Tensor, " rows"]:
        """Return float64 numbers in [0, 1), each uniform, spread evenly over the whole batch."""
        seed = stream(self.seed, name)
        place = np.argsort(bits(seed, np.arange(self.batch), self.step, 1), kind="stable")
        start = float(uniform(seed, np.zeros(1, np.int64), self.step, 0, dtype=torch.float64)[0])
        grid = torch.from_numpy((start + place / self.batch) % 1.0)
        return grid.to(self.rows.device)[self.rows]

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU for draws that need one: the same for every process."""
        return torch.Generator().manual_seed(stream(self.seed ^ _GENERATOR, str(self.step)) >> 1)

    def split(self, parts: int) -> list[Draws]:
        """Return the draws of equal parts of the rows, one after another."""
        return [Draws(self.seed, self.step, rows, self.batch) for rows in self.rows.chunk(parts)]


@final
@dataclass(frozen=True)
class Order:
    """The order in which `count` data are shown: every epoch is a permutation named by (seed, epoch).

    Args:
        count: how many data there are.
        seed: names the order.
    """

    count: int
    seed: int

    def at(self, positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return which data stand at `positions` of the endless sequence of epochs."""
        place = positions.cpu().numpy()
        epoch = place // self.count
        out = np.empty_like(place)
        for e in np.unique(epoch):
            chosen = epoch == e
            out[chosen] = _permutation(self.count, self.seed, int(e))[place[chosen] % self.count]
        return torch.from_numpy(out)

    def rows(self, draws: Draws) -> Int[Tensor, " rows"]:
        """Return which data a step sees at the rows of `draws`."""
        return self.at(draws.step * draws.batch + draws.rows)


@lru_cache(maxsize=3)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    words = bits(stream(seed ^ _ORDER, "order"), np.arange(count), epoch, 0)
    return np.argsort(words, kind="stable")
