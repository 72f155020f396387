"""Sums of products in a graph, found so that each can be one product over all of their inner axes.

c + a1 b1 + (b2^T a2^T)^T + ...  is read and written once, not once for each product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

__all__ = ["Factors", "Gathered", "gathered"]

aten = torch.ops.aten
_TURNS = {aten.permute.default, aten.t.default, aten.transpose.int}


class Factors(NamedTuple):
    """A product ``left right``, or its transpose."""

    left: fx.Node
    right: fx.Node
    turned: bool

    @property
    def terms(self) -> int:
        """Length of the inner axis."""
        return self.left.meta["val"].shape[1]


class Gathered(NamedTuple):
    """A sum: nodes that are no products, and products.

    Attributes:
        into: the place among the graph's inputs and outputs of a running value that this is the next of, the only
            thing that is no product and read by nothing else, so that it can be changed where it is; or None.
    """

    rest: list[fx.Node]
    products: list[Factors]
    into: int | None


def gathered(graph: fx.Graph) -> tuple[dict[fx.Node, Gathered], set[fx.Node]]:
    """The sums of products of a graph by their nodes, and the nodes that need no value of their own."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    outputs = _outputs(graph)
    found, inner = dict[fx.Node, Gathered](), set[fx.Node]()
    for node in reversed(graph.nodes):
        if node in inner or not _is_sum(node):
            continue
        rest, products, seen = _terms(node)
        into = _into(node, rest, inputs, outputs)
        if len(products) > 1 or (products and into is not None):
            found[node] = Gathered(rest, products, into)
            inner |= seen
    return found, inner


def _terms(node: fx.Node) -> tuple[list[fx.Node], list[Factors], set[fx.Node]]:
    """Terms of a sum that are no products, those that are, and the nodes between."""
    rest, products, seen = list[fx.Node](), list[Factors](), set[fx.Node]()
    stack: list[Any] = list(reversed(node.args))
    while stack:
        top = stack.pop()
        if _is_sum(top) and len(top.users) == 1:
            seen.add(top)
            stack += reversed(top.args)
            continue
        factors, passed = _factors(top)
        if factors is None or (products and factors.terms != products[0].terms):
            rest.append(top)
        else:
            products.append(factors)
            seen |= passed
    return rest, products, seen


def _outputs(graph: fx.Graph) -> Sequence[Any]:
    (out,) = (n for n in graph.nodes if n.op == "output")
    outs: Any = out.args[0]
    return [outs] if isinstance(outs, fx.Node) else list(outs)


def _is_sum(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    return _is_matrix(node) and all(_same(x, node) for x in node.args)


def _is_matrix(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.dim() == 2
        and all(isinstance(n, int) and n > 1 for n in value.shape)
        and value.dtype in (torch.float32, torch.float64)
    )


def _same(node: Any, like: fx.Node) -> bool:
    if not isinstance(node, fx.Node):
        return False
    value, wanted = node.meta.get("val"), like.meta["val"]
    return isinstance(value, Tensor) and value.dtype == wanted.dtype and value.shape == wanted.shape


def _factors(node: fx.Node) -> tuple[Factors | None, set[fx.Node]]:
    """The product that a node is, maybe transposed, if nothing else reads it, and the nodes it consists of."""
    passed, turned = {node}, False
    while len(node.users) == 1:
        if node.target is aten.mm.default:
            left, right = cast(tuple[fx.Node, fx.Node], node.args)
            return Factors(left, right, turned), passed
        if node.target not in _TURNS or not _swaps(node):
            break
        turned = not turned
        (node,) = node.all_input_nodes
        passed.add(node)
    return None, set()


def _swaps(node: fx.Node) -> bool:
    """Whether the axes of a matrix change places."""
    axes: Any = node.args[1:]
    if node.target is aten.permute.default:
        return [d % 2 for d in axes[0]] == [1, 0]
    return node.target is aten.t.default or {d % 2 for d in axes} == {0, 1}


def _into(node: fx.Node, rest: list[fx.Node], inputs: list[fx.Node], outputs: Sequence[Any]) -> int | None:
    if len(rest) != 1 or len(node.users) != 1 or len(rest[0].users) != 1 or node not in outputs:
        return None
    place = outputs.index(node)
    return place if place < len(inputs) and inputs[place] is rest[0] else None
