"""A traced graph with one loop in it, taken apart: what precedes the loop, one turn of it, what follows.

    opening: given -> places        turn: places -> places        closing: places -> results

All three work on one list of places: the tensors that are given, constants, values that are formed
before the loop, what the loop carries, where it stood before its last turn, and how far it came. A turn
writes in place and may be made again after the end: it then repeats the last one, which writes what is
there already, and what is carried stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

__all__ = ["Part", "Parts", "Unsuited", "take_apart"]

aten = torch.ops.aten
_LOOP = torch.ops.higher_order.while_loop
_FUNCTIONALISED = getattr(torch.ops.higher_order, "auto_functionalized_v2", None)
_READS = (aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default)

Example: TypeAlias = Any
"""A fake tensor, or an integer that may be a symbol."""


class Unsuited(Exception):
    """A graph cannot be replayed; the message says why."""


@dataclass(frozen=True)
class Part:
    """One graph and the places that it takes."""

    graph: fx.GraphModule
    takes: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """A program in three parts.

    Attributes:
        examples: what stands at each place.
        given: how many places are given by the caller.
        constants: values of the places that follow them.
        flag: place of two integers: whether the loop goes on, and turns so far.
        written: given places that are written to.
    """

    examples: tuple[Example, ...]
    given: int
    constants: tuple[Tensor, ...]
    flag: int
    written: frozenset[int]
    opening: Part
    turn: Part
    closing: Part


@dataclass
class _Loop:
    """A loop's graphs, what it carries, what else it reads, and which of that it writes."""

    node: fx.Node
    condition: fx.GraphModule
    body: fx.GraphModule
    carried: list[fx.Node]
    others: list[Any]
    bases: list[fx.Node]


@dataclass
class _Writing:
    """A part while it is written."""

    examples: list[Example]
    device: torch.device
    graph: fx.Graph = field(default_factory=fx.Graph)
    found: dict[int, fx.Node] = field(default_factory=dict)

    def place(self, i: int) -> fx.Node:
        """The node of a place."""
        if i not in self.found:
            with self.graph.inserting_before(next(iter(self.graph.nodes), None)):
                self.found[i] = self.graph.placeholder(f"place_{i}")
        return self.found[i]

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def copy(self, node: fx.Node, known: dict[fx.Node, Any]) -> fx.Node:
        """A node of another graph, on the one device."""
        new = self.graph.node_copy(node, lambda n: known[n])
        here = lambda x: self.device if isinstance(x, torch.device) else x  # noqa: E731
        new.args = tuple(here(x) for x in new.args)
        new.kwargs = {k: here(x) for k, x in new.kwargs.items()}
        return new

    def done(self, outs: Any = ()) -> Part:
        # Sizes stay, because those of other tensors follow from them.
        sizes = {self.place(i) for i, x in enumerate(self.examples) if not isinstance(x, Tensor)}
        self.graph.output(outs)
        self.graph.eliminate_dead_code()
        takes = {node: i for i, node in self.found.items() if node.users or node in sizes}
        for node in [n for n in self.graph.nodes if n.op == "placeholder" and n not in takes]:
            self.graph.erase_node(node)
        order = [takes[n] for n in self.graph.nodes if n.op == "placeholder"]
        return Part(fx.GraphModule(torch.nn.Module(), self.graph), tuple(order))


def take_apart(graph: fx.GraphModule, device: torch.device) -> Parts:
    """The parts of a functional graph with one loop, all of whose tensors are put on one device.

    Raises:
        Unsuited: it has no loop or several, or needs the host within it.
    """
    values = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    with detect_fake_mode(values) or nullcontext():
        return _Apart(graph, device).parts()


