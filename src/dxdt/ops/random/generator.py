"""Counter-based random numbers: a draw is a pure function of (seed, row, node, component).

The generator is Philox-4x32-10 written in int64 operations, so the integers are the same eager,
compiled and on every device, whatever the batch. One block gives four words, components
4b .. 4b + 3. Normals come from pairs of words by the polar identity of Box and Muller. Logarithm
and sine are polynomials over correctly rounded operations: library functions differ between
vector widths and between executors, these do not, so normals too are bitwise equal for every
size and for every executor on the CPU.

Arrays may be numpy arrays or tensors, and the answer is of the same kind. Eager runs of normals on
the CPU are drawn by native code (``ops.random.native``) where there is a C++ compiler; other eager
draws there run in numpy, where an operation costs a quarter of a tensor dispatch.

Not covered: cryptography; a tail beyond 6.7 standard deviations (words have 32 bits).

References: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405; Box, Muller, "A note on the generation of random normal
deviates", Ann. Math. Statist. 1958, https://doi.org/10.1214/aoms/1177706645.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.random.constants import LOG, MULTIPLIERS, ROUNDS, SINE, SQRT_HALF_BITS, TWO_LOG_TWO, WEYL
from dxdt.ops.random.native import generator

__all__ = [
    "Integers",
    "bits",
    "key",
    "normal",
    "normals",
    "philox",
    "rademacher",
    "seed_tensor",
    "uniform",
]

Integers: TypeAlias = Any
"""An int, or an int64 numpy array or tensor."""
_Array: TypeAlias = Any
_Words: TypeAlias = tuple[_Array, _Array, _Array, _Array]

_MASK = 0xFFFFFFFF
# The published multipliers less 2**32: products of words then stay inside int64, where overflow
# would be undefined behaviour in compiled code, and the high word is the shifted product plus the
# word itself.
_MULTIPLIER_0, _MULTIPLIER_1 = (m - (1 << 32) for m in MULTIPLIERS)
_WEYL_0, _WEYL_1 = WEYL
# Below, native code is not built for a draw.
_FEW = 32
_BLOCKS_IN_CACHE = 8192


def key(seed: Integers) -> tuple[Integers, Integers]:
    """Split a seed into the two 32-bit key words; a Python int counts modulo 2**64."""
    return seed & _MASK, (seed >> 32) & _MASK


def seed_tensor(seed: int, device: torch.device | str | None = None) -> Tensor:
    """Hold a seed in a 0-d int64 tensor, so that a new one does not recompile compiled code."""
    low = seed & 0xFFFFFFFFFFFFFFFF
    return torch.tensor(low - (1 << 64) if low >> 63 else low, dtype=torch.int64, device=device)


def philox(counter: tuple[Integers, Integers, Integers, Integers], keys: tuple[Integers, Integers]) -> _Words:
    """Encrypt a counter of four 32-bit words under two key words: Philox-4x32-10.

    One round: (c0, c1, c2, c3) <- (hi(B c2) ^ c1 ^ k0, lo(B c2), hi(A c0) ^ c3 ^ k1, lo(A c0)),
    then the keys grow by the Weyl constants. Arguments broadcast; their low 32 bits count.
    """
    # Masking also keeps the compiler from folding `arange * multiplier` into its index arithmetic,
    # which overflows 32 bits in vectorised code (torch 2.13).
    c0, c1, c2, c3 = (c & _MASK for c in counter)
    k0, k1 = keys
    for _ in range(ROUNDS):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) + c2) ^ (c1 ^ k0),
            p1 & _MASK,
            ((p0 >> 32) + c0) ^ (c3 ^ k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def _real(x: _Array) -> _Array:
    return x.to(torch.float64) if isinstance(x, Tensor) else np.asarray(x, np.float64)


def _cast_bits(x: _Array, real: bool) -> _Array:
    if isinstance(x, Tensor):
        return x.view(torch.float64 if real else torch.int64)
    return x.view(np.float64 if real else np.int64)


def _root(x: _Array) -> _Array:
    """sqrt(x) for x > 0: eager `torch.sqrt` on the CPU is not correctly rounded, compiled is."""
    return x * (torch.rsqrt(x) if isinstance(x, Tensor) else 1.0 / np.sqrt(x))


def _horner(z: _Array, coefficients: tuple[float, ...]) -> _Array:
    result = z * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        result = result * z + c
    return result


def _minus_two_log(w: _Array) -> _Array:
    """-2 log((w + 1/2) / 2**32) in float64, from the exponent and the mantissa."""
    pattern = _cast_bits(_real(w) + 0.5, real=False)
    exponent = (pattern - SQRT_HALF_BITS) >> 52
    m = _cast_bits(pattern - (exponent << 52), real=True)
    s = (m - 1.0) / (m + 1.0)
    return _real(32 - exponent) * TWO_LOG_TWO - s * _horner(s * s, LOG)


def _pair(w0: _Array, w1: _Array) -> tuple[_Array, _Array]:
    """Two independent float64 normals r (cos a, sin a).

    The word w1 gives a in (-pi/2, pi/2), and by its low bit the sign of r.
    """
    r = _root(_minus_two_log(w0)) * _real(1 - 2 * (w1 & 1))
    q = _real(w1) * 2.0**-31 - 1.0
    half = q * _horner(q * q, SINE)
    square = half * half
    return r * (1.0 - 2.0 * square), r * (2.0 * half * _root(1.0 - square))


def _block(seed: Integers, row: Integers, node: Integers, block: Integers) -> _Words:
    return philox((block, row, node, node >> 32), key(seed))


def _on_host(*arguments: Integers) -> bool:
    """Whether eager numpy serves: no tensor is traced or lives beside an accelerator."""
    return not torch.compiler.is_compiling() and all(a.device.type == "cpu" for a in arguments if isinstance(a, Tensor))


def _pointwise(draw: Callable[[_Words, Integers], _Array], arguments: tuple[Integers, ...]) -> _Array:
    """Apply `draw` to the words of the blocks that hold the asked components."""
    wants_numpy = any(isinstance(a, np.ndarray) for a in arguments)
    if _on_host(*arguments):
        arguments = tuple(a.numpy() if isinstance(a, Tensor) else np.asarray(a) for a in _signed(arguments))
    seed, row, node, component = arguments
    result = draw(_block(seed, row, node, component >> 2), component & 3)
    return result if wants_numpy or isinstance(result, Tensor) else torch.from_numpy(np.asarray(result))


def _signed(arguments: tuple[Integers, ...]) -> tuple[Integers, ...]:
    """Python ints brought into the range of int64, modulo 2**64."""
    return tuple(((a + (1 << 63)) % (1 << 64)) - (1 << 63) if isinstance(a, int) else a for a in arguments)


def _where(condition: _Array, a: _Array, b: _Array) -> _Array:
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else np.where(condition, a, b)


def _word(words: _Words, lane: Integers) -> _Array:
    w0, w1, w2, w3 = words
    if isinstance(lane, int):
        return words[lane]
    return _where(lane < 2, _where(lane == 0, w0, w1), _where(lane == 2, w2, w3))


def _normal(words: _Words, lane: Integers) -> _Array:
    w0, w1, w2, w3 = words
    if isinstance(lane, int):
        return _pair(*((w2, w3) if lane & 2 else (w0, w1)))[lane & 1]
    z0, z1 = _pair(_where(lane > 1, w2, w0), _where(lane > 1, w3, w1))
    return _where((lane & 1) > 0, z1, z0)


def _cast(x: _Array, dtype: torch.dtype) -> _Array:
    if isinstance(x, Tensor):
        return x.to(dtype)
    return x if dtype == torch.float64 else x.astype(np.float32)


def bits(seed: Integers, row: Integers, node: Integers, component: Integers) -> _Array:
    """Draw uniform words, int64 in [0, 2**32), of the broadcast shape of the arguments."""
    return _pointwise(_word, (seed, row, node, component))


def normal(
    seed: Integers,
    row: Integers,
    node: Integers,
    component: Integers,
    *,
    dtype: torch.dtype = torch.float32,
) -> _Array:
    """Draw standard normals of the broadcast shape of the arguments.

    float32 values are the float64 ones rounded. Runs of components cost a quarter by `normals`.
    """
    return _cast(_pointwise(_normal, (seed, row, node, component)), dtype)


def uniform(
    seed: Integers,
    row: Integers,
    node: Integers,
    component: Integers,
    *,
    dtype: torch.dtype = torch.float32,
) -> _Array:
    """Draw uniforms on the open interval (0, 1), of the broadcast shape of the arguments.

    The midpoint of one of 2**32 cells in float64, of 2**23 in float32: the ends stay out of reach.
    """
    w = bits(seed, row, node, component)
    if dtype == torch.float64:
        return (_real(w) + 0.5) * 2.0**-32
    return _cast((_real(w >> 9) + 0.5) * 2.0**-23, dtype)


def rademacher(
    seed: Integers,
    row: Integers,
    node: Integers,
    component: Integers,
    *,
    dtype: torch.dtype = torch.float32,
) -> _Array:
    """Draw signs -1 or +1 with equal probability, of the broadcast shape of the arguments."""
    return _cast(_real((bits(seed, row, node, component) >> 31) * 2 - 1), dtype)


def normals(
    seed: Integers,
    row: Integers,
    node: Integers,
    size: int,
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> _Array:
    """Draw the standard normals of components first .. first + size - 1 along a new last axis.

    Shapes: row and node, at least one of them an array, broadcast to S; the answer is (*S, size).

    Raises:
        ValueError: first is not a multiple of 4, where a block begins.
    """
    if first % 4:
        raise ValueError(f"normals: first={first} is inside a block; give a multiple of 4")
    blocks = (first // 4, (first + size + 3) // 4)
    if _on_host(seed, row, node):
        native = _native(seed, row, node, size, blocks[0], dtype)
        if native is not None:
            return native if isinstance(row, Tensor) or isinstance(node, Tensor) else native.numpy()
        wants_numpy = not any(isinstance(a, Tensor) for a in (row, node))
        host = [a.numpy() if isinstance(a, Tensor) else a for a in _signed((seed, row, node))]
        z = _host_normals(host[0], host[1], host[2], np.arange(*blocks))
        z = _cast(z[..., :size], dtype)
        return z if wants_numpy else torch.from_numpy(np.ascontiguousarray(z))
    row, node = (a.unsqueeze(-1) if isinstance(a, Tensor) else a for a in (row, node))
    device = row.device if isinstance(row, Tensor) else node.device
    z = _blocks_of_normals(seed, row, node, torch.arange(*blocks, device=device))
    return z.flatten(-2)[..., :size].to(dtype)


def _native(seed: Integers, row: Integers, node: Integers, size: int, first: int, dtype: torch.dtype) -> Tensor | None:
    """The same by native code, or None where that does not serve."""
    if size * max(_count(row), _count(node)) < _FEW or dtype not in (torch.float32, torch.float64):
        return None
    code = generator()
    if code is None or _wrapped(row) or _wrapped(node) or _wrapped(seed):
        return None
    number = seed if isinstance(seed, int) else int(seed)
    row, node = (a if isinstance(a, (Tensor, np.ndarray)) else _signed((int(a),))[0] for a in (row, node))
    return code.normals(number & 0xFFFFFFFFFFFFFFFF, row, node, size, first, dtype)


def _count(x: Integers) -> int:
    return x.numel() if isinstance(x, Tensor) else x.size if isinstance(x, np.ndarray) else 1


def _wrapped(x: Integers) -> bool:
    """Whether x is seen through a transform, or has no memory of its own."""
    if not isinstance(x, Tensor):
        return False
    return type(x) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]


def _blocks_of_normals(seed: Integers, row: Integers, node: Integers, block: Integers) -> Tensor:
    """Draw the four float64 normals of each block, of the broadcast shape of the tensors and (4,)."""
    w0, w1, w2, w3 = _block(seed, row, node, block)
    return torch.stack((*_pair(w0, w1), *_pair(w2, w3)), -1)


def _host_normals(seed: Integers, row: Integers, node: Integers, block: np.ndarray) -> np.ndarray:
    """Normals of the blocks for each counter, in pieces that stay in the cache."""
    row, node = np.broadcast_arrays(row, node)
    shape = row.shape
    row, node = row.reshape(-1, 1), node.reshape(-1, 1)
    out = np.empty((row.shape[0], len(block), 4))
    height = max(1, _BLOCKS_IN_CACHE // max(len(block), 1))
    for i in range(0, row.shape[0], height):
        for j in range(0, len(block), _BLOCKS_IN_CACHE):
            rows, columns = slice(i, i + height), slice(j, j + _BLOCKS_IN_CACHE)
            w0, w1, w2, w3 = _block(seed, row[rows], node[rows], block[columns])
            piece = out[rows, columns]
            piece[..., 0], piece[..., 1] = _pair(w0, w1)
            piece[..., 2], piece[..., 3] = _pair(w2, w3)
    return out.reshape(*shape, 4 * len(block))
