"""Read pickles without running what they ask for.

A pickle is a program. Here it may name tensors, plain containers and numbers; every class of a network becomes a
`Record` of its attributes, and anything else is refused before it is called. What it may name is called here only
with arguments that were looked at, so that no tensor lies outside its storage and nothing takes longer than the
file's length explains.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from typing import Any, BinaryIO, Protocol, final

import numpy as np
import torch
from torch import Tensor

from dxdt.interop.budget import Budget
from dxdt.interop.records import Record, Shell, module_kind
from dxdt.interop.storages import DTYPES, StorageKind, rebuilt

__all__ = ["Restricted", "Source"]

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_CODES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_TORCH_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
_MOST_KEYS = 8
_LARGEST_KEY = 1 << 53


class Source(Protocol):
    """Where the storages of a pickle are."""

    def storage(self, reference: Any) -> Any:
        """Return what a persistent reference stands for."""
        ...

    def within(self, content: bytes) -> Any:
        """Return the storage that is written inside the pickle."""
        ...


def _persistent(meta: Any) -> Record:
    """What NVIDIA's persistence writes, without its source text."""
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        raise pickle.UnpicklingError("a persistent object without attributes")
    return Record(str(meta.get("class_name", "")), dict(state))


def _parameter(data: Any, requires_grad: Any = False, hooks: Any = None, state: Any = None) -> Tensor:
    """The tensor of a parameter."""
    del requires_grad, hooks, state
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


@final
class _Dtype:
    """Stands for numpy.dtype, whose own state could hold pointers: a code of plain numbers, little-endian."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        del align, copy
        self.code = code.lstrip("<=|") if isinstance(code, str) else ""
        if self.code not in _CODES:
            raise pickle.UnpicklingError(f"it asks for a numpy dtype {str(code)[:20]!r}")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            raise pickle.UnpicklingError("it asks for a numpy dtype that is big-endian")


def _scalar(dtype: Any, content: Any) -> Any:
    """A number of numpy's as one of Python's."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it asks for a numpy scalar without a dtype")
    # Pickles of protocol 2 write bytes as text.
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype=dtype.code)[0].item()


@final
class _Array:
    """Stands for an array of numpy's, which no network needs: whatever makes or fills it is forgotten."""

    def __init__(self, *args: Any) -> None:
        del args

    def __setstate__(self, state: Any) -> None:
        del state


def _key(value: Any) -> Any:
    """A key of a dictionary, or an entry of a set: of a kind whose hash and comparison are fast.

    Hashes of nested tuples take time exponential in their depth, and those of large integers can be made to collide.
    """
    if value is None or isinstance(value, str | bytes | torch.dtype):
        return value
    if isinstance(value, int | float) and (isinstance(value, bool) or abs(value) < _LARGEST_KEY):
        return value
    if type(value) is tuple and len(value) <= _MOST_KEYS and not any(isinstance(v, tuple) for v in value):
        return tuple(_key(v) for v in value)
    raise pickle.UnpicklingError(f"a {type(value).__name__} is a key of a dictionary or set")


def _filled(kind: type, args: tuple[Any, ...]) -> Any:
    """A dictionary from pairs, or a set from entries."""
    if not args:
        return kind()
    (entries,) = args
    if issubclass(kind, dict):
        pairs = entries.items() if isinstance(entries, dict) else entries
        return kind((_key(k), v) for k, v in pairs)
    return kind(_key(v) for v in entries)


_KEYED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "dict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "frozenset"): frozenset,
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "slice"): slice,
    ("builtins", "bool"): bool,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    ("numpy", "ndarray"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Array,
}


def _size(value: Any) -> int:
    """What it costs to copy a value once."""
    return 8 + (8 * len(value) if isinstance(value, Sized) and not isinstance(value, Tensor) else 0)


@final
class _Call:
    """A call that a pickle may make, paid for by the sizes of its arguments."""

    def __init__(self, call: Callable[..., Any], budget: Budget) -> None:
        self.call, self.budget = call, budget

    def __call__(self, *args: Any) -> Any:
        self.budget.spend(sum(map(_size, args)))
        return self.call(*args)


