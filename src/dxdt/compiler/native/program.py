"""A traced graph with loops in it, one after the other, as one function of C++.

    given tensors -> what precedes a loop -> while (condition) { body } -> ... -> what follows -> new tensors

Carried values are variables and arrays of the function; tensors that the body writes into are the
caller's. Nothing is allocated inside the loop, and no operation is dispatched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dxdt.compiler.native.buffers import TYPES, Buffer, Panels, Put, Unsupported, View, Work
from dxdt.compiler.native.emit import Writer
from dxdt.compiler.native.fusion import Section
from dxdt.compiler.native.lowering import Lowered
from dxdt.compiler.native.prelude import PRELUDE
from dxdt.compiler.native.sizes import PRIMES, WIDE, Extent, Extents, Room, carried
from dxdt.compiler.native.sum_of_products import Gathered, gathered

__all__ = ["Source", "translate"]

aten = torch.ops.aten
_FUNCTIONALISED = getattr(torch.ops.higher_order, "auto_functionalized_v2", None)
_LOOP = torch.ops.higher_order.while_loop


@dataclass(frozen=True)
class Source:
    """Text of a program, and how it is called.

    Attributes:
        text: C++ with ``extern "C" int run(void** given, void** made, char* room)``.
        given: for each input whether it is a tensor (else an integer).
        made: shape and dtype of each tensor that it returns, None for what is None.
        room: bytes of memory that it works in.
        arithmetic: multiplications of the products in one turn of its largest loop, for the choice of who runs it.
        batch: which input is the number that open sizes follow from, or None.
    """

    text: str
    given: tuple[bool, ...]
    made: tuple[tuple[tuple[int | Extent, ...], torch.dtype] | None, ...]
    room: Room
    arithmetic: int
    batch: int | None = None

    @property
    def key(self) -> str:
        """A name by content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Loop:
    """What is known of a loop: its two graphs, what is carried and what else it reads."""

    condition: fx.GraphModule
    body: fx.GraphModule
    carried: list[View]
    others: list[View]
    bases: list[View]


@dataclass(frozen=True)
class _Lap:
    """The code of a loop.

    Attributes:
        before: what precedes it, since the last one.
        starts, carried, news: first values, variables and next values of what is carried; None where it stays.
        going: whether another turn is made.
    """

    before: Section
    starts: list[View]
    carried: list[View]
    condition: Section
    going: View
    body: Section
    news: list[View | None]


