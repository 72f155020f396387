"""Which loop computes what: works are placed where they are first needed, into loops that fit.

Works over equally many elements share a loop where the order of elements agrees; what stays in one
loop is kept in registers. Single numbers form straight code, as early as they can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dxdt.compiler.native.buffers import Buffer, View, Work

__all__ = ["Block", "Section", "marks_of"]


def marks_of(shape: Sequence[int]) -> frozenset[int]:
    """Where rows of each size end, counted in elements from the last axis."""
    out, total = set(), 1
    for size in reversed(shape):
        total *= size
        out.add(total)
    return frozenset(out - {1})


def _nested(marks: frozenset[int]) -> bool:
    ordered = sorted(marks)
    return all(b % a == 0 for a, b in zip(ordered, ordered[1:], strict=False))


@dataclass(eq=False)
class Block:
    """A loop over equally many elements (straight code for one), or a work that is alone.

    Attributes:
        numel: elements, 0 for a work that is alone.
        marks: ends of rows that its works know of.
        steps: buffers that are formed, and pairs of a target and what is stored there.
    """

    numel: int
    marks: frozenset[int]
    steps: list[Buffer | tuple[View, View]] = field(default_factory=list)


@dataclass(eq=False)
class Section:
    """Code that runs in one go; a section inside a loop has another before the loop for what is fixed.

    Attributes:
        name: for messages.
        before: where fixed values go, or None.
    """

    name: str
    before: Section | None = None
    blocks: list[Block] = field(default_factory=list)

    def need(self, view: View) -> View:
        """Place all that computes a view, and the view's index."""
        self._demand(view.buffer)
        if view.index is not None:
            self.need(view.index)
        if view.buffer.work is not None and not view.buffer.scalar:
            view.buffer.kept = True
        return view

    def store(self, target: View, source: View, after: int = -1) -> int:
        """Place a store after all that it needs; returns the block's number."""
        self._demand(source.buffer)
        for index in (source.index, target.index):
            if index is not None:
                self.need(index)
        least = max(after + 1, self._least([source, *(x for x in (target.index, source.index) if x)], source.numel))
        i = self._block(source.numel, source.shape, least)
        self.blocks[i].steps.append((target, source))
        self._read(source, i)
        return i

    def _demand(self, buffer: Buffer) -> None:
        """Place a buffer's work after all that it reads, without recursion: graphs are deep."""
        stack = [buffer]
        while stack:
            top = stack[-1]
            if top.work is None or top.place is not None:
                stack.pop()
                continue
            open_ = [b for b in _read_by(top.work) if b.work is not None and b.place is None]
            if open_:
                stack.extend(reversed(open_))
                continue
            stack.pop()
            home = self.before if top.fixed and self.before is not None else self
            home._place(top, top.work)

    def _place(self, buffer: Buffer, work: Work) -> None:
        if work.kind == "store":
            buffer.kept, last = True, -1
            buffer.place = (self, 0)
            for target, source in work.stores:
                ordered = last if work.detail.get("ordered") else -1
                at = self.store(target, source, ordered)
                last = max(last, at)
            buffer.place = (self, last)
            return
        alone = work.kind != "point"
        least = self._least(work.operands, 0 if alone else work_size(work))
        if alone:
            self.blocks.append(Block(0, frozenset()))
            i = len(self.blocks) - 1
        else:
            i = self._block(work_size(work), work.shape, least)
        self.blocks[i].steps.append(buffer)
        buffer.place = (self, i)
        if alone and not buffer.scalar:
            buffer.kept = True
        for view in work.operands:
            self._read(view, i, alone)

    def _least(self, operands: Sequence[View], numel: int) -> int:
        """The first block that may read these."""
        least = 0
        for view in (*operands, *(v.index for v in operands if v.index is not None)):
            buffer = view.buffer
            if buffer.place is None or buffer.place[0] is not self:
                continue
            at = buffer.place[1]
            joins = buffer.work is not None and buffer.work.kind == "point" and numel == buffer.numel and view.whole
            least = max(least, at if joins else at + 1)
        return least

    def _block(self, numel: int, shape: Sequence[int], least: int) -> int:
        """A block for a work over ``shape``, not before ``least``."""
        marks = marks_of(shape)
        fits = [
            i
            for i in range(least, len(self.blocks))
            if self.blocks[i].numel == numel and _nested(self.blocks[i].marks | marks)
        ]
        if fits:
            i = fits[0] if numel == 1 else fits[-1]
            self.blocks[i].marks |= marks
            return i
        self.blocks.append(Block(numel, marks))
        return len(self.blocks) - 1

    def _read(self, view: View, block: int, alone: bool = False) -> None:
        buffer = view.buffer
        if buffer.work is None or buffer.scalar:
            return
        here = buffer.place == (self, block) and view.whole and not alone
        if not here:
            buffer.kept = True


def work_size(work: Work) -> int:
    """Elements of a work."""
    total = 1
    for size in work.shape:
        total *= size
    return total


def _read_by(work: Work) -> Iterator[Buffer]:
    for view in (*work.operands, *(source for _, source in work.stores)):
        yield view.buffer
        if view.index is not None:
            yield view.index.buffer
