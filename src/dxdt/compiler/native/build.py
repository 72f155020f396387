"""Native code built once, kept on disk by its content, and called on tensors."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from dxdt.compiler.native.buffers import Unsupported
from dxdt.compiler.native.program import Source
from dxdt.compiler.native.sizes import Extent
from dxdt.ops.cpp import Refused
from dxdt.ops.cpp import library as built

__all__ = ["Native", "load"]

_FLAGS = (
    *("-std=c++17", "-shared", "-fPIC", "-w", "-O3", "-march=native", "-fopenmp-simd"),
    *("-fwrapv", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# Elements of a vector that shares its memory with others.
_SHORT = 1024
# Bytes of memory to work in that a thread keeps for its next call.
_KEPT = 1 << 26


@lru_cache(maxsize=1)
def _wide() -> tuple[str, ...]:
    return ("-mprefer-vector-width=512",) if "AVX512" in torch.backends.cpu.get_cpu_capability() else ()


def load(source: Source) -> Native:
    """The program of a source, from disk where it was built before.

    Raises:
        Unsupported: there is no compiler that builds it.
    """
    try:
        library = built(source.text, (*_FLAGS, *_wide()))
    except Refused as error:
        raise Unsupported(str(error)) from error
    return Native(source, library.run)


class _Room(threading.local):
    """Memory that the programs of a thread work in, one after the other.

    Fresh pages cost more than what small products write into them: a third of a solve, once.
    """

    def __init__(self) -> None:
        self._kept = torch.empty(0, dtype=torch.uint8, device="cpu")

    def of(self, size: int) -> Tensor:
        """So many bytes at least, with anything in them."""
        if size > _KEPT:
            return torch.empty(size, dtype=torch.uint8, device="cpu")
        if size > len(self._kept):
            self._kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._kept


_room = _Room()


class Native:
    """A program that can be called."""

    def __init__(self, source: Source, run: Callable[..., int]) -> None:
        self._run, self._size, self._batch = run, source.room, source.batch
        run.restype = ctypes.c_int  # pyright: ignore[reportFunctionMemberAccess]
        self._numbers = [i for i, tensor in enumerate(source.given) if not tensor]
        self._pointers = ctypes.c_void_p * len(source.given)
        self._places = ctypes.c_void_p * max(1, len(source.made))
        self._blank: list[Any] = [None] * len(source.made)
        # Short vectors are cut from one piece a dtype: most of the cost of a short solve would be their making.
        short: dict[torch.dtype, list[tuple[int, tuple[int, ...]]]] = {}
        self._long: list[tuple[int, tuple[int, ...], torch.dtype]] = []
        self._open: list[tuple[int, tuple[int | Extent, ...], torch.dtype]] = []
        for i, made in enumerate(source.made):
            if made is None:
                continue
            shape = tuple(n for n in made[0] if isinstance(n, int))
            if len(shape) < len(made[0]):
                self._open.append((i, *made))
            elif len(shape) <= 1 and prod(shape) <= _SHORT:
                short.setdefault(made[1], []).append((i, shape))
            else:
                self._long.append((i, shape, made[1]))
        self._short = [_Group.of(dtype, members) for dtype, members in short.items()]

    def serves(self, graph: fx.GraphModule) -> bool:
        """Whether it takes and returns what a graph does, as it is: nothing is told apart, joined or copied back
        around it."""
        inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
        outputs = graph.graph.output_node().args[0]
        return len(self._pointers()) == inputs and isinstance(outputs, tuple) and len(self._blank) == len(outputs)

    def __call__(self, *given: Any) -> tuple[Tensor | None, ...]:
        """The new tensors.

        Raises:
            IndexError: an index lies outside its table.
        """
        numbers = [(i, ctypes.c_int64(given[i])) for i in self._numbers]
        given = tuple([_written_out(x) if isinstance(x, Tensor) and x.is_neg() else x for x in given])
        pointers = [x.data_ptr() if isinstance(x, Tensor) else 0 for x in given]
        for i, number in numbers:
            pointers[i] = ctypes.addressof(number)
        made, places = self._blank.copy(), self._blank.copy()
        for i, shape, dtype in self._long:
            made[i] = x = torch.empty(shape, dtype=dtype, device="cpu")
            places[i] = x.data_ptr()
        batch = 0 if self._batch is None else given[self._batch]
        for i, open_, dtype in self._open:
            made[i] = x = torch.empty([n if isinstance(n, int) else n(batch) for n in open_], dtype=dtype)
            places[i] = x.data_ptr()
        for dtype, size, at, sizes, offsets, flat in self._short:
            piece = torch.empty(size, dtype=dtype, device="cpu")
            start = piece.data_ptr()
            for i, part, offset in zip(at, piece.split_with_sizes(sizes), offsets, strict=True):
                made[i], places[i] = part, start + offset
            for i in flat:
                made[i] = made[i].view(())
        room = _room.of(self._size(batch))
        if self._run(self._pointers(*pointers), self._places(*places), ctypes.c_void_p(room.data_ptr())):
            raise IndexError("an index that the field computes lies outside its table")
        return tuple(made)


def _written_out(x: Tensor) -> Tensor:
    """A tensor whose memory holds its values, where it is marked as their negative, with the strides it has."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


class _Group(NamedTuple):
    """Short vectors and numbers of one dtype in one piece.

    Attributes:
        size: numbers in the piece.
        at, sizes, offsets: for each which output it is, how many numbers it has, and where it begins, in bytes.
        flat: those that are numbers.
    """

    dtype: torch.dtype
    size: int
    at: tuple[int, ...]
    sizes: list[int]
    offsets: tuple[int, ...]
    flat: tuple[int, ...]

    @classmethod
    def of(cls, dtype: torch.dtype, members: list[tuple[int, tuple[int, ...]]]) -> _Group:
        sizes = [prod(shape) for _, shape in members]
        starts = (0, *accumulate(sizes))
        return cls(
            dtype,
            starts[-1],
            tuple(i for i, _ in members),
            sizes,
            tuple(dtype.itemsize * start for start in starts[:-1]),
            tuple(i for i, shape in members if not shape),
        )
