"""Blocks as C++: loops over elements, reductions, products, and the memory that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from dxdt.compiler.native.buffers import Buffer, View, Work, contiguous
from dxdt.compiler.native.fusion import Block, Section
from dxdt.compiler.native.matmul_kinds import Kind, strides_of
from dxdt.compiler.native.sizes import Extents, Room

__all__ = ["Writer"]

# Bytes of an array that lies in the function's frame; larger ones share one piece of memory.
_LOCAL = 1024
# Float sums of more terms are formed in double.
_LONG_SUM = 256


def _split(shape: Sequence[int], strides: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Strides of a view for loops of the given sizes, which refine its shape."""
    out, rest = [], list(reversed(sizes))
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        step = stride
        while size > 1:
            part = rest.pop(0)
            out.append(step)
            step, size = step * part, size // part
    assert not rest
    return list(reversed(out))


def _merged(sizes: list[int], strides: list[list[Any]]) -> tuple[list[int], list[list[Any]]]:
    """Fewer, longer loops where all views allow it."""
    i = len(sizes) - 2
    while i >= 0:
        if all(s[i] == s[i + 1] * sizes[i + 1] for s in strides):
            sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
            for s in strides:
                s[i : i + 2] = [s[i + 1]]
        i -= 1
    return sizes, strides


