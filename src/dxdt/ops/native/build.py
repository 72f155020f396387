"""Native code built once, kept on disk by its content, and called on tensors."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from dxdt.ops.native.library import Refused, build, folder, machine
from dxdt.ops.native.program import Source
from dxdt.ops.native.values import Unsupported

__all__ = ["Native", "load"]

_FLAGS = (
    *("-std=c++17", "-shared", "-fPIC", "-w", "-O3", "-march=native", "-fopenmp-simd"),
    *("-fwrapv", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# Elements of a vector that shares its memory with others.
_SHORT = 1024
# Bytes of memory to work in that a thread keeps for its next call.
_KEPT = 1 << 26


@lru_cache(maxsize=4)
def _compiler(named: str | None) -> tuple[str, tuple[str, ...]]:
    compiler = import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    wide = ("-mprefer-vector-width=512",) if "AVX512" in torch.backends.cpu.get_cpu_capability() else ()
    return compiler, wide


def load(source: Source) -> Native:
    """The program of a source, from disk where it was built before.

    Raises:
        Unsupported: there is no compiler that builds it.
    """
    try:
        compiler, wide = _compiler(os.environ.get("CXX"))
    except Exception as error:
        raise Unsupported(f"no C++ compiler ({type(error).__name__})") from error
    flags = [*_FLAGS, *wide]
    key = sha256(repr((source.key, compiler, flags, machine())).encode()).hexdigest()[:40]
    path = folder() / f"{key}.so"
    if not path.exists():
        try:
            build(compiler, flags, source.text, path)
        except Refused as error:
            raise Unsupported(str(error)) from error
    return Native(source, ctypes.CDLL(str(path)).run)


class _Room(threading.local):
    """Memory that the programs of a thread work in, one after the other.

    Fresh pages cost more than what small products write into them: a third of a solve, once.
    """

    def __init__(self) -> None:
        self._kept = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        """So many bytes at least, with anything in them."""
        if size > _KEPT:
            return torch.empty(size, dtype=torch.uint8)
        if size > len(self._kept):
            self._kept = torch.empty(size, dtype=torch.uint8)
        return self._kept


_room = _Room()


class Native:
    """A program that can be called."""

    def __init__(self, source: Source, run: Callable[..., int]) -> None:
        self._run, self._given, self._made, self._size = run, source.given, source.made, source.room
        run.restype = ctypes.c_int  # pyright: ignore[reportFunctionMemberAccess]
        self._pointers = ctypes.c_void_p * len(source.given)
        self._places = ctypes.c_void_p * max(1, len(source.made))
        # Short vectors are cut from one piece a dtype: most of the cost of a short solve would be their making.
        short: dict[torch.dtype, list[int]] = {}
        for i, made in enumerate(source.made):
            if made is not None and len(made[0]) <= 1 and prod(made[0]) <= _SHORT:
                short.setdefault(made[1], []).append(i)
        self._short = [(dtype, at, [prod(source.made[i][0]) for i in at]) for dtype, at in short.items()]  # pyright: ignore[reportOptionalSubscript]
        self._long = [(i, *m) for i, m in enumerate(source.made) if m is not None and i not in short.get(m[1], ())]
        self._flat = [i for _, at, _ in self._short for i in at if not source.made[i][0]]  # pyright: ignore[reportOptionalSubscript]

    def __call__(self, *given: Any) -> tuple[Tensor | None, ...]:
        """The new tensors.

        Raises:
            IndexError: an index lies outside its table.
        """
        held = [x if tensor else ctypes.c_int64(x) for x, tensor in zip(given, self._given, strict=True)]
        pointers = [x.data_ptr() if isinstance(x, Tensor) else ctypes.addressof(x) for x in held]
        made: list[Any] = [None] * len(self._made)
        for i, shape, dtype in self._long:
            made[i] = torch.empty(shape, dtype=dtype)
        for dtype, at, sizes in self._short:
            for i, part in zip(at, torch.empty(sum(sizes), dtype=dtype).split_with_sizes(sizes), strict=True):
                made[i] = part
        places = [0 if m is None else m.data_ptr() for m in made]
        room = _room.of(self._size)
        if self._run(self._pointers(*pointers), self._places(*places), ctypes.c_void_p(room.data_ptr())):
            raise IndexError("an index that the field computes lies outside its table")
        for i in self._flat:
            made[i] = made[i].view(())
        return tuple(made)
