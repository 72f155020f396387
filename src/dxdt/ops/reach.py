"""What a callable can read besides its arguments: where it lies, and what lies there.

A walk from functions, methods, modules and objects along what their code names: closures, defaults, globals,
attributes, entries of containers. Attributes of a user's object are followed only where code that is met names them
(see ``code_names``), so that what lies beside them on the same object is left alone.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dxdt.ops.code_names import attributes_read, names_of
from dxdt.ops.modules import descend
from dxdt.ops.places import Attributes, Cells, Entries, Mapping, Place

__all__ = ["Found", "Reach", "filled"]

# Values that hold nothing else and never change.
_PLAIN = frozenset(
    (int, float, bool, str, bytes, complex, type(None), type(...), slice, range, BuiltinFunctionType)
    + (torch.dtype, torch.device, torch.Size, np.float64, np.float32, np.int64)
)
# Frameworks of tests write calls of their own into a test's functions.
_FRAMEWORKS = frozenset({"_pytest", "pytest", "pluggy", "hypothesis"})
_FOREIGN = (sys.stdlib_module_names | _FRAMEWORKS | {"torch", "numpy", "builtins", "dxdt"}) - {"__main__"}
# Containers with more entries are data, and a walk ends at so many things.
_ENTRIES, _THINGS = 1024, 20_000


class Found(NamedTuple):
    """Data that lie somewhere: who holds them, by what name, and the tensor or array."""

    owner: str
    name: Any
    value: Any

    @property
    def label(self) -> str:
        """How a message calls them."""
        return f"{self.owner}.{self.name}" if isinstance(self.name, str) else f"{self.owner}[{self.name!r}]"


class _Thing(NamedTuple):
    """An object whose attributes are to be followed: as the owner of a method, or as what is called itself."""

    value: Any
    owner: str
    entry: str | None


class Reach:
    """What some values reach.

    Args:
        roots: callables, trees, anything.
        inside: look also into modules: at what they hold besides modules.

    Attributes:
        modules: modules that are reached as a whole, in the order in which they are met.
        owners: modules of which methods are reached, but not all of what they hold.
        parameters: parameters of owners that their methods name.
        places: what holds values by name.
        tensors, arrays: data that are met.
    """

    def __init__(self, *roots: Any, inside: bool = False) -> None:
        self.inside = inside
        self.modules: list[nn.Module] = []
        self.owners: list[nn.Module] = []
        self.parameters: list[Tensor] = []
        self.tensors: list[Found] = []
        self.arrays: list[Found] = []
        self._places: dict[Any, Place] = {}
        self._names: set[str] = set()
        self._things: list[_Thing] = []
        self._seen: dict[int, Any] = {}
        self._in_part: dict[int, Any] = {}
        self._classes: dict[type, frozenset[str]] = {}
        for root in roots:
            self._meet(root, "", "")
        self._follow()

    @classmethod
    def within(cls, module: nn.Module, names: frozenset[str]) -> Reach:
        """What lies in a module whose attributes may be read by code that uses these names."""
        reach = cls(inside=True)
        reach._names |= names
        reach._meet(module, "", "")
        reach._follow()
        return reach

    @property
    def names(self) -> frozenset[str]:
        """Attributes that code names."""
        return frozenset(self._names)

    @property
    def places(self) -> Iterable[Place]:
        return self._places.values()

    def _follow(self) -> None:
        """Attributes of the objects that were met, until no code names more."""
        names, done = frozenset[str](), 0
        while True:
            now = frozenset(self._names)
            todo = self._things[done:] if now == names else self._things[:]
            names, done = now, len(self._things)
            if not todo:
                return
            for thing in todo:
                self._look_into(thing, names)

    def _meet(self, value: Any, owner: str, name: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or id(value) in self._seen:
            return
        meet = _KINDS.get(kind) or _kind(kind)
        if meet is not None and len(self._seen) < _THINGS:
            self._seen[id(value)] = value
            meet(self, value, owner, name)

    def _all(self, values: Iterable[Any], owner: str) -> None:
        for i, x in enumerate(values):
            if type(x) not in _PLAIN:
                self._meet(x, owner, i)

    def _hold(self, place: Place, key: Any) -> None:
        """Enter a place, and meet what lies there."""
        self._places[key] = place
        for name, value in place.now().items():
            if type(value) not in _PLAIN:
                self._meet(value, place.label, name)

    def _tensor(self, x: Tensor, owner: str, name: Any) -> None:
        self.tensors.append(Found(owner, name, x))

    def _array(self, x: np.ndarray, owner: str, name: Any) -> None:
        self.arrays.append(Found(owner, name, x))

    def _function(self, f: FunctionType, owner: str, name: Any) -> None:
        if f.__closure__:
            self._hold(Cells(f.__name__, dict(zip(f.__code__.co_freevars, f.__closure__, strict=True))), id(f))
        known = f.__globals__
        if _is_foreign(known.get("__name__", "")):
            # A wrapper of a library around something of the user's.
            return
        names = names_of(f.__code__)
        self._names |= names.attributes
        used = [n for n in names.globals if n in known and type(known[n]) is not BuiltinFunctionType]
        if used:
            self._hold(Mapping(f.__name__, known, frozenset(used)), (id(f), "globals"))
        self._all(f.__defaults__ or (), f.__name__)
        self._all((f.__kwdefaults__ or {}).values(), f.__name__)

    def _method(self, f: MethodType, owner: str, name: Any) -> None:
        code = getattr(f.__func__, "__code__", None)
        if code is None:
            return
        names = names_of(code)
        self._meet(f.__func__, owner, name)
        self._names.add(f.__func__.__name__)
        me = f.__self__
        if names.whole or isinstance(me, type):
            self._meet(me, owner, name)
        elif id(me) not in self._seen and id(me) not in self._in_part:
            # Not entered as seen: it may be met as a whole later.
            self._in_part[id(me)] = me
            self._things.append(_Thing(me, owner, None))
            if isinstance(me, nn.Module):
                self.owners.append(me)

    def _partial(self, f: partial[Any], owner: str, name: Any) -> None:
        self._meet(f.func, owner, name)
        self._all(f.args, owner)
        self._hold(Mapping(owner or "partial", f.keywords, None), id(f))

    def _module(self, module: nn.Module, owner: str, name: Any) -> None:
        self.modules.append(module)
        if self.inside:
            inner = descend(module)
            self._seen.update((id(m), m) for m in inner)
            self._things += [_Thing(m, type(m).__name__, "forward") for m in inner]

    def _object(self, x: Any, owner: str, name: Any) -> None:
        self._things.append(_Thing(x, owner, "__call__"))

    def _entries(self, x: Any, owner: str, name: Any) -> None:
        if len(x) <= _ENTRIES:
            self._hold(Entries(f"{owner}.{name}" if owner else "args", x), id(x))

    def _tuple(self, x: Any, owner: str, name: Any) -> None:
        if len(x) <= _ENTRIES:
            self._all(x, f"{owner}.{name}" if owner else "args")

    def _namespace(self, x: Any, owner: str, name: Any) -> None:
        """A Python module or a class: of it only what code names."""
        if not _is_foreign(x.__name__ if isinstance(x, ModuleType) else x.__module__):
            self._things.append(_Thing(x, owner, None))

    def _wrapped(self, f: Any, owner: str, name: Any) -> None:
        self._meet(getattr(f, "__wrapped__", None), owner, name)

    def _look_into(self, thing: _Thing, names: frozenset[str]) -> None:
        value, _, entry = thing
        if isinstance(value, nn.Module):
            self._look_into_module(value, names, entry)
        elif isinstance(value, ModuleType | type):
            held = frozenset(n for n in names if n in vars(value) and not n.startswith("__"))
            if held:
                self._hold(Attributes(value.__name__, value, held), id(value))
        else:
            read = attributes_read(type(value), names, entry)
            if getattr(value, "__dict__", None):
                self._hold(Mapping(type(value).__name__, value.__dict__, read), id(value))
            self._class(type(value), names if read is None else read)

    def _look_into_module(self, module: nn.Module, names: frozenset[str], entry: str | None) -> None:
        kind, label = type(module), type(module).__name__
        ours = kind.__module__.partition(".")[0] != "torch"
        read = attributes_read(kind, names, entry) if ours else None
        if read is None and entry is None:
            # Any of its attributes may be read: it counts as a whole.
            self._meet(module, label, "")
            return
        told = None if read is None else read | {"training"}
        self._hold(Mapping(label, module.__dict__, told, public=True), id(module))
        for part in (module._buffers, module._parameters, module._modules):
            if part and type(part) is dict:
                self._hold(Mapping(label, part, read), (id(module), id(part)))
        # Also where there are none: one that is registered later would be called.
        self._hold(Entries(label, module._forward_hooks), id(module._forward_hooks))
        self._hold(Entries(label, module._forward_pre_hooks), id(module._forward_pre_hooks))
        if entry is None:
            some = (p for n, p in module._parameters.items() if p is not None and (read is None or n in read))
            mine = {id(p) for p in self.parameters}
            self.parameters += [p for p in some if p.requires_grad and id(p) not in mine]
        if ours:
            self._class(kind, names if read is None else read)

    def _class(self, kind: type, names: frozenset[str]) -> None:
        """What instances read from their class."""
        if names <= self._classes.get(kind, frozenset()):
            return
        self._classes[kind] = names
        for base in kind.__mro__:
            if not _is_foreign(base.__module__):
                held = frozenset(n for n in names if n in base.__dict__ and not n.startswith("__"))
                if held:
                    self._hold(Attributes(base.__name__, base, held), id(base))


_Meet = Callable[[Reach, Any, str, Any], None]
_KINDS: dict[type, _Meet | None] = {
    FunctionType: Reach._function,
    MethodType: Reach._method,
    partial: Reach._partial,
    Tensor: Reach._tensor,
    nn.Parameter: Reach._tensor,
    list: Reach._entries,
    dict: Reach._entries,
    tuple: Reach._tuple,
}


def _kind(kind: type) -> _Meet | None:
    """How values of a kind are met, None where there is nothing to see in them."""
    # Both are bags of names, though the standard library's.
    if issubclass(kind, SimpleNamespace) or kind.__name__ == "Namespace":
        return Reach._object
    for base, meet in (
        (Tensor, Reach._tensor),
        (nn.Module, Reach._module),
        (np.ndarray, Reach._array),
        ((list, dict, set, deque), Reach._entries),
        ((tuple, frozenset), Reach._tuple),
        ((ModuleType, type), Reach._namespace),
        (partial, Reach._partial),
    ):
        if issubclass(kind, base):
            return meet
    if kind.__name__ == "_lru_cache_wrapper":
        return Reach._wrapped
    ours = kind.__module__.partition(".")[0] == "dxdt"
    return Reach._object if kind.__dictoffset__ and (ours or not _is_foreign(kind.__module__)) else None


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN


def filled(cell: CellType) -> bool:
    """Whether a variable of a closure has a value."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
