"""The compiler of solves: native code where it is written for all of a program, else torch's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from dxdt.ops.native.build import load
from dxdt.ops.native.program import translate
from dxdt.ops.native.values import Unsupported
from dxdt.ops.small_products import backend as inductor

__all__ = ["backend"]

# Multiplications of one turn above which several threads are worth more than one function.
_ALONE = 1 << 22


def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Compile a traced solve."""
    common = import_module("torch._dynamo.backends.common")
    options: dict[str, Any] = {"keep_inference_input_mutations": True, "decompositions": _decompositions()}
    try:
        return common.aot_autograd(fw_compiler=_refuse, inference_compiler=_native, **options)(graph, inputs)
    except Unsupported:
        return inductor(graph, inputs)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return import_module("torch._inductor.decomposition").select_decomp_table()


def _refuse(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    raise Unsupported("a program with gradients")


def _native(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    source = translate(graph)
    if source.arithmetic > _ALONE and torch.get_num_threads() > 1:
        raise Unsupported("products that are worth several threads")
    return load(source)
