"""Counter-based random numbers: a draw is a pure function of (seed, row, node, component).

The generator is Philox-4x32-10 written in int64 tensor operations, so the integers are the same eager,
compiled and on every device, whatever the batch. One block gives four words, components 4b .. 4b + 3.
Normals come from pairs of words by the polar identity of Box and Muller. Logarithm and sine are polynomials
over correctly rounded operations: library functions differ between vector widths and between executors,
these do not, so normals too are bitwise equal for every size and on every CPU executor.

Not covered: cryptography; a tail beyond 6.7 standard deviations (words have 32 bits).

References: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405; Box, Muller, "A note on the generation of random normal deviates", 1958.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Integer: TypeAlias = int | Int[Tensor, "*#shape"]
Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_ROUNDS = 10
# The published multipliers less 2**32: products of words then stay inside int64, where overflow would be
# undefined behaviour in compiled code, and the high word is the shifted product plus the word itself.
_MULTIPLIER_0 = 0xD2511F53 - (1 << 32)
_MULTIPLIER_1 = 0xCD9E8D57 - (1 << 32)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85

# 2 log(m) = s P(s^2), s = (m - 1) / (m + 1), for m in [sqrt(1/2), sqrt(2)]: error 1e-13.
_LOG = (
    3.99999999999989438,
    1.33333333359158504,
    0.799999897836647655,
    0.571443322917514501,
    0.443484998201549796,
    0.392161912795061055,
)
# sin(pi q / 4) = q P(q^2) for q in [-1, 1]: error 4e-15.
_SINE = (
    0.785398163397444947,
    -0.0807455121880386338,
    0.00249039456736706361,
    -0.0000365761921207672526,
    3.13338408290929997e-7,
    -1.73651672885975781e-9,
)
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_TWO_LOG_TWO = 2 * math.log(2)


def key(seed: Integer) -> tuple[Integer, Integer]:
    """Split a seed into the two 32-bit key words; a Python int counts modulo 2**64."""
    return seed & _MASK, (seed >> 32) & _MASK


def seed_tensor(seed: int, device: torch.device | None = None) -> Int[Tensor, ""]:
    """Hold a seed in a 0-d int64 tensor, so that compiled code does not recompile for a new one."""
    low = seed & 0xFFFFFFFFFFFFFFFF
    return torch.tensor(low - (1 << 64) if low >> 63 else low, dtype=torch.int64, device=device)


def philox(counter: tuple[Integer, Integer, Integer, Integer], keys: tuple[Integer, Integer]) -> Words:
    """Encrypt a counter of four 32-bit words under two key words: Philox-4x32-10.

    One round: (c0, c1, c2, c3) <- (hi(B c2) ^ c1 ^ k0, lo(B c2), hi(A c0) ^ c3 ^ k1, lo(A c0)), then the keys
    grow by the Weyl constants. Arguments broadcast; only their low 32 bits count; at least c0 or c2 is a tensor.
    """
    # Masking also keeps the compiler from folding `arange * multiplier` into its index arithmetic, which
    # overflows 32 bits in vectorised code (torch 2.13).
    c0, c1, c2, c3 = (c & _MASK for c in counter)
    k0, k1 = keys
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = ((p1 >> 32) + c2) ^ (c1 ^ k0), p1 & _MASK, ((p0 >> 32) + c0) ^ (c3 ^ k1), p0 & _MASK
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3  # type: ignore[return-value]


def _block(seed: Integer, row: Integer, node: Integer, block: Integer) -> Words:
    if not any(isinstance(c, Tensor) for c in (row, node, block)):
        block = torch.tensor(block)
    return philox((block, row, node, node >> 32), key(seed))


def _run(seed: Integer, row: Integer, node: Integer, size: int, device: torch.device | None) -> Words:
    """Blocks 0 .. ceil(size / 4) - 1 along a new last axis."""
    row, node = (c.unsqueeze(-1) if isinstance(c, Tensor) else c for c in (row, node))
    if device is None:
        device = next((c.device for c in (row, node) if isinstance(c, Tensor)), None)
    return _block(seed, row, node, torch.arange((size + 3) // 4, device=device))


def _horner(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = z * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        result = result * z + c
    return result


def _two_log(w: Tensor) -> Tensor:
    """-2 log((w + 1/2) / 2**32) in float64, from the exponent and the mantissa."""
    bits = (w + 0.5 if w.dtype == torch.float64 else w.to(torch.float64) + 0.5).view(torch.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> 52
    m = (bits - (exponent << 52)).view(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    return (32 - exponent).to(torch.float64) * _TWO_LOG_TWO - s * _horner(s * s, _LOG)


def _root(x: Tensor) -> Tensor:
    """sqrt(x) for x > 0: `torch.sqrt` on the CPU is not correctly rounded and differs from compiled code."""
    return x * torch.rsqrt(x)


def _pair(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent float64 normals r (cos a, sin a): a in (-pi/2, pi/2) from the word w1, whose low bit signs r."""
    r = _root(_two_log(w0)) * (1 - 2 * (w1 & 1)).to(torch.float64)
    q = w1.to(torch.float64) * 2.0**-31 - 1.0
    half = q * _horner(q * q, _SINE)
    square = half * half
    return r * (1.0 - 2.0 * square), r * (2.0 * half * _root(1.0 - square))


