"""Two-sample tests by the energy distance, with the permutations of the pool as reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.models import energy_distance


@final
@dataclass(frozen=True)
class Verdict:
    """What a two-sample test found.

    Attributes:
        distance: energy distance of the samples.
        limit: what 95 % of random splits of the pool stay below.
        p: share of random splits, this one counted, that lie at least as far apart.
    """

    distance: float
    limit: float
    p: float


def two_sample(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, splits: int = 999, seed: int = 0) -> Verdict:
    """Test whether two samples of independent points have one law; the level of `p` is exact.

    Args:
        x, y: the samples, in units that make their coordinates comparable.
        splits: random splits of the pool.
        seed: names them.

    Source: Szekely and Rizzo, "Testing for equal distributions in high dimension" (2004).
    """
    n, m = len(x), len(y)
    distance = float(energy_distance(x, y))
    pool = torch.cat((x, y)).double()
    apart = torch.cdist(pool, pool).numpy()
    rng = np.random.default_rng(seed)
    first = np.argsort(rng.random((splits, n + m)), axis=1) < n
    a, b = first.astype(np.float64), (~first).astype(np.float64)
    to_a, to_b = a @ apart, b @ apart
    within = (to_a * a).sum(1) / (n * (n - 1)) + (to_b * b).sum(1) / (m * (m - 1))
    null = 2 * (to_a * b).sum(1) / (n * m) - within
    return Verdict(distance, float(np.quantile(null, 0.95)), float((1 + (null >= distance).sum()) / (1 + splits)))


def compare_paths(real: Tensor, model: Tensor) -> dict[str, Verdict]:
    """Test whole paths (paths, times, features), and their increments, each in units of its deviation."""
    found: dict[str, Verdict] = {}
    for name, a, b in (("whole paths", real, model), ("their increments", real.diff(dim=1), model.diff(dim=1))):
        scale = a.flatten(0, 1).std(0)
        found[name] = two_sample((a / scale).flatten(1), (b / scale).flatten(1))
    return found
