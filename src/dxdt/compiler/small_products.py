"""Matrix products of a few rows as fused sums, where a call costs more than its arithmetic.

Inside compiled code a product with a handful of rows is written as sum_k x[m, k] w[k, n], which
the compiler fuses with what surrounds it. This belongs to our compile context only: users' code and
eager products stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dxdt.compiler.functional import functional
from dxdt.ops.code_cache import point_torch_here

__all__ = ["backend"]

# Largest product done as a fused sum: rows, and entries of the matrix; terms in a batch of products.
_ROWS, _ENTRIES = 4, 128 * 128
_TERMS = 16


def _is_small(x: Tensor, w: Tensor) -> bool:
    return x.shape[0] <= _ROWS and w.numel() <= _ENTRIES and x.device.type == "cpu"


def _product(x: Tensor, w: Tensor) -> Tensor:
    return (x.unsqueeze(-1) * w).sum(-2)


def _mm(x: Tensor, w: Tensor) -> Any:
    return _product(x, w) if _is_small(x, w) else NotImplemented


def _addmm(b: Tensor, x: Tensor, w: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    return _product(x, w) + b if beta == 1 and alpha == 1 and _is_small(x, w) else NotImplemented


def _bmm(x: Tensor, w: Tensor) -> Any:
    """Matrices with few columns times a vector each (a diffusion with its noise), written out.

    Other thin products stay calls: as a loop over few terms they would not be vectorised, and
    neither would what is fused with them.
    """
    terms = x.shape[2]
    if x.device.type != "cpu" or w.shape[2] != 1 or not 1 < terms <= _TERMS:
        return NotImplemented
    total = x[:, :, :1] * w[:, :1]
    for j in range(1, terms):
        total = total + x[:, :, j : j + 1] * w[:, j : j + 1]
    return total


def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = import_module("torch._inductor.decomposition").select_decomp_table()
    aten = torch.ops.aten
    return {**table, aten.mm.default: _mm, aten.addmm.default: _addmm, aten.bmm.default: _bmm}


def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Inductor with a C++ wrapper on the CPU, and small products fused."""
    untrusted = point_torch_here()
    if untrusted is not None:
        raise RuntimeError(f"{untrusted}: set TORCHINDUCTOR_CACHE_DIR to a folder of your own, or unset it")
    # Imported with the first program, because that takes longer than all else of the package.
    inductor = import_module("torch._inductor.compile_fx")

    def inner(graph: torch.fx.GraphModule, *given: Any, **told: Any) -> Any:
        return inductor.compile_fx_inner(functional(graph), *given, **told)

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    patches = {"cpp_wrapper": True} if on_cpu else {}
    return inductor.compile_fx(
        graph, inputs, inner_compile=inner, config_patches=patches, decompositions=_decompositions()
    )