class _Apart:
    def __init__(self, graph: fx.GraphModule, device: torch.device) -> None:
        self.owner, self.device = graph, device
        self.examples: list[Example] = []
        self.places: dict[fx.Node, int] = {}
        self.constants: list[Tensor] = []
        self.written: set[int] = set()
        nodes = list(graph.graph.nodes)
        loops = [n for n in nodes if n.target is _LOOP or n.target is _FUNCTIONALISED]
        if len(loops) != 1:
            raise Unsuited("it has no loop" if not loops else "it has more than one loop")
        middle = nodes.index(loops[0])
        self.before = [n for n in nodes[:middle] if n.op == "call_function"]
        self.after = [n for n in nodes[middle + 1 :] if n.op == "call_function"]
        self.results: Any = nodes[-1].args[0]
        given = [n for n in nodes if n.op == "placeholder"]
        for node in given:
            self.places[node] = self._new(node.meta["val"])
        self.given = len(given)
        self._check(nodes)
        self.loop = _parts_of(loops[0], graph)
        self._constants(graph, nodes)
        for inner in (self.loop.condition, self.loop.body):
            self._check(inner.graph.nodes)
            self._constants(inner, inner.graph.nodes)

    def _new(self, value: Any) -> int:
        """A place for such a value: a dense tensor on the device, or an integer."""
        if isinstance(value, Tensor):
            if value.device not in (self.device, torch.device("cpu")):
                raise Unsuited(f"it uses tensors on {value.device} and on {self.device}")
            if value.device != self.device:
                value = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=self.device)
        self.examples.append(value)
        return len(self.examples) - 1

    def _held(self, value: Any) -> int:
        if not isinstance(value, Tensor):
            raise Unsuited("it carries something that is no tensor")
        return self._new(torch.empty(value.shape, dtype=value.dtype, device=self.device))

    def _check(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node.target in _READS:
                raise Unsuited(f"it reads values on the host ({node.target})")

    def _constants(self, graph: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
        """Tensors that a graph holds become places."""
        for node in nodes:
            if node.op != "get_attr":
                continue
            value = getattr(graph, str(node.target))
            if isinstance(value, Tensor):
                self.places[node] = self._new(node.meta["val"] if "val" in node.meta else value)
                self.constants.append(value)
            elif graph is not self.owner:
                raise Unsuited("it has branches inside the loop")

    def parts(self) -> Parts:
        loop = self.loop
        carried = [self._held(n.meta["val"]) for n in loop.carried]
        last = [self._held(n.meta["val"]) for n in loop.carried]
        flag = self._held(torch.empty(2, dtype=torch.int64))
        bases = {n: self._kept(n) for n in loop.bases}
        self.written |= {i for i in bases.values() if i < self.given}
        closing = self._closing(carried, bases)
        turn = self._turn(carried, last, set(bases.values()), flag)
        opening = self._opening(carried, last, flag)
        return Parts(
            tuple(self.examples),
            self.given,
            tuple(self.constants),
            flag,
            frozenset(self.written),
            opening,
            turn,
            closing,
        )

    def _kept(self, node: fx.Node) -> int:
        """The place of a value that outlives the opening."""
        if node not in self.places:
            self.places[node] = self._held(node.meta["val"])
        return self.places[node]

    def _writing(self) -> _Writing:
        return _Writing(self.examples, self.device)

    def _value(self, part: _Writing, node: Any, known: dict[fx.Node, Any]) -> Any:
        """A node of the outer graph in a part; sizes are formed again where they are needed."""
        if not isinstance(node, fx.Node) or node in known:
            return known[node] if isinstance(node, fx.Node) else node
        if node in self.places or _is_tensor(node):
            known[node] = part.place(self._kept(node))
        else:
            for source in node.all_input_nodes:
                self._value(part, source, known)
            known[node] = part.copy(node, known)
        return known[node]

    def _opening(self, carried: list[int], last: list[int], flag: int) -> Part:
        part = self._writing()
        known: dict[fx.Node, Any] = {n: part.place(i) for n, i in self.places.items() if n.op != "call_function"}
        for node in self.before:
            known[node] = part.copy(node, known)
        for node, place in self.places.items():
            if node.op == "call_function":
                part.call(aten.copy_.default, part.place(place), known[node])
        for node, here, there in zip(self.loop.carried, carried, last, strict=True):
            part.call(aten.copy_.default, part.place(here), known[node])
            part.call(aten.copy_.default, part.place(there), known[node])
        part.call(aten.zero_.default, part.place(flag))
        return part.done()

    def _turn(self, carried: list[int], last: list[int], bases: set[int], flag: int) -> Part:
        part = self._writing()
        outer: dict[fx.Node, Any] = {}
        rest = [self._value(part, x, outer) for x in self.loop.others]
        here, there = [part.place(i) for i in carried], [part.place(i) for i in last]
        going = self._condition(part, here, rest, bases)
        at = [part.call(aten.where.self, going, a, b) for a, b in zip(here, there, strict=True)]
        outs, writes = self._body(part, at, rest, bases)
        again = all(rest.count(target) == 1 and _only_put(node) for node, target, _ in writes)
        new = [part.call(aten.where.self, going, a, b) for a, b in zip(outs, here, strict=True)]
        for _, target, value in writes:
            part.call(aten.copy_.default, target, value if again else part.call(aten.where.self, going, value, target))
        count = part.call(aten.add.Tensor, part.call(aten.select.int, part.place(flag), 0, 1), going)
        goes = part.call(aten._to_copy.default, self._condition(part, new, rest, bases))
        goes.kwargs = {"dtype": torch.int64}
        part.call(aten.copy_.default, part.place(flag), part.call(aten.stack.default, [goes, count]))
        for place, value in (*zip(here, new, strict=True), *zip(there, at, strict=True)):
            part.call(aten.copy_.default, place, value)
        return part.done()

    def _inner(self, graph: fx.GraphModule, part: _Writing, given: Sequence[Any]) -> Iterator[tuple[fx.Node, Any]]:
        """The nodes of a graph of the loop, copied into a part, but for its writes; the results come last."""
        rest, known = iter(given), dict[fx.Node, Any]()
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(rest)
            elif node.op == "get_attr":
                known[node] = part.place(self.places[node])
            elif node.op == "output":
                yield node, fx.map_arg(node.args[0], lambda n: known[n])
            elif node.target is aten.copy_.default:
                target, value = _pair(node)
                yield node, (known[target], known[value])
                known[node] = known[value]
            else:
                known[node] = part.copy(node, known)

    def _condition(self, part: _Writing, carried: Sequence[Any], rest: Sequence[Any], bases: set[int]) -> fx.Node:
        graph = self.loop.condition
        written = [part.place(i) for i in bases]
        places = [n for n in graph.graph.nodes if n.op == "placeholder"]
        if any(n.users and x in written for n, x in zip(places, [*carried, *rest], strict=True)):
            raise Unsuited("its condition reads what the loop writes")
        ((_, out),) = self._inner(graph, part, [*carried, *rest])
        return out[0] if isinstance(out, (tuple, list)) else out

    def _body(
        self, part: _Writing, at: Sequence[Any], rest: Sequence[Any], bases: set[int]
    ) -> tuple[Sequence[Any], list[tuple[fx.Node, fx.Node, fx.Node]]]:
        """What a turn carries on, and its writes: how the body has them, target and value."""
        written, writes, outs = [part.place(i) for i in bases], list[tuple[fx.Node, fx.Node, fx.Node]](), ()
        for node, made in self._inner(self.loop.body, part, [*at, *rest]):
            if node.op == "output":
                outs = made if isinstance(made, (tuple, list)) else (made,)
                continue
            target, value = made
            if target not in written:
                raise Unsuited("its turns write into something that it carries")
            writes.append((node, target, value))
        return outs, writes

    def _closing(self, carried: list[int], bases: dict[fx.Node, int]) -> Part:
        part = self._writing()
        known: dict[fx.Node, Any] = {}
        for node in bases:
            if any(self._is_after(n) and not _is_copy_to(n, node) for n in node.users):
                raise Unsuited("what the loop writes is used after it as it was before")
        for node in self.after:
            if node.args and node.args[0] is self.loop.node:
                _, i = _pair(node)
                place = carried[i] if i < len(carried) else bases[self.loop.bases[i - len(carried)]]
                known[node] = part.place(place)
                continue
            for source in node.all_input_nodes:
                self._value(part, source, known)
            if node.target is aten.copy_.default:
                target, value = _pair(node)
                place = self.places[target]
                self.written.add(place)
                if known[value] is part.place(place):
                    known[node] = part.place(place)
                    continue
            known[node] = part.copy(node, known)
        outs = [self._result(part, node, known) for node in self.results]
        return part.done(tuple(outs))

    def _is_after(self, node: fx.Node) -> bool:
        return node in self.after or node.op == "output"

    def _result(self, part: _Writing, node: Any, known: dict[fx.Node, Any]) -> Any:
        """A result: never a place itself, which the next call writes into."""
        value = self._value(part, node, known)
        return part.call(aten.clone.default, value) if isinstance(node, fx.Node) and _is_tensor(node) else value


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_copy_to(node: fx.Node, target: fx.Node) -> bool:
    return node.target is aten.copy_.default and node.args[0] is target and node.args[1] is not target


def _only_put(node: fx.Node) -> bool:
    """Whether a write puts values at places that follow from what is carried, and nothing else reads its target."""
    target, value, behind = *_pair(node), node
    while value is not target:
        if value.target is not aten.index_put.default or len(value.args) > 3:
            return False
        if set(value.users) != {behind}:
            return False
        behind, value = value, _pair(value)[0]
    return set(value.users) <= {behind, node}


def _pair(node: fx.Node) -> tuple[Any, Any]:
    """The first two operands of a write."""
    return node.args[0], node.args[1]


def _parts_of(node: fx.Node, graph: fx.GraphModule) -> _Loop:
    """A loop's operands, however it is written."""
    inner = lambda n: getattr(graph, str(n.target))  # noqa: E731
    if node.target is _LOOP:
        operands: Any = node.args
        condition, body, carried, others = operands
        return _Loop(node, inner(condition), inner(body), list(carried), list(others), [])
    kw: dict[str, Any] = dict(node.kwargs)
    bases, place = list[fx.Node](kw["_all_bases"]), "_additional_input{}_base_index"
    carried = [kw[f"carried_input{i}"] for i in range(_count(kw, "carried_input{}"))]
    others: list[Any] = []
    while True:
        i = len(others)
        if place.format(i) in kw:
            others.append(bases[kw[place.format(i)]])
        elif f"additional_input{i}" in kw:
            others.append(kw[f"additional_input{i}"])
        else:
            break
    known = {"cond_fn", "body_fn", "_all_bases", "_op_schema"}
    known |= {f"carried_input{i}" for i in range(len(carried))}
    known |= {name.format(i) for i in range(len(others)) for name in (place, "additional_input{}")}
    if node.args[0] is not _LOOP or set(kw) - known:
        raise Unsuited("its loop writes into views")
    return _Loop(node, inner(kw["cond_fn"]), inner(kw["body_fn"]), carried, others, bases)


def _count(kw: dict[str, Any], name: str) -> int:
    i = 0
    while name.format(i) in kw:
        i += 1
    return i
