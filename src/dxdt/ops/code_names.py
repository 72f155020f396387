"""What a piece of Python code looks up by name: globals of its module, and attributes."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

__all__ = ["Names", "attributes_read", "names_of"]

# Names that may read any attribute.
_ANY = frozenset(
    ("__dict__", "getattr", "vars", "attrgetter", "children", "modules", "parameters", "buffers", "apply")
    + ("named_children", "named_modules", "named_parameters", "named_buffers", "state_dict")
    + ("get_submodule", "get_parameter", "get_buffer", "_modules", "_parameters", "_buffers")
)
# Special methods that do not run when a field is evaluated.
_IDLE = frozenset(
    ("__init__", "__new__", "__repr__", "__str__", "__eq__", "__hash__", "__setstate__", "__getstate__", "__reduce__")
    + ("__del__", "__init_subclass__", "__post_init__", "__setattr__", "__delattr__", "__copy__", "__deepcopy__")
)
_KEPT = 4096


class Names(NamedTuple):
    """Names in a function's code and in the functions that it defines.

    Attributes:
        globals: looked up in the module of the function.
        attributes: looked up on objects; strings that may name attributes are among them.
        whole: whether the first argument is used otherwise than for its attributes, such as handed on.
    """

    globals: frozenset[str]
    attributes: frozenset[str]
    whole: bool


# By the identity of the code, which is kept so that the identity stays its own.
_names: dict[int, tuple[CodeType, Names]] = {}


def names_of(code: CodeType) -> Names:
    """The names in a function's code, looked through once."""
    found = _names.get(id(code))
    if found is None:
        if len(_names) >= _KEPT:
            _names.clear()
        first = code.co_varnames[0] if code.co_argcount else None
        names, attributes = set[str](), set[str]()
        whole = _look(code, first, names, attributes)
        if not _ANY.isdisjoint(names):
            attributes |= _ANY & names
        found = _names[id(code)] = code, Names(frozenset(names), frozenset(attributes), whole)
    return found[1]


def _look(code: CodeType, first: str | None, names: set[str], attributes: set[str]) -> bool:
    """Enter the names in some code; whether ``first`` is used as a whole."""
    whole, loaded = False, False
    for step in dis.get_instructions(code):
        kind, value = step.opname, step.argval
        attribute = kind in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR")
        # Loaded last, and now used for something else than an attribute.
        whole |= loaded and not attribute
        loaded = False
        if attribute:
            attributes.add(value)
        elif kind in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(value)
        elif kind.startswith("LOAD_") and kind != "LOAD_CLOSURE" and first is not None:
            loaded = value == first or (isinstance(value, tuple) and first in value)
    for x in code.co_consts:
        if isinstance(x, CodeType):
            hidden = first in x.co_varnames[: x.co_argcount]
            whole |= _look(x, None if hidden else first, names, attributes)
        elif isinstance(x, str) and x.isidentifier():
            attributes.add(x)
    return whole


_read: dict[Any, frozenset[str] | None] = {}


def attributes_read(kind: type, names: frozenset[str], entry: str | None) -> frozenset[str] | None:
    """Attributes of an instance that are read where code uses ``names`` and calls the method ``entry``; None for all.

    The methods among these names are looked through in turn.
    """
    key = kind, names, None if entry is None else getattr(kind, entry, None)
    if key not in _read:
        if len(_read) >= _KEPT:
            _read.clear()
        _read[key] = _attributes_read(kind, names, entry)
    return _read[key]


def _attributes_read(kind: type, names: frozenset[str], entry: str | None) -> frozenset[str] | None:
    methods = _methods(kind)
    if "__getattr__" in methods or "__getattribute__" in methods:
        return None
    special = {n for n in methods if n.startswith("__") and n.endswith("__")} - _IDLE if entry is not None else set()
    found = set(names) | special | ({entry} if entry is not None else set())
    todo = list(found)
    while todo:
        name = todo.pop()
        if name in _ANY:
            return None
        for code in methods.get(name, ()):
            more = names_of(code).attributes - found
            found |= more
            todo.extend(more)
    return frozenset(found)


def _methods(kind: type) -> dict[str, list[CodeType]]:
    """Code of the methods of a class that are the user's, by name, those of its bases among them."""
    methods: dict[str, list[CodeType]] = {}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for name, value in base.__dict__.items():
            methods.setdefault(name, []).extend(_codes(value))
    return methods


def _codes(value: Any) -> Iterator[CodeType]:
    if isinstance(value, FunctionType):
        yield value.__code__
    elif isinstance(value, property):
        yield from (f.__code__ for f in (value.fget,) if isinstance(f, FunctionType))
    else:
        inner = getattr(value, "__func__", None) or getattr(value, "func", None)
        if isinstance(inner, FunctionType):
            yield inner.__code__
