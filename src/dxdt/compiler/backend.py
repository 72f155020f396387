"""The compiler of solves: native code or replayed turns where they serve all of a program, else torch's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch._guards import TracingContext, tracing

from dxdt.compiler.cuda import Replayed, Unsuited, replayed
from dxdt.compiler.functional import functional
from dxdt.compiler.native import Native, Unsupported, load, translate
from dxdt.compiler.small_products import backend as inductor

__all__ = ["backend", "inner", "traced"]

# Multiplications of one turn above which several threads are worth more than one function.
_ALONE = 1 << 22


def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Compile a traced solve."""
    made = list[Native]()

    def chosen(graph: torch.fx.GraphModule, inputs: list[Any]) -> Native | Replayed:
        if _draws(graph):
            raise RuntimeError("the field draws random numbers")
        graph = functional(graph)
        try:
            source = translate(graph)
        except Unsupported:
            return _replayed(graph)
        if source.arithmetic > _ALONE and torch.get_num_threads() > 1:
            raise Unsupported("products that are worth several threads")
        made.append(load(source))
        return made[-1]

    try:
        compiled = traced(graph, inputs, chosen)
    except Unsupported:
        return inductor(graph, inputs)
    return made[0] if made and made[0].serves(graph) else compiled


def traced(graph: torch.fx.GraphModule, inputs: list[Any], compiler: Callable[..., Any]) -> Callable[..., Any]:
    """What a compiler makes of a functional graph without gradients, as a function of the inputs of ``graph``.

    Raises:
        Unsupported: it needs gradients.
    """
    # Imported with the first program, because that takes longer than all else of the package.
    simplified = import_module("torch._functorch.aot_autograd").aot_module_simplified
    return simplified(
        graph,
        inputs,
        fw_compiler=_refuse,
        bw_compiler=_refuse,
        inference_compiler=compiler,
        decompositions=import_module("torch._inductor.decomposition").select_decomp_table(),
        keep_inference_input_mutations=True,
    )


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


def _replayed(graph: torch.fx.GraphModule) -> Replayed:
    try:
        return replayed(graph, inner)
    except Unsuited as error:
        raise Unsupported(str(error)) from error


def inner(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
    """A part of a program, compiled by torch while the program is traced."""
    with tracing(TracingContext(TracingContext.get().fake_mode)):
        return inductor(graph, examples)
