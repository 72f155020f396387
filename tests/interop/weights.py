"""Weights, images and probes that anybody can make again: counter-based normals named by a key."""

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from dxdt.ops.random import normals

SEED = 20240229


def numbers(name: str, size: int) -> Tensor:
    """Standard normals that belong to `name`, in float32."""
    rows = torch.arange(1)
    return torch.as_tensor(normals(SEED, rows, zlib.crc32(name.encode()), size, dtype=torch.float32)).reshape(-1)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor for the parameter `name`: no layer is at rest, and activations keep their size.

    Scales of normalisations are near one, other vectors small; matrices and kernels have variance 1 / fan-in. The
    frequencies of Fourier features have the deviation that networks are made with.
    """
    small = math.prod(shape) < 100_000
    return _kept(name, shape).clone() if small else _made(name, shape)


def _made(name: str, shape: tuple[int, ...]) -> Tensor:
    z = numbers(name, math.prod(shape)).reshape(shape)
    if not shape:
        return 1 + 0.1 * z
    if name.endswith((".W", "freqs", "time_proj.weight")) and len(shape) == 1:
        return 16 * z
    if len(shape) == 1:
        return 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return z / math.sqrt(math.prod(shape[1:]))


_kept = lru_cache(maxsize=4000)(_made)  # many tests write the same small file


def weights(keys: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A tensor for every key."""
    return {name: weight(name, tuple(shape)) for name, shape in keys.items()}


def images(shape: tuple[int, ...]) -> Tensor:
    """A batch of images."""
    return numbers(f"images {shape}", math.prod(shape)).reshape(shape)


def probe(y: Tensor, count: int = 48) -> list[float]:
    """Evenly spread entries of `y`, and its mean square."""
    flat = y.detach().double().reshape(-1)
    place = torch.linspace(0, len(flat) - 1, count).round().long()
    return [*flat[place].tolist(), flat.square().mean().item()]