@dataclass
class Writer:
    """The text of a function body and what it declares.

    Attributes:
        extents: the sizes that follow from one number.
        lines: of the code.
        large: arrays that share the piece of memory, with the first and the last line that use them.
    """

    extents: Extents
    lines: list[str] = field(default_factory=list)
    large: dict[Buffer, tuple[int, int]] = field(default_factory=dict)
    held: set[Buffer] = field(default_factory=set)
    depth: int = 1

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def array(self, buffer: Buffer, held: bool = False) -> None:
        """Declare an array; ``held`` keeps it for the whole function."""
        assert buffer.numel is not None
        if buffer.numel * buffer.dtype.itemsize <= _LOCAL:
            self.line(f"alignas(64) {buffer.type} {buffer.name}[{buffer.numel}];")
            return
        self.large[buffer] = (len(self.lines), len(self.lines))
        if held:
            self.held.add(buffer)
        self.line(f"{buffer.type}* const {buffer.name} = ({buffer.type}*)(room + AT_{buffer.name});")

    def read(self, view: View) -> str:
        """The expression of a single number."""
        self._use(view.buffer)
        return _address(view, ())

    def copy(self, target: View, source: View) -> None:
        """Copy elements, which need not lie densely at the source."""
        for view in (target, source):
            self._use(view.buffer)
        shape = target.shape
        sizes = [n for n in shape if n != 1]
        views = [v for v in (target, source.spread(shape)) if not v.buffer.scalar]
        sizes, strides = _merged(sizes, [_split(shape, v.strides, sizes) for v in views])
        self._open(sizes)
        value = source.buffer.name if source.buffer.scalar else _address(source, strides[1])
        self.line(f"{_address(target, strides[0])} = {value};")
        self._close(sizes)
        for view in (target, source):
            self._use(view.buffer)

    def _open(self, sizes: Sequence[int]) -> None:
        for i, size in enumerate(sizes):
            if i == len(sizes) - 1 and size > 4:
                self.lines.append("#pragma omp simd")
            self.line(f"for (long i{i} = 0; i{i} < {size}; i{i}++) {{")
            self.depth += 1

    def _close(self, sizes: Sequence[int]) -> None:
        for _ in sizes:
            self.depth -= 1
            self.line("}")

    def section(self, section: Section) -> None:
        """The code of all blocks of a section."""
        for block in section.blocks:
            self.block(block, section.before is None)

    def block(self, block: Block, held: bool = False) -> None:
        """One loop, or one reduction or product."""
        for step in block.steps:
            buffer = step if isinstance(step, Buffer) else step[0].buffer
            fresh = buffer.work is not None and buffer not in self.large
            if isinstance(step, Buffer) and not step.scalar and step.kept:
                if step.home is None:
                    self.array(step, held)
            elif not isinstance(step, Buffer) and fresh and not buffer.declared:
                buffer.declared = True
                self.array(buffer, held)
        if block.numel == 0:
            (only,) = block.steps
            assert isinstance(only, Buffer) and only.work is not None
            {"sum": self._reduction, "pack": self._pack, "product": self._product}[only.work.kind](only, only.work)
        else:
            self._loop(block)

    def _views(self, block: Block) -> list[tuple[View, tuple[int, ...]]]:
        """Every view that the block reads from memory or writes, with the shape that it runs over."""
        formed = {step for step in block.steps if isinstance(step, Buffer)}
        views: list[tuple[View, tuple[int, ...]]] = []
        for step in block.steps:
            if isinstance(step, Buffer):
                assert step.work is not None
                shape, reads = step.work.shape, step.work.operands
                if step.kept and not step.scalar:
                    views.append((View.of(step, shape), shape))
            else:
                shape, reads = step[1].shape, step[1:]
                views.append((step[0], shape))
            views += [(v.spread(shape), shape) for v in reads if not v.buffer.scalar and v.buffer not in formed]
        return views

    def _loop(self, block: Block) -> None:
        marks = sorted(block.marks)
        sizes = [b // a for a, b in zip([1, *marks], marks, strict=False)][::-1]
        views = list(dict.fromkeys(self._views(block)))
        strides = [_split(shape, v.strides, sizes) for v, shape in views]
        sizes, strides = _merged(sizes, strides)
        at = {key: _address(key[0], s) for key, s in zip(views, strides, strict=True)}
        self._open(sizes)
        self._statements(block, at)
        self._close(sizes)

    def _statements(self, block: Block, at: dict[tuple[View, tuple[int, ...]], str]) -> None:
        formed: set[Buffer] = set()
        loaded: dict[str, str] = {}

        def read(view: View, shape: tuple[int, ...]) -> str:
            self._use(view.buffer)
            if view.buffer in formed:
                return view.buffer.name if view.buffer.scalar else f"r_{view.buffer.name}"
            if view.buffer.scalar:
                return view.buffer.name
            place = at[(view.spread(shape), shape)] if block.numel != 1 else _address(view, ())
            if place not in loaded:
                loaded[place] = f"l{len(self.lines)}"
                self.line(f"const {view.buffer.type} {loaded[place]} = {place};")
            return loaded[place]

        for step in block.steps:
            if isinstance(step, Buffer):
                work = step.work
                assert work is not None
                reads = [read(v, work.shape) for v in work.operands]
                name = step.name if step.scalar else f"r_{step.name}"
                self.line(f"const {step.type} {name} = {work.text(*reads)};")
                formed.add(step)
                if step.kept and not step.scalar:
                    self._use(step)
                    self.line(f"{at[(View.of(step, work.shape), work.shape)]} = {name};")
            else:
                target, source = step
                value = read(source, source.shape)
                self._use(target.buffer)
                place = at[(target, source.shape)] if block.numel != 1 else _address(target, ())
                self.line(f"{place} = {value};")

    def _use(self, buffer: Buffer) -> None:
        buffer = buffer.home or buffer
        if buffer in self.large:
            self.large[buffer] = (self.large[buffer][0], len(self.lines))

    def _reduction(self, out: Buffer, work: Work) -> None:
        """A sum, maximum or ``any`` over some axes, which are given in ``detail``."""
        (view,) = work.operands
        self._use(view.buffer)
        over, start, step = work.detail["over"], work.detail["start"], work.detail["step"]
        kept = [i for i in range(len(view.shape)) if i not in over]
        scalar = out.scalar
        name = out.name if scalar else f"{out.name}_"
        read = view.buffer.name if view.buffer.scalar else None
        dims = [(i, view.shape[i]) for i in kept]
        inner = [(i, view.shape[i]) for i in over]
        out_at = " + ".join(
            f"i{i} * {s}" for (i, n), s in zip(dims, contiguous([n for _, n in dims]), strict=True) if n != 1
        )
        place = _address(view, view.strides, view.shape) if read is None else read
        # Many small numbers are lost beside their sum in float.
        wide = out.type == "float" and work.detail["name"] == "sum" and prod(n for _, n in inner) > _LONG_SUM
        kind, sum_of = ("double", f"{out.name}_") if wide else (out.type, name)
        columns = not wide and not scalar and view.shape and (len(view.shape) - 1) not in over and view.strides[-1] == 1
        if columns:
            # The last axis stays: whole rows are added, so that the loop inside runs over dense memory.
            self._nest(dims, f"{out.name}[{out_at or 0}] = {start};")
            self._nest([*inner, *dims], f"{step(f'{out.name}[{out_at or 0}]', place)}", simd=True)
            return
        self.line("{" if not scalar else f"{kind} {sum_of} = {start};")
        if not scalar:
            self.depth += 1
        for i, n in [] if scalar else dims:
            self.line(f"for (long i{i} = 0; i{i} < {n}; i{i}++) {{")
        if not scalar:
            self.line(f"{kind} {sum_of} = {start};")
        sums = f"+:{sum_of}" if work.detail["name"] == "sum" else ""
        self._nest(inner if not scalar else [*dims, *inner], step(sum_of, place), reduce=sums)
        if wide and scalar:
            self.line(f"{out.type} {name} = {sum_of};")
        if not scalar:
            self.line(f"{out.name}[{out_at or 0}] = {name};")
            for _ in dims:
                self.line("}")
            self.depth -= 1
            self.line("}")

    def _nest(self, dims: Iterable[tuple[int, int]], body: str, simd: bool = False, reduce: str = "") -> None:
        dims = [(i, n) for i, n in dims if n != 1]
        for j, (i, n) in enumerate(dims):
            if j == len(dims) - 1 and n > 4 and (simd or reduce):
                self.lines.append("#pragma omp simd" + (f" reduction({reduce})" if reduce else ""))
            self.line(f"for (long i{i} = 0; i{i} < {n}; i{i}++) {{")
        self.line(body)
        self.line("}" * len(dims))

    def _pack(self, out: Buffer, work: Work) -> None:
        """Columns of a matrix beside each other, as products read them."""
        (b,) = work.operands
        self._use(b.buffer)
        (k, n), width = b.shape, work.detail["width"]
        (brs, bcs), t = (_stride(b, -2), _stride(b, -1)), out.type
        every = "false" if bcs == 1 else "true"
        call = f"{_pointer(b)}, {brs}, {bcs}, {out.name}, {every}"
        if self.extents.open(k):
            self.line(f"pack_of<{t}, {n}, {width}>({k}, {call});")
        else:
            self.line(f"pack<{t}, {k}, {n}, {width}>({call});")

    def _product(self, out: Buffer, work: Work) -> None:
        """A product, or a sum of several, which may be added to what lies in its place."""
        form, pairs = work.detail["form"], work.detail["pairs"]
        for x in (*work.operands, View.of(out, work.shape)):
            self._use(x.buffer)
        a, b = work.operands[:2]
        (m, k), n, t = a.shape, b.shape[1], out.type
        ars, acs, brs, bcs = strides_of(a, b)
        pa, pb, pc = _pointer(a), _pointer(b), f"&{out.name}" if out.scalar else out.name
        if out.scalar:
            self.line(f"{t} {out.name};")
        packed = [x.buffer.name for x in work.operands[2 * pairs :] if form.packs] or ["0"]
        every = "false" if bcs == 1 else "true"
        match form.kind:
            case Kind.DOTS:
                self._dots(pa, ars, acs, pb, brs, m, k, pc, t)
            case Kind.ROWS:
                self.line(f"{self._sized('products', t, m, k, n)}{pa}, {ars}, {pb}, {bcs}, {pc});")
            case Kind.ADDITIONS:
                self.line(f"{self._sized('additions', t, m, k, n)}{pa}, {ars}, {acs}, {pb}, {brs}, {pc});")
            case Kind.TILES:
                call = f"{pa}, {ars}, {acs}, {pb}, {brs}, {packed[0]}, {every}, {pc}"
                self.line(f"{self._sized('product', t, m, k, n, form.width)}{call});")
            case right:
                given = ", ".join(map(_factors, work.operands[: 2 * pairs : 2], work.operands[1 : 2 * pairs : 2]))
                onto = "true" if out.home is not None else "false"
                self.line(f"const Factors<{t}> f_{out.name}[] = {{{given}}};")
                call = f"f_{out.name}, {packed[0]}, {pc}, {onto}"
                self.line(f"{self._sized('sums', t, m, k, n, form.width, pairs, right.name)}{call});")

    def _sized(self, name: str, t: str, m: int, k: int, n: int, *rest: Any) -> str:
        """The beginning of a call of a product whose sizes are constants, or arguments where one is open."""
        open_m, open_k = self.extents.open(m), self.extents.open(k)
        more = "".join(f", {x}" for x in rest)
        if not (open_m or open_k):
            return f"{name}<{t}, {m}, {k}, {n}{more}>("
        if not rest:
            return f"{name}_of<{t}>({m}, {k}, {n}, "
        # The sizes of arrays in the frame, and the rows of a tile, stay constants.
        most = f"{min(m, 8) if not open_m else 8}, {min(m, 128)}, {'1 << 20' if open_k else k}"
        return f"{name}_of<{t}, {most}, {n}{more}>({m}, {k}, "

    def _dots(self, pa: str, ars: Any, acs: Any, pb: str, brs: Any, m: int, k: int, pc: str, t: str) -> None:
        self.line(f"for (long m = 0; m < {m}; m++) {{ {t} s = 0;")
        self.line(f"for (long k = 0; k < {k}; k++) s += ({pa})[m * {ars} + k * {acs}] * ({pb})[k * {brs}];")
        self.line(f"({pc})[m] = s; }}")

    def room(self) -> tuple[Room, dict[str, str]]:
        """The shared piece of memory, and where each large array begins in it.

        Arrays of known sizes lie first, then those that are as long as the batch, in multiples of it.
        """
        last = len(self.lines)
        spans: tuple[list[_Span], list[_Span]] = [], []
        for buffer, (first, final) in self.large.items():
            assert buffer.numel is not None
            size, open_ = buffer.numel * buffer.dtype.itemsize, self.extents.open(buffer.numel)
            size = self.extents.extent(size).most if open_ else size
            # The batch is rounded up to a multiple of 16.
            unit = 4 if open_ else 64
            span = _Span(first, last if buffer in self.held else final, -(-size // unit) * unit, buffer.name)
            spans[open_].append(span)
        (known, fixed), (multiple, each) = (_placed(x) for x in spans)
        where = {name: str(at) for name, at in known.items()}
        where |= {name: f"{fixed} + {at} * W" for name, at in multiple.items()}
        return Room(fixed, each), where


class _Span(NamedTuple):
    """Lines between which an array of so many bytes is used."""

    first: int
    final: int
    size: int
    name: str


def _placed(spans: list[_Span]) -> tuple[dict[str, int], int]:
    """Where each array begins, and the bytes of all together."""
    placed: list[tuple[int, int, int, int]] = []
    where: dict[str, int] = {}
    for first, final, size, name in sorted(spans, key=lambda s: (-s.size, s.first)):
        at = 0
        for _, _, begin, end in sorted((p for p in placed if p[0] <= final and first <= p[1]), key=lambda p: p[2]):
            if at + size <= begin:
                break
            at = max(at, end)
        placed.append((first, final, at, at + size))
        where[name] = at
    return where, max((p[3] for p in placed), default=0)


def _stride(view: View, axis: int) -> Any:
    """A stride that counts: of an axis with one element it is that of dense rows."""
    size = view.shape[axis]
    if size != 1:
        return view.strides[axis]
    return 1 if axis == -1 else view.shape[-1]


def _address(view: View, strides: Sequence[Any], sizes: Sequence[int] | None = None) -> str:
    """The element of a view at the present turn of the loops."""
    if view.buffer.scalar:
        return view.buffer.name
    terms = [
        f"i{i} * {s}" if s != 1 else f"i{i}"
        for i, s in enumerate(strides)
        if s != 0 and (sizes is None or sizes[i] != 1)
    ]
    if view.offset:
        terms.append(str(view.offset))
    if view.index is not None:
        terms.append(f"{view.index.buffer.name} * {view.step}")
    return f"{view.buffer.name}[{' + '.join(terms) or 0}]"


def _factors(a: View, b: View) -> str:
    """Two factors as a constant of C++."""
    return f"{{{_pointer(a)}, {_pointer(b)}, {', '.join(map(str, strides_of(a, b)))}}}"


def _pointer(view: View) -> str:
    """Where a view begins."""
    return f"&{_address(view, ())}"
