"""Moving averages of weights, and averages of any width afterwards.

Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), section 3 and
appendix C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dxdt.lab.training.averaging import Schedule, exponent


@final
class Averages:
    """Averages of a module's parameters; buffers are copied as they are.

    Args:
        module: what is averaged; its parameters may be sharded.
        schedule: how.

    Attributes:
        tensors: for each average, its parameters by name.
    """

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        self.schedule = schedule
        count = len(schedule.decays(1, 1))
        self.tensors = [{n: p.detach().clone() for n, p in module.named_parameters()} for _ in range(count)]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, batch: int) -> None:
        """Move the averages after step 1, 2, ... of `batch` samples."""
        weights = [p.detach() for p in module.parameters()]
        for average, beta in zip(self.tensors, self.schedule.decays(step, batch), strict=True):
            torch._foreach_lerp_(list(average.values()), weights, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]

    def fill(self, module: nn.Module, source: nn.Module, index: int = 0) -> nn.Module:
        """Write an average, and the buffers of `source`, into `module`, and return that.

        Every process must call this where parameters are sharded.
        """
        buffers = {n: whole(b) for n, b in source.named_buffers()}
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(whole(self.tensors[index][name]))
            for name, b in module.named_buffers():
                b.copy_(buffers[name])
        return module

    def restore(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Take back an average from whole tensors."""
        with torch.no_grad():
            for name, mine in self.tensors[index].items():
                scatter(mine, tensors[name])


def whole(x: Tensor) -> Tensor:
    """Return a tensor whose parts may lie on several processes as one."""
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def scatter(mine: Tensor, value: Tensor) -> None:
    """Write `value` into a tensor whose parts may lie on several processes."""
    if isinstance(mine, DTensor):
        value = distribute_tensor(value.to(mine.device), mine.device_mesh, mine.placements)
    mine.copy_(value)


@final
@dataclass(frozen=True)
class Snapshot:
    """A power-function average as it was at some step.

    Attributes:
        width: its relative standard deviation.
        step: when it was taken, counted from 1.
        tensors: by name.
    """

    width: float
    step: int
    tensors: Mapping[str, Tensor]


def coefficients(taken: Sequence[tuple[float, int]], width: float, step: int) -> np.ndarray:
    """Return the weights of snapshots (width, step) whose sum is nearest to another average.

    Densities p(k) = (g + 1) k^g / n^(g + 1) on [0, n] have inner products

        <p_i, p_j> = (g_i + 1)(g_j + 1) / (g_i + g_j + 1) n_i^g_j / n_j^(g_j + 1),    n_i <= n_j,

    and the weights solve the system of their Gram matrix.

    Source: Karras et al. (2024), appendix C.3, algorithm 3.

    Raises:
        ValueError: there is no snapshot, or none as late as `step`.
    """
    if not taken or max(n for _, n in taken) < step:
        raise ValueError(
            f"an average at step {step} needs snapshots up to that step, and there are "
            f"{len(taken)} up to step {max((n for _, n in taken), default=0)}; choose an earlier step."
        )
    g = np.array([exponent(w) for w, _ in taken])
    n = np.array([float(k) for _, k in taken])
    gram = _inner(g[:, None], n[:, None], g[None], n[None])
    aim = _inner(g, n, np.array(exponent(width)), np.array(float(step)))
    # Scaled to unit diagonal, the system is nearly singular only where snapshots nearly coincide.
    scale = 1 / np.sqrt(np.diag(gram))
    solution = np.linalg.lstsq(gram * np.outer(scale, scale), aim * scale, rcond=None)[0]
    return solution * scale


def _inner(g: np.ndarray, n: np.ndarray, h: np.ndarray, m: np.ndarray) -> np.ndarray:
    first = n <= m
    low, high = np.where(first, n, m), np.where(first, m, n)
    late = np.where(first, h, g)
    return (g + 1) * (h + 1) / (g + h + 1) * (low / high) ** late / high


def reconstruct(snapshots: Iterable[Snapshot], width: float, step: int | None = None) -> dict[str, Tensor]:
    """Return the power-function average of any width from snapshots of others.

    Args:
        snapshots: of at least one width, at several steps; better of two.
        width: wanted.
        step: wanted; that of the last snapshot by default.

    Raises:
        ValueError: there is no snapshot as late as `step`, or no average has this width.
    """
    found = list(snapshots)
    last = max((s.step for s in found), default=0) if step is None else step
    weights = coefficients([(s.width, s.step) for s in found], width, last)
    names = found[0].tensors.keys()
    return {
        name: sum(float(c) * s.tensors[name].double() for c, s in zip(weights, found, strict=True)).to(  # pyright: ignore
            found[0].tensors[name].dtype
        )
        for name in names
    }
