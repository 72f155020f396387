"""Long runs of normals by generated code, with the bits of ``ops.random``.

One program serves every shape: it sees blocks of the generator as one line, padded to a multiple
of a length that vector units divide (code generated for odd lengths has been seen to write beyond
its buffers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dxdt.ops import random

__all__ = ["run_of_normals"]

# Below, a call of a program costs more than numpy.
_FEW = 1024
_LINE = 64


def run_of_normals(
    seed: Int[Tensor, ""], row: Int[Tensor, " rows"], first: int, steps: int, size: int, dtype: torch.dtype
) -> Float[Tensor, "steps rows size"]:
    """Standard normals of rows in the nodes first .. first + steps - 1, float64 ones rounded to
    ``dtype``: ``random.normals`` bit for bit, in a tenth of the time where there are many."""
    blocks = (size + 3) // 4
    count = steps * len(row) * blocks
    node = torch.arange(first, first + steps, device=row.device)[:, None]
    if count < _FEW or row.device.type != "cpu":
        return random.normals(seed, row, node, size, dtype=torch.float64).to(dtype)
    block = torch.arange(blocks)
    pairs = (len(row), blocks)
    rows, parts = row[:, None].expand(pairs).reshape(-1), block.expand(pairs).reshape(-1)
    wide = len(rows) >= _LINE
    if not wide:
        rows, parts = rows.repeat(steps), parts.repeat(steps)
        node = node.repeat_interleave(len(row) * blocks, 0).T
    z = _program()(seed, _padded(rows), node if wide else _padded(node), _padded(parts), dtype)
    z = z[:, : len(rows)] if wide else z[0, :count]
    return z.reshape(steps, len(row), 4 * blocks)[..., :size]


def _padded(x: Tensor) -> Tensor:
    rest = -x.shape[-1] % _LINE
    return torch.nn.functional.pad(x, (0, rest)) if rest else x


def _draw(seed: Tensor, row: Tensor, node: Tensor, block: Tensor, dtype: torch.dtype) -> Tensor:
    return random.blocks_of_normals(seed, row, node, block).to(dtype)


@lru_cache(maxsize=1)
def _program() -> Callable[..., Any]:
    options: dict[str, Any] = {"options": {"cpp_wrapper": True}, "isolate_recompiles": True}
    return torch.compile(_draw, fullgraph=True, dynamic=True, **options)