def bits(seed: Integer, row: Integer, node: Integer, component: Integer) -> Int[Tensor, "*shape"]:
    """Draw uniform 32-bit words, as int64 in [0, 2**32), of the broadcast shape of the arguments."""
    w0, w1, w2, w3 = _block(seed, row, node, component >> 2)
    lane = component & 3
    if isinstance(lane, int):
        return (w0, w1, w2, w3)[lane]
    return torch.where(lane < 2, torch.where(lane == 0, w0, w1), torch.where(lane == 2, w2, w3))


def normal(
    seed: Integer, row: Integer, node: Integer, component: Integer, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """Draw standard normals of the broadcast shape of the arguments.

    float32 values are the float64 ones rounded. Runs of components cost a quarter through `normals`.
    """
    w0, w1, w2, w3 = _block(seed, row, node, component >> 2)
    if isinstance(component, int):
        return _pair(*((w2, w3) if component & 2 else (w0, w1)))[component & 1].to(dtype)
    upper = (component & 2) > 0
    z0, z1 = _pair(torch.where(upper, w2, w0), torch.where(upper, w3, w1))
    return torch.where((component & 1) > 0, z1, z0).to(dtype)


def normals(
    seed: Integer,
    row: Integer,
    node: Integer,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "*shape {size}"]:
    """Draw the standard normals of components 0 .. size - 1 along a new last axis; all four words are used."""
    w0, w1, w2, w3 = _run(seed, row, node, size, device)
    if torch.compiler.is_compiling():
        z = torch.stack((*_pair(w0, w1), *_pair(w2, w3)), -1)
    else:
        z = torch.stack(_pair(torch.stack((w0, w2), -1), torch.stack((w1, w3), -1)), -1).flatten(-2)
    return z.flatten(-2)[..., :size].to(dtype)


def uniform(
    seed: Integer, row: Integer, node: Integer, component: Integer, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """Draw uniforms on the open interval (0, 1), of the broadcast shape of the arguments.

    The midpoint of one of 2**32 cells in float64, of 2**23 in float32, where both ends stay out of reach.
    """
    w = bits(seed, row, node, component)
    if dtype == torch.float64:
        return (w.to(dtype) + 0.5) * 2.0**-32
    return (((w >> 9).to(torch.float32) + 0.5) * 2.0**-23).to(dtype)


def rademacher(
    seed: Integer, row: Integer, node: Integer, component: Integer, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """Draw signs -1 or +1 with equal probability, of the broadcast shape of the arguments."""
    return ((bits(seed, row, node, component) >> 31) * 2 - 1).to(dtype)
