"""What stands for the objects of a pickle whose classes are not looked up."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

__all__ = ["Record", "Shell", "module_kind", "sealed"]

_MOST_PARTS = 1_000_000


@final
@dataclass(frozen=True)
class Record:
    """The attributes of an object whose class was not looked up.

    Attributes:
        kind: name of the class in the file.
        state: its attributes.
    """

    kind: str
    state: dict[str, Any]

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return parameters and buffers of a stored module by their dotted names."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in (self.state.get(group) or {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value.detach()
        for name, child in (self.state.get("_modules") or {}).items():
            if isinstance(child, Record):
                found |= child.tensors(f"{prefix}{name}.")
        return found


@final
class Shell:
    """An object under construction: the pickle's BUILD fills it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Module:
    """Stands for a class of torch.nn."""

    kind = "Module"

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Return an empty shell, whatever the arguments."""
        del args, options
        return Shell(cls.kind)


def module_kind(name: str) -> type:
    """Return what stands for a class of torch.nn: calling it makes a shell."""
    return type(name, (_Module,), {"kind": name})


def sealed(content: Any) -> Any:
    """Turn shells into records, all the way down.

    Raises:
        pickle.UnpicklingError: what the content holds, written out, has no end, or more than a million parts; whoever
            walks through it, compares it or prints it then takes as long as that.
    """
    return _Sealing(_MOST_PARTS).of(content)[0]


@final
class _Sealing:
    """Sealed values and how many parts each has written out; each is looked at once, however often it is named."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.done: dict[int, tuple[Any, int]] = {}
        self.alive: list[Any] = []  # so that no identity is used twice

    def of(self, value: Any) -> tuple[Any, int]:
        """Return the sealed value and its parts."""
        if not isinstance(value, Shell | Record | dict | list | tuple | set | frozenset):
            return value, 1
        found = self.done.get(id(value))
        if found is None:
            self.alive.append(value)
            self.done[id(value)] = (None, self.most + 1)  # met again on the way down: it holds itself
            found = self.done[id(value)] = self._made(value)
        if found[1] > self.most:
            raise pickle.UnpicklingError("what it describes holds itself, or itself too often, to be written out")
        return found

    def _made(self, value: Any) -> tuple[Any, int]:
        if isinstance(value, Shell | Record):
            state, parts = self.of(value.state)
            return Record(value.kind, state), parts + 1
        if isinstance(value, dict):
            return self._items(value)
        inside = [self.of(v) for v in value]
        parts = 1 + sum(n for _, n in inside)
        if type(value) in (list, tuple):
            return type(value)(v for v, _ in inside), parts
        return value, parts

    def _items(self, value: dict[Any, Any]) -> tuple[Any, int]:
        inside = {k: self.of(v) for k, v in value.items()}
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((k, v) for k, (v, _) in inside.items()), 1 + sum(n for _, n in inside.values())