@final
class _Bounded:
    """A file that is not read beyond its end, whatever length is asked for."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file, self.length = file, length
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        """Return so many bytes."""
        if not 0 <= count <= self.length - self.file.tell():
            raise pickle.UnpicklingError("pickle data was truncated")
        return self.file.read(count)


@final
class Restricted(pickle._Unpickler):
    """An unpickler that knows a list of harmless globals and no others, and changes nothing but what it made.

    Args:
        file: at the beginning of a pickle.
        length: bytes of the file.
        source: where its storages are, or None where it has none.
        budget: what may be spent.
    """

    # The unpickler in C would set attributes of anything in reach, functions included.
    dispatch: Any = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, length: int, source: Source | None, budget: Budget) -> None:
        super().__init__(_Bounded(file, length), encoding="latin1")  # pyright: ignore[reportArgumentType]
        self.source, self.budget = source, budget
        self.found: dict[tuple[str, str], Any] = {}

    def load_reduce(self) -> None:
        """Call what a global stands for.

        Raises:
            pickle.UnpicklingError: what is called is no global.
        """
        args, call = self.stack.pop(), self.stack[-1]
        if not (isinstance(call, type) and type(args) is tuple):
            raise pickle.UnpicklingError(f"it calls a {type(call).__name__}")
        self.stack[-1] = call(*args)

    def load_newobj(self) -> None:
        """Make an object of a class, which is the same here."""
        self.load_reduce()

    def load_build(self) -> None:
        """Take the state of an object.

        Raises:
            pickle.UnpicklingError: the object is not one of those that this module makes.
        """
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Shell | _Dtype | _Array):
            made.__setstate__(state)
        elif type(made) is not OrderedDict:  # what torch hangs on those is not needed
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}")

    def _fill(self, items: list[Any]) -> None:
        """Set entries of the dictionary on top of the stack."""
        filled = self.stack[-1]
        if not isinstance(filled, dict):
            raise pickle.UnpicklingError(f"it sets entries of a {type(filled).__name__}")
        for k, v in _pairs(items):
            filled[_key(k)] = v

    def load_setitem(self) -> None:
        """Set one entry of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        """Set entries of a dictionary."""
        self._fill(self.pop_mark())

    def load_dict(self) -> None:
        """Make a dictionary."""
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def load_additems(self) -> None:
        """Add to a set."""
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError(f"it adds entries to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_key, items))

    def load_frozenset(self) -> None:
        """Make a frozen set."""
        self.stack.append(frozenset(map(_key, self.pop_mark())))

    def load_appends(self) -> None:
        """Extend a list."""
        items = self.pop_mark()
        _list(self.stack[-1]).extend(items)

    def load_append(self) -> None:
        """Append to a list."""
        value = self.stack.pop()
        _list(self.stack[-1]).append(value)

    def load_refused(self) -> None:
        """Refuse what no checkpoint uses."""
        raise pickle.UnpicklingError("it uses buffers, extensions or old classes, which checkpoints do not")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global.

        Raises:
            pickle.UnpicklingError: the global is not on the list.
        """
        asked = (module, name)
        if asked not in self.found:
            self.found[asked] = self._stand_in(module, name)
        return self.found[asked]

    def _stand_in(self, module: str, name: str) -> Any:
        if (kind := _KEYED.get((module, name))) is not None:
            return _made_by(_Call(lambda *args: _filled(kind, args), self.budget))
        if (module, name) in (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")):
            return _made_by(self._tensor)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return _made_by(self._typed_tensor)
        if (module, name) == ("torch.storage", "_load_from_bytes") and self.source is not None:
            return _made_by(self.source.within)
        if (allowed := _ALLOWED.get((module, name))) is not None:
            return _made_by(_Call(allowed, self.budget))
        if module == "torch" and name in _TORCH_DTYPES:
            return getattr(torch, name)
        if module in ("torch", "torch.storage", "torch.cuda") and name in DTYPES:
            return StorageKind(DTYPES[name])
        if module.startswith("torch.nn.modules."):
            return module_kind(name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def _tensor(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> Tensor:
        del requires_grad, hooks
        if metadata:
            raise pickle.UnpicklingError("a tensor that is conjugated or negated lazily")
        return rebuilt(storage, offset, size, stride, None, self.budget)

    def _typed_tensor(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> Tensor:
        del requires_grad, hooks
        if metadata or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a tensor whose dtype is none, or that is conjugated or negated lazily")
        return rebuilt(storage, offset, size, stride, dtype, self.budget)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that is referred to.

        Raises:
            pickle.UnpicklingError: the file has none.
        """
        if self.source is None:
            raise pickle.UnpicklingError("it refers to objects outside itself")
        return self.source.storage(pid)


_LOADS: dict[bytes, Callable[[Restricted], None]] = {
    pickle.REDUCE: Restricted.load_reduce,
    pickle.NEWOBJ: Restricted.load_newobj,
    pickle.BUILD: Restricted.load_build,
    pickle.SETITEM: Restricted.load_setitem,
    pickle.SETITEMS: Restricted.load_setitems,
    pickle.DICT: Restricted.load_dict,
    pickle.ADDITEMS: Restricted.load_additems,
    pickle.FROZENSET: Restricted.load_frozenset,
    pickle.APPENDS: Restricted.load_appends,
    pickle.APPEND: Restricted.load_append,
}
_REFUSED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)
_BUFFERS = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
Restricted.dispatch |= {op[0]: load for op, load in _LOADS.items()}
Restricted.dispatch |= {op[0]: Restricted.load_refused for op in _REFUSED + _BUFFERS}


def _made_by(call: Callable[..., Any]) -> type:
    """Return a class whose construction is the call, for the ways in which pickles call functions and classes."""
    return type("Made", (), {"__new__": lambda cls, *args: call(*args)})


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise pickle.UnpicklingError(f"it appends to a {type(value).__name__}")
    return value


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)