class _Translator:
    def __init__(self, graph: fx.GraphModule, extents: Extents) -> None:
        self.graph, self.extents = graph, extents
        self.batch: int | None = None
        self.count = count()
        self.sizes: dict[str, View] = {}
        self.panels: Panels = {}
        self.outer = Lowered(self._name, self.sizes, self.panels, self.extents)
        self.laps: list[_Lap] = []
        self.writer = Writer(extents)
        self.given: list[bool] = []
        self.arithmetic = 0

    def _name(self, prefix: str) -> str:
        return f"{prefix}{next(self.count)}"

    def run(self) -> Source:
        made: list[Any] = []
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.outer.values[node] = self._input(node)
            elif node.op == "get_attr":
                self.outer.values[node] = getattr(self.graph, node.target)
            elif node.op == "output":
                made = self._outputs(node.args[0])
            elif node.target in (_FUNCTIONALISED, _LOOP):
                self.outer.values[node] = self._loop(self._parts(node))
            elif node.target is aten.copy_.default:
                target, source = (self.outer.values[n] for n in node.args[:2])
                if target.buffer is not source.buffer:
                    raise Unsupported("a write outside the loop")
            elif node.op == "call_function":
                self.outer.values[node] = self.outer.run(node)
            else:
                raise Unsupported(f"a node of kind {node.op}")
        if not self.laps:
            raise Unsupported("no loop")
        if self.extents.symbol is not None and self.batch is None:
            raise Unsupported("a batch that is not given")
        text, room = self._text()
        return Source(text, tuple(self.given), tuple(made), room, self.arithmetic, self.batch)

    def _input(self, node: fx.Node) -> Any:
        value = node.meta["val"]
        i = len(self.given)
        self.given.append(isinstance(value, Tensor))
        if not isinstance(value, Tensor):
            known = self.extents.size(value)
            if known is not None:
                self.batch = i if known == self.extents.prime else self.batch
                return known
            buffer = Buffer(f"n{i}", torch.int64, 1)
            self.writer.line(f"const int64_t n{i} = *(const int64_t*)given[{i}];")
            self.sizes[str(value)] = view = View.of(buffer, ())
            return view
        if value.device.type != "cpu" or value.dtype not in TYPES:
            raise Unsupported(f"a tensor of {value.dtype} on {value.device}")
        size = self.extents.size
        shape, strides = tuple(map(size, value.shape)), tuple(map(size, value.stride()))
        if None in strides or None in shape[1:]:
            raise Unsupported("an inner axis whose length is not known")
        numel = None if None in shape else prod(n for n in shape if n is not None)
        if numel == 0:
            raise Unsupported("a tensor without elements")
        buffer = Buffer(f"a{i}", value.dtype, numel)
        t = buffer.type
        if numel == 1:
            self.writer.line(f"const {t} a{i} = *(const {t}*)given[{i}];")
            return View.of(buffer, shape)
        self.writer.line(f"{t}* const __restrict a{i} = ({t}*)given[{i}];")
        if numel is None:
            known = self.sizes.get(str(value.shape[0]))
            if known is not None:
                self.sizes[f"rows of a{i}"] = known
        return View(buffer, shape, tuple(strides), 0)

    def _parts(self, node: fx.Node) -> _Loop:
        """A loop's operands, however it is written."""
        values = self.outer.values
        if node.target is _LOOP:
            operands: Any = fx.map_arg(node.args, lambda n: values[n])
            condition, body, carried, others = operands
            return _Loop(condition, body, list(carried), list(others), [])
        kw: Any = fx.map_arg(node.kwargs, lambda n: values[n])
        bases = list(kw["_all_bases"])
        known = {"cond_fn", "body_fn", "_all_bases", "_op_schema"}
        carried = [kw[f"carried_input{i}"] for i in _while(lambda i: f"carried_input{i}" in kw)]
        others = []
        place = "_additional_input{}_base_index"
        for i in _while(lambda i: f"additional_input{i}" in kw or place.format(i) in kw):
            plain = f"additional_input{i}" in kw
            others.append(kw[f"additional_input{i}"] if plain else bases[kw[place.format(i)]])
            known.add(f"additional_input{i}" if plain else place.format(i))
        known |= {f"carried_input{i}" for i in range(len(carried))}
        if node.args[0] is not _LOOP or set(kw) - known:
            raise Unsupported("a loop that writes into views")
        return _Loop(kw["cond_fn"], kw["body_fn"], carried, others, bases)

    def _loop(self, loop: _Loop) -> list[View]:
        carried = [self._carry(view) for view in loop.carried]
        written = {view.buffer for view in loop.bases}
        before = Section("before")
        condition, body = Section("condition", before), Section("body", before)
        (going,) = self._graph(loop.condition, [*carried, *loop.others], written)[0]
        arithmetic, self.arithmetic = self.arithmetic, 0
        outs, puts = self._graph(loop.body, [*carried, *loop.others], written)
        self.arithmetic = max(arithmetic, self.arithmetic)
        if not going.buffer.scalar or len(outs) != len(carried):
            raise Unsupported("a condition that is not one truth")
        condition.need(going)
        news = [self._news(old, new, body) for old, new in zip(carried, outs, strict=True)]
        last = len(body.blocks) - 1
        for put in puts:
            body.store(put.target, put.value, last)
        for view in loop.carried:
            before.need(view)
        self.laps.append(_Lap(before, loop.carried, carried, condition, going, body, news))
        for view in carried:
            view.buffer.fixed = True  # for all that follows
        return [*carried, *loop.bases]

    def _carry(self, view: View) -> View:
        prefix = "c"
        buffer = Buffer(self._name(prefix), view.buffer.dtype, view.numel, fixed=False)
        return View.of(buffer, view.shape)

    def _graph(
        self, graph: fx.GraphModule, given: Sequence[View], written: set[Buffer]
    ) -> tuple[list[View], list[Put]]:
        """The outputs of a graph of the loop, and what it writes."""
        lowered = Lowered(self._name, self.sizes, self.panels, self.extents)
        rest, puts = iter(given), list[Put]()
        sums, inner = gathered(graph.graph)
        for node in graph.graph.nodes:
            if node in inner:
                continue
            if node.op == "placeholder":
                lowered.values[node] = view = next(rest)
                if isinstance(view, View) and view.buffer in written and not all(map(_writes, node.users)):
                    raise Unsupported("a tensor that the loop both reads and writes")
            elif node.op == "output":
                outs = node.args[0]
                outs = [outs] if isinstance(outs, fx.Node) else outs
                return [lowered.values[n] for n in outs], puts
            elif node.op == "get_attr":
                raise Unsupported("a graph inside the loop")
            elif node.target is aten.copy_.default:
                target, source = (lowered.values[n] for n in node.args[:2])
                puts.append(source if isinstance(source, Put) else Put(target, source.spread(target.shape)))
                lowered.values[node] = None
            else:
                lowered.values[node] = out = self._value(lowered, node, sums.get(node))
                work = out.buffer.work if isinstance(out, View) else None
                if work is not None and work.kind == "product":
                    rows = prod(map(self.extents.at_hint, work.operands[0].shape))
                    self.arithmetic += rows * work.shape[1] * work.detail["pairs"]
        raise Unsupported("a graph without an output")

    def _value(self, lowered: Lowered, node: fx.Node, found: Gathered | None) -> Any:
        if found is None:
            return lowered.run(node)
        values = lowered.values
        pairs: list[tuple[View, View]] = []
        for left, right, turned in found.products:
            a, b = values[left], values[right]
            pairs.append((b.turned, a.turned) if turned else (a, b))
        rest = [values[n] for n in found.rest]
        return lowered.sum_of_products(node.meta["val"], rest, pairs, found.into is not None)

    def _news(self, old: View, new: View, body: Section) -> View | None:
        """The place of a carried value's next one; None where it stays."""
        if new.buffer is old.buffer and new.whole:
            return None
        if new.buffer.home is old.buffer:
            body.need(new)
            return None
        scalar = old.buffer.scalar
        mine = new.buffer.work is not None and new.whole and (scalar or new.buffer.work.kind != "store")
        if not mine or new.buffer.fixed:
            like = torch.empty(old.shape, dtype=old.buffer.dtype, device="meta")
            work = Work("point", tuple(old.shape), (new.spread(old.shape),), lambda x: x)
            buffer = Buffer(self._name("b"), like.dtype, like.numel(), work, fixed=False)
            new = View.of(buffer, old.shape)
        return body.need(new)

    def _write(self, lap: _Lap) -> None:
        """The text of what precedes a loop and of the loop."""
        w = self.writer
        w.section(lap.before)
        for view, start in zip(lap.carried, lap.starts, strict=True):
            buffer = view.buffer
            if buffer.scalar:
                w.line(f"{buffer.type} {buffer.name} = {w.read(start)};")
                continue
            w.array(buffer, held=True)
            w.copy(view, start)
        w.line("for (;;) {")
        w.depth += 1
        w.section(lap.condition)
        w.line(f"if (!{w.read(lap.going)}) break;")
        w.section(lap.body)
        for view, new in zip(lap.carried, lap.news, strict=True):
            if new is not None and view.buffer.scalar:
                w.line(f"{view.buffer.name} = {w.read(new)};")
            elif new is not None:
                w.copy(view, new)
        w.depth -= 1
        w.line("}")

    def _outputs(self, outs: Any) -> list[Any]:
        """All of the text, from what precedes the first loop to the results: what is read later is known by now."""
        made: list[Any] = []
        stores, after = list[tuple[Buffer, View]](), Section("after")
        for node in outs:
            if node is None:
                made.append(None)
                continue
            view = self.outer.values[node]
            if not isinstance(view, View) or None in view.shape:
                raise Unsupported("an output that is not a tensor of known size")
            buffer = Buffer(f"o{len(made)}", view.buffer.dtype, view.numel)
            t = buffer.type
            self.writer.line(f"{t}* const __restrict o{len(made)} = ({t}*)made[{len(made)}];")
            stores.append((buffer, after.need(view)))
            made.append((self.extents.made(view.shape), view.buffer.dtype))
        for lap in self.laps:
            self._write(lap)
        self.writer.section(after)
        for buffer, view in stores:
            if view.numel == 1:
                self.writer.line(f"*{buffer.name} = {self.writer.read(view)};")
            else:
                self.writer.copy(View.of(buffer, view.shape), view)
        return made

    def _text(self) -> tuple[str, Room]:
        """The text, and the bytes of its room."""
        room, where = self.writer.room()
        batch = [] if self.batch is None else [f"  const long B = *(const int64_t*)given[{self.batch}], W = {WIDE};"]
        lines = [
            PRELUDE,
            'extern "C" int run(void** given, void** made, char* const room) {',
            "  int bad = 0;",
            *batch,
            *(f"  const long AT_{name} = {at};" for name, at in where.items()),
            *self.writer.lines,
            "  return bad;",
            "}",
        ]
        return self.extents.written("\n".join(lines) + "\n"), room


def _while(holds: Any) -> Iterator[int]:
    for i in count():
        if not holds(i):
            return
        yield i


def _writes(node: fx.Node) -> bool:
    return node.target in (aten.index_put.default, aten.copy_.default)


def translate(graph: fx.GraphModule) -> Source:
    """The program of a functional graph with loops, none inside another.

    Raises:
        Unsupported: it has something that native code is not written for.
    """
    symbol, hint = carried(graph, {_FUNCTIONALISED, _LOOP})
    primes = PRIMES if symbol is not None else PRIMES[:1]
    first, *rest = [_Translator(graph, Extents(symbol, prime, hint)).run() for prime in primes]
    if any(source != first for source in rest):
        raise Unsupported("a number that is not told from a size")
    return first
