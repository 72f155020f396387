"""A program whose loop is replayed: the tensors that it holds, and how many turns are made before the host looks."""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dxdt.compiler.cuda.capture import Call, Capture
from dxdt.compiler.cuda.split_loop import Part, Parts

__all__ = ["Recent", "Replayed"]

# Turns between two looks of the host, where it is not known how many will be needed.
_GROUP = 8
# Bytes up to which an input is always copied to where the graph reads it.
_SMALL = 1 << 16
# Captured programs that are kept, with the tensors that they hold.
_KEPT = 32

Compiler = Callable[[torch.fx.GraphModule, list[Any]], Callable[..., Any]]


class Recent:
    """The captured programs of a device that were used last; the others let go of what they hold."""

    def __init__(self, most: int = _KEPT) -> None:
        self.most, self.order = most, OrderedDict[tuple[weakref.ref[Replayed], tuple[int, ...]], None]()

    def use(self, program: Replayed, sizes: tuple[int, ...]) -> None:
        """Note a use."""
        self.order[weakref.ref(program), sizes] = None
        self.order.move_to_end((weakref.ref(program), sizes))
        while len(self.order) > self.most:
            (kept, old), _ = self.order.popitem(last=False)
            other = kept()
            if other is not None:
                other.kept.pop(old, None)


class Replayed:
    """A callable program.

    Args:
        parts: its graphs.
        compiler: makes a function of a graph and what stands at its places.
        capture: makes work repeatable.
        recent: the programs of the same device.
    """

    def __init__(self, parts: Parts, compiler: Compiler, capture: Capture, recent: Recent) -> None:
        self.parts, self.capture, self.recent = parts, capture, recent
        compiled = lambda part: compiler(part.graph, [parts.examples[i] for i in part.takes])  # noqa: E731
        self.opening, self.turn = compiled(parts.opening), compiled(parts.turn)
        self.kept: dict[tuple[int, ...], _Held] = {}

    def __call__(self, *given: Any) -> Any:
        """The results for these inputs, in tensors of their own."""
        sizes = tuple(x for x in given if not isinstance(x, Tensor))
        with self.capture.alone(), torch.no_grad():
            self.recent.use(self, sizes)
            if sizes not in self.kept:
                self.kept[sizes] = _Held(self, given)
            return self.kept[sizes].run(given)


