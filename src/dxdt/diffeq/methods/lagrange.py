"""Slopes of several steps: where they lie in time, and the weights of the polynomial through them.

Written once for arrays on the host and for tensors, in operations on elements alone, so that a compiled
loop forms the weights of every step in a few lines of native code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.times import Ticks, from_host, scaled_sum, to_host

__all__ = ["Around", "combined", "weights"]

_MOST = 16
# Points and weights on [0, 1] that integrate a polynomial through k nodes exactly.
_GAUSS = [
    tuple(zip((0.5 * (x + 1)).tolist(), (0.5 * w).tolist(), strict=True))
    for x, w in (np.polynomial.legendre.leggauss((k + 1) // 2 or 1) for k in range(_MOST + 1))
]


class Around(NamedTuple):
    """Where a step lies among the slopes that are known.

    Attributes:
        dt: length, ``(R,)``, an array on the host or a tensor.
        nodes: times of the slopes from t, in units of dt, newest first, ``(R, m)``; all distinct.
        known: which of them there are, ``(R, m)``, or None for all.
    """

    dt: Any
    nodes: Any
    known: Any = None

    @classmethod
    def of(cls, dt: Ticks, gaps: Tensor | None, partly: bool = False) -> Around:
        """The step ``dt`` after slopes that lie ``gaps`` apart, ``(R, m - 1)``, zero before the first; ``partly``
        tells that they may be fewer. Rows that do not move, or lack history, get distinct nodes."""
        if isinstance(dt, Tensor) or (gaps is not None and gaps.requires_grad):
            device = None if gaps is None else gaps.device
            dt = torch.as_tensor(dt, dtype=torch.float64, device=device).reshape(-1)
            return cls._of(dt, gaps, partly, torch.where, torch.cat)
        host = None if gaps is None else to_host(gaps)
        return cls._of(np.atleast_1d(dt), host, partly, np.where, np.concatenate)

    @classmethod
    def _of(cls, dt: Any, gaps: Any, partly: bool, where: Any, cat: Any) -> Around:
        unit = where(dt == 0, 1.0, dt)[:, None]
        here = unit * 0
        if gaps is None:
            return cls(dt, here)
        gap, back = where(gaps == 0, unit, gaps) / unit, [here]
        for j in range(gap.shape[1]):
            back.append(back[-1] - gap[:, j : j + 1])
        return cls(dt, cat(back, 1), cat([here == 0, gaps != 0], 1) if partly else None)

    def with_end(self) -> Around:
        """The nodes and, first, the end of the step."""
        cat = torch.cat if isinstance(self.nodes, Tensor) else np.concatenate
        first = self.nodes[:, :1]
        known = None if self.known is None else cat([self.known[:, :1], self.known], 1)
        return Around(self.dt, cat([first * 0 + 1, self.nodes], 1), known)


def weights(around: Around, like: Tensor) -> Sequence[Any]:
    """dt times the integrals over the step of the Lagrange polynomials of the nodes, as factors of rows.

        int_0^1 l_j(s) ds = sum_q w_q l(s_q) / (s_q - c_j) / prod_{i != j} (c_j - c_i),   l(s) = prod_i (s - c_i)

    by Gauss-Legendre quadrature, which is exact. Unknown nodes have the weight zero.
    """
    dt, nodes, known = around
    tensors = isinstance(nodes, Tensor)
    where: Any = torch.where if tensors else np.where
    apart = nodes[:, :, None] - nodes[:, None, :]
    if known is not None:
        apart = where(known[:, None, :], apart, 1.0)
    below = _product(where(apart == 0, 1.0, apart))
    total = nodes * 0
    for s, w in _GAUSS[nodes.shape[1]]:
        gap = s - nodes
        if known is not None:
            gap = where(known, gap, 1.0)
        total = total + (w * _product(gap))[:, None] / gap
    found = dt[:, None] * total / below
    if known is not None:
        found = where(known, found, 0.0)
    if tensors:
        return found.to(like.dtype).unsqueeze(-1).unbind(1)
    return found[0].tolist() if len(found) == 1 else from_host(found[..., None], like).unbind(1)


def combined(y: Tensor | None, factors: Sequence[Any], slopes: Sequence[Tensor]) -> Tensor:
    """y + sum_i factors_i slopes_i, one operation a slope; without y the sum alone."""
    for factor, slope in zip(factors, slopes, strict=True):
        y = scaled_sum(y, factor, slope)
    assert y is not None
    return y


def _product(x: Any) -> Any:
    """Products along the last axis."""
    return reduce(mul, x.unbind(-1)) if isinstance(x, Tensor) else np.multiply.reduce(x, axis=-1)
