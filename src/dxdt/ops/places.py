"""Places that hold values by name: what lies there now, and how to put other values there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, MutableMapping
from operator import is_, itemgetter
from types import CellType
from typing import Any, TypeAlias

__all__ = ["Attributes", "Cells", "Entries", "Mapping", "Place", "Values", "same"]

Values: TypeAlias = dict[Any, Any]
"""What lies in a place, by name."""

_GONE = object()


class Place(ABC):
    """Something that holds values by name.

    Attributes:
        label: what it is called in messages.
    """

    label: str

    @abstractmethod
    def now(self) -> Values:
        """What lies there."""

    @abstractmethod
    def hold(self, values: Values) -> None:
        """Make it hold these values, and no others of those that are looked at."""

    def watch(self, before: Values) -> Callable[[], bool]:
        """A quick look whether it still holds these objects."""
        return lambda: same(self.now(), before)

    def without(self, names: frozenset[Any]) -> Place | None:
        """The same place but for some names, None where it has no parts."""
        return None


def same(a: Values, b: Values) -> bool:
    """Whether two looks at a place found the same objects."""
    if len(a) != len(b):
        return False
    for name, value in a.items():  # noqa: SIM110 (a call for each name would cost more than the look)
        if b.get(name, _GONE) is not value:
            return False
    return True


class Mapping(Place):
    """Names in a dictionary: globals, attributes of an object, buffers of a module.

    Args:
        names: those that are looked at, None for all that are there now.
        public: leave out names that begin with an underscore where all are looked at.
    """

    def __init__(
        self, label: str, mapping: MutableMapping[str, Any], names: frozenset[str] | None, public: bool = False
    ) -> None:
        self.label, self.mapping = label, mapping
        if names is None:
            names = frozenset([k for k in mapping if not (public and k[0] == "_")])
        self.names = names

    def now(self) -> Values:
        names, mapping = self.names, self.mapping
        if len(names) < len(mapping):
            return {k: mapping[k] for k in names if k in mapping}
        return {k: v for k, v in mapping.items() if k in names}

    def hold(self, values: Values) -> None:
        _replace(self.now(), values, self.mapping.__setitem__, self.mapping.__delitem__)

    def watch(self, before: Values) -> Callable[[], bool]:
        if not before:
            return super().watch(before)
        mapping, values = self.mapping, tuple(before.values())
        look: Callable[[Any], Any] = itemgetter(*before)
        absent = self.names - before.keys()
        if len(values) == 1:
            (value,) = values
            (name,) = before
            return lambda: mapping.get(name, _GONE) is value and mapping.keys().isdisjoint(absent)

        def holds() -> bool:
            try:
                return all(map(is_, look(mapping), values)) and mapping.keys().isdisjoint(absent)
            except KeyError:
                return False

        return holds

    def without(self, names: frozenset[Any]) -> Place:
        return Mapping(self.label, self.mapping, self.names - names)


class Attributes(Place):
    """Attributes of a class or of a Python module."""

    def __init__(self, label: str, owner: Any, names: frozenset[str]) -> None:
        self.label, self.owner, self.names = label, owner, names

    def now(self) -> Values:
        held = vars(self.owner)
        return {n: held[n] for n in self.names if n in held}

    def hold(self, values: Values) -> None:
        owner = self.owner
        _replace(self.now(), values, lambda n, x: setattr(owner, n, x), lambda n: delattr(owner, n))

    def without(self, names: frozenset[Any]) -> Place:
        return Attributes(self.label, self.owner, self.names - names)


class Cells(Place):
    """Variables of a closure."""

    def __init__(self, label: str, cells: dict[str, CellType]) -> None:
        self.label, self.cells = label, cells

    def now(self) -> Values:
        found = {}
        for name, cell in self.cells.items():
            try:
                found[name] = cell.cell_contents
            except ValueError:  # it has no value yet, or no more
                continue
        return found

    def hold(self, values: Values) -> None:
        _replace(self.now(), values, self._put, self._drop)

    def _put(self, name: str, value: Any) -> None:
        self.cells[name].cell_contents = value

    def _drop(self, name: str) -> None:
        del self.cells[name].cell_contents

    def without(self, names: frozenset[Any]) -> Place:
        return Cells(self.label, {n: c for n, c in self.cells.items() if n not in names})


class Entries(Place):
    """What a list, a dictionary, a set or a deque holds."""

    def __init__(self, label: str, container: Any) -> None:
        self.label, self.container = label, container

    def now(self) -> Values:
        x = self.container
        return dict(x) if isinstance(x, dict) else dict(enumerate(x))

    def hold(self, values: Values) -> None:
        x = self.container
        x.clear()
        if isinstance(x, dict | set):
            x.update(values if isinstance(x, dict) else values.values())
        elif isinstance(x, list | deque):
            x.extend(values.values())

    def watch(self, before: Values) -> Callable[[], bool]:
        x, size, values, names = self.container, len(before), tuple(before.values()), tuple(before)
        if not size:
            return lambda: not x
        if isinstance(x, dict):
            return lambda: len(x) == size and all(map(is_, x, names)) and all(map(is_, x.values(), values))
        return lambda: len(x) == size and all(map(is_, x, values))


def _replace(now: Values, values: Values, put: Callable[[Any, Any], None], drop: Callable[[Any], None]) -> None:
    for name, value in values.items():
        if now.get(name, _GONE) is not value:
            put(name, value)
    for name in now:
        if name not in values:
            drop(name)