class _Held:
    """A program for inputs of some sizes: its places, and its work on them, captured or not.

    The first call is not captured: it makes everything ready, and shows which tensors stay where they
    are. From the second on work is captured, on copies of what is small, written to, or has moved. A tensor that
    moves later is copied from then on, so that captures come to an end.

    Attributes:
        places: what stands at each place during a call.
        own: copies that the work reads instead of what is given.
        known: where the other tensors were last time.
        turns: of the last call.
    """

    def __init__(self, program: Replayed, given: Sequence[Any]) -> None:
        parts = program.parts
        self.parts, self.capture = parts, program.capture
        self.functions = {"opening": program.opening, "turn": program.turn}
        self.device = parts.examples[parts.flag].device
        known = {x.node.expr: n for x, n in zip(parts.examples, given, strict=False) if isinstance(x, torch.SymInt)}
        held = [_sized(x, known) for x in parts.examples[parts.given + len(parts.constants) :]]
        with program.capture.holding():
            constants = [x.to(self.device) for x in parts.constants]
            self.places: list[Any] = [*[None] * parts.given, *constants, *[_room(x) for x in held]]
            self.own = {i: _room_like(x, self.device) for i, x in _tensors(given) if x.device != self.device}
        self.signal = program.capture.signal(self.places[parts.flag])
        self.known: dict[int, int] | None = None
        self.captured: dict[str, Call] = {}
        self.turns = 0

    def run(self, given: Sequence[Any]) -> Any:
        """One call."""
        self._take(given)
        try:
            self._do("opening")
            self._walk()
            results = self.parts.closing.graph(*[self.places[i] for i in self.parts.closing.takes])
            back = [i for i in self.parts.written if i in self.own]
            _copy([given[i] for i in back], [self.own[i] for i in back])
        finally:
            self.places[: self.parts.given] = [None] * self.parts.given
        return results

    def _take(self, given: Sequence[Any]) -> None:
        """Put what is given to its places, and capture the work where it is to find them elsewhere."""
        where = {i: x.data_ptr() for i, x in _tensors(given) if i not in self.own}
        if self.known is not None:
            apart = {i for i in where if _bytes(given[i]) <= _SMALL} | self.parts.written
            moved = [i for i, at in where.items() if at != self.known[i] or i in apart]
            if moved:
                self.captured.clear()
                with self.capture.holding():
                    self.own |= {i: _room_like(given[i], self.device) for i in moved}
        self.places[: len(given)] = [self.own.get(i, x) for i, x in enumerate(given)]
        _copy(list(self.own.values()), [given[i] for i in self.own])
        if self.known is not None and not self.captured:
            self.captured = {name: self._capture(name) for name in self.functions}
        self.known = {i: at for i, at in where.items() if i not in self.own}

    def _capture(self, name: str) -> Call:
        work = lambda: self._work(name)  # noqa: E731
        try:
            return self.capture(work)
        except RuntimeError as error:
            _warn(str(error))
            return work

    def _do(self, name: str) -> None:
        self.captured[name]() if name in self.captured else self._work(name)

    def _work(self, name: str) -> None:
        part: Part = getattr(self.parts, name)
        self.functions[name](*[self.places[i] for i in part.takes])

    def _walk(self) -> None:
        """Turns until the loop has ended.

        As many as last time are queued at once. Where that is not known, or was not enough, the host
        looks at a group while the next one runs.
        """
        self.signal.clear()
        ahead = not self.turns
        self._queue(self.turns or _GROUP)
        while True:
            if ahead:
                self._queue(_GROUP)
            going, turns = self.signal.wait()
            if not going:
                self.turns = turns
                return
            if not ahead:
                self._queue(_GROUP)
            ahead = True

    def _queue(self, turns: int) -> None:
        for _ in range(turns):
            self._do("turn")
        self.signal.send()


def _tensors(given: Sequence[Any]) -> list[tuple[int, Tensor]]:
    return [(i, x) for i, x in enumerate(given) if isinstance(x, Tensor)]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _sized(x: Tensor, known: dict[Any, int]) -> tuple[list[int], torch.dtype, torch.device]:
    """What a held tensor is like, with the sizes of this call for symbols."""
    shape = [int(s.node.expr.subs(known)) if isinstance(s, torch.SymInt) else s for s in x.shape]
    return shape, x.dtype, x.device


def _room(kind: tuple[list[int], torch.dtype, torch.device]) -> Tensor:
    shape, dtype, device = kind
    return torch.empty(shape, dtype=dtype, device=device)


def _room_like(x: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies in few operations: of each dtype together, and what repeats in memory once."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pair = kinds.setdefault((target.dtype, source.device), ([], []))
        pair[0].append(_once(target))
        pair[1].append(_once(source))
    for target, source in kinds.values():
        torch._foreach_copy_(target, source)  # pyright: ignore[reportPrivateImportUsage]


def _once(x: Tensor) -> Tensor:
    for axis, stride in enumerate(x.stride()):
        x = x.narrow(axis, 0, 1) if stride == 0 and x.shape[axis] > 1 else x
    return x


_warned: set[str] = set()


def _warn(error: str) -> None:
    cause = next((x.strip() for x in error.splitlines() if x.strip()), "unknown")
    if cause not in _warned:
        _warned.add(cause)
        warnings.warn(
            f"a compiled solve could not be captured as a CUDA graph, so its operations are launched one by one: "
            f"{cause} (let the field form its tensors on the device of the state and read no values)",
            RuntimeWarning,
            stacklevel=2,
        )
