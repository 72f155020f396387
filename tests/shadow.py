"""Who writes what before whom in a generated program: its text is walked without numbers, element by element.

Each element of an array remembers when it was first written since the array was declared, each byte of the shared
memory which array wrote it last, and all that is read is compared with that:

- an element is read after it was written, in the same turn of the loop where the array is declared in the loop;
- memory that arrays share holds what the reader's array wrote there, and arrays of one loop over elements lie apart;
- a carried value is read before its next one takes its place, and all of it is replaced or none;
- what was given is not read after it was written to, arrays and memory are large enough, and results are complete.

``Walk(source).check()`` raises ``AssertionError`` with the line. It reads the text alone and none of the objects
that formed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

__all__ = ["Walk"]

BYTES = {"float": 4, "double": 8, "int64_t": 8, "int32_t": 4, "bool": 1}
MOST = 1 << 21
NEVER = np.iinfo(np.int64).max
NAME = re.compile(r"(?<![\w.])([abcnop]\d+)\b(?!_)")
DECLARED = [
    (re.compile(r"(?:const )?(\w+) ([abcn]\d+) = (.*);"), "number"),
    (re.compile(r"(\w+) ([abcn]\d+);"), "number"),
    (re.compile(r"(\w+)\* const __restrict (a\d+) = .*"), "given"),
    (re.compile(r"(\w+)\* const __restrict (o\d+) = .*"), "made"),
    (re.compile(r"alignas\(64\) (\w+) (\w+)\[(.*)\];"), "frame"),
    (re.compile(r"(\w+)\* const (\w+) = \(\w+\*\)\(room \+ AT_\w+\);"), "room"),
]


class TooLong(Exception):
    """A program that is not walked, because one of its loops is too long."""


@dataclass
class Array:
    """What is known of a variable: for each element when it was first written, and for carried ones in this turn."""

    kind: str
    size: int
    numel: int | None = None
    at: int | None = None
    first: np.ndarray = field(default_factory=lambda: np.full(16, NEVER))

    def grown(self, n: int) -> np.ndarray:
        """The times, for at least n elements."""
        if n > len(self.first):
            self.first = np.concatenate([self.first, np.full(max(n, 2 * len(self.first)) - len(self.first), NEVER)])
        return self.first


@dataclass
class Loop:
    """A loop over elements."""

    name: str
    bound: int
    body: list[Any]
    line: str


def _length(nodes: list[Any]) -> int:
    return sum(x.bound * _length(x.body) if isinstance(x, Loop) else 1 for x in nodes)


class Walk:
    """A walk through the text of a program, with a batch of so many where it is open."""

    def __init__(self, source: Any, batch: int = 3) -> None:
        text = source.text
        self.lines = text[text.index("int run(") :].splitlines()[1:]
        self.source, self.names = source, {"B": batch, "W": (batch + 15) // 16 * 16}
        self.arrays: dict[str, Array] = {}
        self.factors: dict[str, list[list[str]]] = {}
        self.owner = np.zeros(source.room(batch), np.int32)
        self.ids: dict[str, int] = {}
        self.clock = 0
        self.carried: dict[str, np.ndarray] = {}
        self.touched: dict[str, tuple[int, int]] = {}
        self.line = ""

    def check(self) -> bool:
        """Walk through all of it, twice through each loop that is repeated while a condition holds; False where one is
        too long for that."""
        try:
            self._check()
        except TooLong:
            return False
        return True

    def _check(self) -> None:
        at = iter(self._tokens())
        for node in self._block(at):
            self._run(node)
        for i, made in enumerate(self.source.made):
            if made is not None:
                shape = [n if isinstance(n, int) else n(self.names["B"]) for n in made[0]]
                assert self._whole(f"o{i}", prod(shape)), f"o{i} is not complete"

    def _whole(self, name: str, numel: int) -> bool:
        return bool((self.arrays[name].grown(numel)[:numel] < NEVER).all())

    # Text to nodes.

    def _tokens(self) -> Iterator[str]:
        for line in self.lines:
            line = line.strip()
            while line:
                if line[0] in "{}":
                    yield line[0]
                    line = line[1:].strip()
                    continue
                if line.startswith("for ("):
                    end = line.index(")") + 1
                    yield line[:end]
                    line = line[end:].strip()
                    continue
                end = line.find(";") + 1 if not line.startswith(("#", "const Factors")) else len(line)
                yield line[: end or len(line)]
                line = line[end or len(line) :].strip()

    def _block(self, tokens: Iterator[str]) -> list[Any]:
        nodes: list[Any] = []
        for token in tokens:
            if token == "}":
                break
            node = self._node(token, tokens)
            if node is not None:
                nodes.append(node)
        return nodes

    def _node(self, token: str, tokens: Iterator[str]) -> Any:
        if token == "{":
            return Loop("", 1, self._block(tokens), token)
        if token == "for (;;)":
            assert next(tokens) == "{"
            return self._block(tokens)
        if token.startswith("for ("):
            found = re.fullmatch(r"for \(long (\w+) = 0; \w+ < (.*); \w+\+\+\)", token)
            assert found, token
            following = next(tokens)
            body = self._block(tokens) if following == "{" else [self._node(following, tokens)]
            return Loop(found[1], self._number(found[2]), body, token)
        found = re.fullmatch(r"const long AT_(\w+) = (.*);", token)
        if found:
            self.names["AT_" + found[1]] = self._number(found[2])
        return None if token.startswith(("#", "return", "int bad", "const long")) else token

    def _number(self, text: str) -> int:
        return int(eval(text.replace("/", "//"), {}, self.names))

    # Nodes in their order.

    def _run(self, node: Any) -> None:
        if isinstance(node, list):
            for _ in range(2):
                self._turn(node)
            self.carried = {}
            return
        self.touched = {}
        self._statements([node], {}, self.clock)
        self.clock += _length([node])
        self._apart()

    def _turn(self, nodes: list[Any]) -> None:
        carried = [name for name, a in self.arrays.items() if name.startswith("c") and a.kind != "given"]
        self.carried = {name: np.full(len(self.arrays[name].first), NEVER) for name in carried}
        for node in nodes:
            self._run(node)
        for name, times in self.carried.items():
            written = times[: int((self.arrays[name].first < NEVER).sum())] < NEVER
            assert written.all() or not written.any(), f"a part of {name} is replaced"

    def _statements(self, nodes: list[Any], loops: dict[str, tuple[int, int]], at: int) -> None:
        """Statements inside loops, each a name with its bound and the length of one turn; ``at`` is when they begin."""
        for node in nodes:
            if isinstance(node, Loop):
                self._statements(node.body, {**loops, node.name: (node.bound, _length(node.body))}, at)
                at += node.bound * _length(node.body)
            else:
                self.line = node
                self._statement(node, loops, at)
                at += 1

    def _statement(self, text: str, loops: dict[str, tuple[int, int]], at: int) -> None:
        grid = [bound for bound, _ in loops.values()]
        if prod(grid) > MOST:
            raise TooLong(text)
        names, when = dict(self.names), np.asarray(at, np.int64)
        for i, (name, (bound, length)) in enumerate(loops.items()):
            index = np.arange(bound).reshape([-1 if j == i else 1 for j in range(len(grid))])
            names[name], when = index, when + index * length
        when = np.broadcast_to(when, grid)
        for name in self._declared(text):
            self._write(name, np.zeros((), np.int64), at)
        if any(pattern.fullmatch(text) for pattern, _ in DECLARED[2:]) or "given[" in text:
            return
        if text.startswith("const Factors"):
            name, given = re.match(r"const Factors<\w+> (\w+)\[\] = \{(.*)\};", text).groups()  # pyright: ignore
            self.factors[name] = [_split(x) for x in re.findall(r"\{(.*?)\}", given)]
            return
        call = re.fullmatch(r"(\w+)<(.*?)>\((.*)\);", text)
        if call and call[1] in CALLS:
            reads, writes = CALLS[call[1]](self, [x.strip() for x in call[2].split(",")], _split(call[3]))
            for name, index in reads:
                self._read(name, index, np.asarray(at), inside=True)
            for name, index in writes:
                self._write(name, index, at)
            return
        target, mark, source = _assignment(text)
        for name, index in self._accesses(source if mark == "=" else text.rstrip(";")):
            self._read(name, np.broadcast_to(eval(index, {}, names), grid), when)
        if mark:
            for name, index in self._accesses(target):
                self._write(name, np.broadcast_to(eval(index, {}, names), grid), when)

    def _declared(self, text: str) -> Iterator[str]:
        for pattern, kind in DECLARED:
            found = pattern.fullmatch(text)
            if not found or found[2] == "bad":
                continue
            t, name = found[1], found[2]
            array = Array(kind, BYTES[t])
            if kind == "number":
                array.numel = 1
            elif kind == "frame":
                array.numel = self._number(found[3])
            elif kind == "room":
                array.at = self.names["AT_" + name]
            self.arrays[name] = array
            self.ids.setdefault(name, len(self.ids) + 1)
            if kind == "number" and "given[" in text:
                yield name
            return

    def _accesses(self, text: str) -> Iterator[tuple[str, str]]:
        """Variables in an expression, with the text of the index of the element."""
        rest = re.sub(r"\(&?([abcop]\d+)((?:\[[^\]]*\])?)\)\[", lambda m: f"{m[1]}[{m[2][1:-1] or 0} + ", text)
        for found in NAME.finditer(rest):
            index, end = "0", found.end()
            if rest[end : end + 1] == "[":
                index = rest[end + 1 : rest.index("]", end)]
                # A place in a table that the program finds is the first one here.
                for name in NAME.findall(index):
                    yield name, "0"
                index = NAME.sub("0", index)
            yield found[1], index

    # Elements.

    def _write(self, name: str, index: np.ndarray, when: Any) -> None:
        array = self._known(name, index)
        flat, times = np.ravel(index), np.ravel(np.broadcast_to(when, np.shape(index)))
        np.minimum.at(array.grown(int(flat.max()) + 1), flat, times)
        if name in self.carried:
            mine = self.carried[name]
            np.minimum.at(mine, flat, times)
        if array.at is not None:
            self.owner[self._bytes(array, flat)] = self.ids[name]

    def _read(self, name: str, index: np.ndarray, when: np.ndarray, inside: bool = False) -> None:
        array = self._known(name, index)
        flat, times = np.ravel(index), np.ravel(np.broadcast_to(when, np.shape(index)))
        first = array.grown(int(flat.max()) + 1)[flat]
        if array.kind == "given":
            assert (first == NEVER).all(), f"{name} is read after it was written to: {self.line}"
            return
        assert (first < times).all(), f"{name} is read before it is written: {self.line}"
        if name in self.carried:
            ok = self.carried[name][flat] > times
            assert ok.all(), f"{name} is read after its next value took its place: {self.line}"
        if array.at is not None:
            owners = self.owner[self._bytes(array, flat)]
            assert (owners == self.ids[name]).all(), f"what {name} holds was overwritten: {self.line}"

    def _known(self, name: str, index: np.ndarray) -> Array:
        assert name in self.arrays, f"{name} is not declared: {self.line}"
        array, low, high = self.arrays[name], int(np.min(index)), int(np.max(index))
        assert low >= 0 and (array.numel is None or high < array.numel), f"outside of {name}: {self.line}"
        if array.at is not None:
            begin, end = array.at + low * array.size, array.at + (high + 1) * array.size
            assert end <= len(self.owner), f"outside of the room: {self.line}"
            old = self.touched.get(name, (begin, end))
            self.touched[name] = min(begin, old[0]), max(end, old[1])
        return array

    def _bytes(self, array: Array, flat: np.ndarray) -> np.ndarray:
        return (array.at + np.unique(flat)[:, None] * array.size + np.arange(array.size)).ravel()

    def _apart(self) -> None:
        """Arrays that one loop over elements uses do not share memory."""
        spans = sorted((begin, end, name) for name, (begin, end) in self.touched.items())
        for (_, end, one), (begin, _, other) in zip(spans, spans[1:], strict=False):
            assert end <= begin, f"{one} and {other} share memory: {self.line}"

    # Products.

    def pointer(self, text: str) -> tuple[str, int] | None:
        """The array and the element that a pointer names; None for 0."""
        if text == "0":
            return None
        text = text.lstrip("&(")
        name, index = next(x for x in self._accesses(text) if text.startswith(x[0]))
        return name, self._number(index)

    def at(self, text: str, *axes: tuple[Any, Any]) -> list[tuple[str, np.ndarray]]:
        """Elements from a pointer on, along axes of so many elements with a stride."""
        place = self.pointer(text)
        sizes = [self._number(str(n)) for n, _ in axes]
        if place is None or 0 in sizes:
            return []
        if prod(sizes) > MOST:
            raise TooLong(text)
        index = np.full(sizes, place[1])
        for i, (n, (_, stride)) in enumerate(zip(sizes, axes, strict=True)):
            index += np.arange(n).reshape([-1 if j == i else 1 for j in range(len(sizes))]) * self._number(str(stride))
        return [(place[0], index)]


def _split(text: str) -> list[str]:
    """Arguments that commas part."""
    return [x.strip() for x in text.split(",")]


def _assignment(text: str) -> tuple[str, str, str]:
    """Target, sign and source of a statement; without a sign nothing is written."""
    text = text.rstrip(";")
    found = re.fullmatch(r"(?:const )?(?:\w+ )?((?:\([^)]*\)|\w+|\*\w+)(?:\[[^\]]*\])?) (\+?\|?&?=) (.*)", text)
    return (found[1], found[2], found[3]) if found else ("", "", text)


def _right(walk: Walk, b: str, brs: str, bcs: str, panels: str, every: bool, K: Any, N: int, W: int) -> Any:
    """What a product reads of its right factor: all panels, or whole columns as they lie and the last panel."""
    if every:
        return walk.at(panels, (-(-N // W) * W, 1), (K, -(-N // W) * W))
    return walk.at(b, (K, brs), (N // W * W, bcs)) + walk.at(panels, (K, W), (W if N % W else 0, 1))


def _pack(walk: Walk, sizes: list[str], given: list[str], K: Any = None) -> Any:
    N, W = map(walk._number, sizes[-2:])
    K = sizes[1] if K is None else K
    b, brs, bcs, out, every = given
    columns = -(-N // W) * W if every == "true" else W if N % W else 0
    first = 0 if every == "true" else N // W * W
    reads = [(name, i + first * walk._number(bcs)) for name, i in walk.at(b, (K, brs), (N - first, bcs))]
    return reads, walk.at(out, (K, columns), (columns, 1))


def _product(walk: Walk, M: Any, K: Any, N: int, W: int, given: list[str]) -> Any:
    a, ars, acs, b, brs, panels, every, c = given
    right = _right(walk, b, brs, "1", panels, every == "true", K, N, W)
    return walk.at(a, (M, ars), (K, acs)) + right, walk.at(c, (M, N), (N, 1))


def _sums(walk: Walk, M: Any, K: Any, N: int, W: int, kind: str, given: list[str]) -> Any:
    factors, panels, c, onto = given
    reads = []
    for a, b, ars, acs, brs, bcs in walk.factors[factors]:
        reads += walk.at(a, (M, ars), (K, acs))
        if kind == "GATHERED":
            reads += walk.at(b, (K, brs), (N, bcs))
        else:
            reads += _right(walk, b, brs, bcs, panels, kind == "PANELS", K, N, W)
    out = walk.at(c, (M, N), (N, 1))
    return reads + (out if onto == "true" else []), out


def _along(walk: Walk, M: Any, K: Any, N: Any, given: list[str]) -> Any:
    a, ars, b, bcs, c = given
    return walk.at(a, (M, ars), (K, 1)) + walk.at(b, (K, 1), (N, bcs)), walk.at(c, (M, N), (N, 1))


def _additions(walk: Walk, M: Any, K: Any, N: Any, given: list[str]) -> Any:
    a, ars, acs, b, brs, c = given
    return walk.at(a, (M, ars), (K, acs)) + walk.at(b, (K, brs), (N, 1)), walk.at(c, (M, N), (N, 1))


def _int(walk: Walk, *texts: str) -> list[int]:
    return [walk._number(x) for x in texts]


CALLS: dict[str, Any] = {
    "pack": _pack,
    "pack_of": lambda w, s, g: _pack(w, s, g[1:], g[0]),
    "product": lambda w, s, g: _product(w, s[1], s[2], *_int(w, *s[3:5]), g),
    "product_of": lambda w, s, g: _product(w, g[0], g[1], *_int(w, *s[4:6]), g[2:]),
    "sums": lambda w, s, g: _sums(w, s[1], s[2], *_int(w, *s[3:5]), s[6], g),
    "sums_of": lambda w, s, g: _sums(w, g[0], g[1], *_int(w, *s[4:6]), s[7], g[2:]),
    "products": lambda w, s, g: _along(w, *s[1:4], g),
    "products_of": lambda w, s, g: _along(w, *g[:3], g[3:]),
    "additions": lambda w, s, g: _additions(w, *s[1:4], g),
    "additions_of": lambda w, s, g: _additions(w, *g[:3], g[3:]),
}
"""What the functions of ``matmul_text`` read and write, by their template arguments and their arguments."""
