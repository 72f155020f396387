"""The compiler of solves: native code where it is written for all of a program, else torch's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from dxdt.ops.native.build import Native, load
from dxdt.ops.native.program import translate
from dxdt.ops.native.values import Unsupported
from dxdt.ops.small_products import backend as inductor

__all__ = ["backend"]

# Multiplications of one turn above which several threads are worth more than one function.
_ALONE = 1 << 22


def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Compile a traced solve."""
    # Imported with the first program, because that takes longer than all else of the package.
    simplified = import_module("torch._functorch.aot_autograd").aot_module_simplified
    made = list[Native]()

    def native(graph: torch.fx.GraphModule, inputs: list[Any]) -> Native:
        if _draws(graph):
            raise RuntimeError("the field draws random numbers")
        source = translate(graph)
        if source.arithmetic > _ALONE and torch.get_num_threads() > 1:
            raise Unsupported("products that are worth several threads")
        made.append(load(source))
        return made[-1]

    try:
        compiled = simplified(
            graph,
            inputs,
            fw_compiler=_refuse,
            bw_compiler=_refuse,
            inference_compiler=native,
            decompositions=_decompositions(),
            keep_inference_input_mutations=True,
        )
    except Unsupported:
        return inductor(graph, inputs)
    (program,) = made
    return program if program.serves(graph) else compiled


def _decompositions() -> dict[Any, Callable[..., Any]]:
    return import_module("torch._inductor.decomposition").select_decomp_table()


def _draws(graph: torch.fx.GraphModule) -> bool:
    """Whether a graph, or one inside it, draws random numbers; ours are integers computed from a seed."""
    graphs = [m.graph for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
    operations = {n.target for g in graphs for n in g.nodes if isinstance(n.target, torch._ops.OpOverload)}
    return any(
        torch.Tag.nondeterministic_seeded in op.tags or op.namespace == "prims" and "random" in str(op)
        for op in operations
    )


def _refuse(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    raise Unsupported("a program with gradients")
