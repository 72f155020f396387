"""Graphs inside graphs without writes into what they made.

The graph of a loop that writes into given tensors is made functional by torch at a level below which some of its own
kernels (those of gated recurrent cells, for example) still write in place. Compilers take the graphs of loops for
functional ones: torch's own generates code that reads such a value after it was overwritten. So they are traced once
more, with each write as a new value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

__all__ = ["functional", "writes"]

_COPY = torch.ops.aten.copy_.default


def functional(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph itself, after the graphs of its loops were made functional but for the copies to given tensors at
    their ends.

    Raises:
        RuntimeError: one cannot be.
    """
    for owner, name, inner in list(_inside(graph)):
        if writes(inner):
            made = _retraced(inner)
            if writes(made):
                raise RuntimeError(f"the field writes in place ({writes(made)[0].target}) where a program cannot")
            setattr(owner, name, made)
    return graph


def writes(graph: fx.GraphModule) -> list[fx.Node]:
    """Operations that write in place, without the copies to given tensors that end a graph."""
    ends = set(_ends(graph.graph))
    return [n for n in graph.graph.nodes if _is_mutable(n.target) and n not in ends]


def _is_mutable(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _inside(graph: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, str, fx.GraphModule]]:
    """Owner, name and graph of all that are inside another, innermost first."""
    for node in graph.graph.find_nodes(op="get_attr"):
        inner = getattr(graph, node.target, None)
        if isinstance(inner, fx.GraphModule):
            yield from _inside(inner)
            yield graph, node.target, inner


def _ends(graph: fx.Graph) -> list[fx.Node]:
    """The copies to given tensors after which nothing else is computed."""
    found = list[fx.Node]()
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if node.target is not _COPY or node.users or node.args[0].op != "placeholder":
            break
        found.append(node)
    return found[::-1]


def _retraced(graph: fx.GraphModule) -> fx.GraphModule:
    """The same with each write as a new value; the copies at its end stay what they are."""
    given = [n for n in graph.graph.nodes if n.op == "placeholder"]
    copies: list[tuple[int, Any]] = [(given.index(n.args[0]), n.args[1]) for n in _ends(graph.graph)]
    bare = fx.Graph()
    known = dict[fx.Node, fx.Node]()
    outs: Any = bare.graph_copy(graph.graph, known)
    alone = isinstance(outs, fx.Node)
    outs = [outs] if alone else list(outs)
    for node in reversed(_ends(bare)):
        bare.erase_node(node)
    bare.output((*outs, *(known[source] for _, source in copies)))
    # Imported with the first program that needs it: torch's decompositions take long.
    table = import_module("torch._inductor.decomposition").select_decomp_table()
    make_fx = import_module("torch.fx.experimental.proxy_tensor").make_fx
    pure = torch.func.functionalize(fx.GraphModule(graph, bare), remove="mutations")
    values = [n.meta["val"] for n in given]
    # Tensors that are made on the way are no real ones either.
    with detect_fake_mode(values) or nullcontext():
        made = make_fx(pure, decomposition_table=table)(*values)
    targets = [n for n in made.graph.nodes if n.op == "placeholder"]
    end = made.graph.output_node()
    found: Any = end.args[0]
    with made.graph.inserting_before(end):
        for (place, _), source in zip(copies, found[len(outs) :], strict=True):
            node = made.graph.call_function(_COPY, (targets[place], source))
            node.meta["val"] = targets[place].meta["val"]
    end.args = (found[0] if alone else tuple(found[: len(outs)]),)
    made.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or n.target is _COPY)
    made.recompile()
    return made
