"""What some values reach as it was at one time, to be compared with and to be put back.

Names are kept with the objects they stood for, which costs a reference each. Tensors without a gradient and arrays
that are small are copied; larger tensors are known by the count of writes that torch keeps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from dxdt.ops.places import Place, Values, same
from dxdt.ops.reach import Found, Reach

__all__ = ["Snapshot", "Written"]

# Entries of a tensor or an array that is copied.
_COPIED = 1 << 14
# Copies of tensors that are alive, by identity, with the count of writes at which they were made.
_copies: dict[int, tuple[ref[Tensor], int, Tensor]] = {}
# Modules that were looked into last, by identity, with the names that were followed there.
_modules: OrderedDict[int, tuple[ref[nn.Module], frozenset[str], _Part]] = OrderedDict()
_MODULES = 256
# Buffers that torch's normalisations write to without a count.
_UNCOUNTED = frozenset(("running_mean", "running_var"))


class Written(RuntimeError):
    """Data that are too large to be kept were written to."""


class _Graph(ref[Tensor]):
    """A tensor in the middle of a graph: kept by the graph, if at all, or what is kept would hold all graphs before."""

    __slots__ = ()


class _Kept:
    """A place and what it held."""

    __slots__ = ("before", "holds", "place")

    def __init__(self, place: Place, before: Values) -> None:
        self.place, self.before = place, before
        for name, x in before.items():
            if isinstance(x, Tensor) and x.grad_fn is not None:
                before[name] = _Graph(x)
        graphs = any(type(x) is _Graph for x in before.values())
        self.holds: Callable[[], bool] = (lambda: not self.changes()) if graphs else place.watch(before)

    def values(self, now: Values) -> Values:
        """What it held; of what is gone with the graph that it belonged to, what it holds ``now``."""
        if not any(type(x) is _Graph for x in self.before.values()):
            return self.before
        alive = {n: x() if type(x) is _Graph else x for n, x in self.before.items()}
        return {n: now.get(n) if x is None and type(self.before[n]) is _Graph else x for n, x in alive.items()}

    def changes(self) -> list[Any]:
        """The names under which something else lies there now."""
        now = self.place.now()
        values = self.values(now)
        if same(now, values):
            return []
        return [n for n in {**values, **now} if n not in now or n not in values or now[n] is not values[n]]

    def put(self) -> Callable[[], None] | None:
        """Make it hold again what it held; returns what undoes this, None where nothing was done."""
        if self.holds():
            return None
        place, now = self.place, self.place.now()
        place.hold(self.values(now))
        return lambda: place.hold(now)

    def settled(self) -> _Kept | None:
        """The same without the names that changed, None where nothing is left to compare."""
        if self.holds():
            return self
        changes = frozenset(self.changes())
        place = self.place.without(changes)
        return None if place is None else _Kept(place, {n: x for n, x in self.before.items() if n not in changes})


@dataclass(frozen=True, eq=False)
class _Part:
    """What was reached together.

    Attributes:
        places: what held values by name, and these values.
        tensors: tensors without a gradient, their counts of writes, and copies of small ones.
        arrays: small arrays and copies of them.
    """

    places: list[_Kept]
    tensors: list[tuple[Found, int, Tensor | None]]
    arrays: list[tuple[Found, np.ndarray]]

    @classmethod
    def of(cls, reach: Reach, copied: int) -> _Part:
        tensors = [
            (x, x.value._version, _copy(x, copied))
            for x in reach.tensors
            if not (x.value.requires_grad or x.value.is_inference())
        ]
        arrays = [(x, x.value.copy()) for x in reach.arrays if x.value.size <= copied and x.value.dtype != object]
        return cls([_Kept(place, place.now()) for place in reach.places], tensors, arrays)

    def holds(self) -> bool:
        """Whether all is as it was."""
        for kept in self.places:
            if not kept.holds():
                return False
        for found, version, copy in self.tensors:
            if _is_written(found, version, copy) or found.value.requires_grad:
                return False
        return all(_equal(found.value, copy) for found, copy in self.arrays)

    def settled(self) -> _Part:
        """The same without what has changed by now."""
        if self.holds():
            return self
        places = [x for x in (kept.settled() for kept in self.places) if x is not None]
        tensors = [x for x in self.tensors if not _is_written(*x)]
        return _Part(places, tensors, [x for x in self.arrays if _equal(x[0].value, x[1])])

    def changed(self) -> str | None:
        for place, names in ((x.place, x.changes()) for x in self.places):
            if names:
                return Found(place.label, names[0], None).label
        for found, version, copy in self.tensors:
            if _is_written(found, version, copy) and not (copy is not None and _equal(found.value, copy)):
                return found.label
        return next((found.label for found, copy in self.arrays if not _equal(found.value, copy)), None)

    def restore(self) -> None:
        for kept in self.places:
            kept.put()
        for found, version, copy in self.tensors:
            if copy is not None and _is_written(found, version, copy):
                found.value.copy_(copy)
        for found, copy in self.arrays:
            np.copyto(found.value, copy)

    def exchange(self) -> Generator[Callable[[], None] | None]:
        """Put all back, one after the other; yields what undoes each."""
        for kept in self.places:
            yield kept.put()
        for found, version, copy in self.tensors:
            if _is_written(found, version, copy):
                yield _exchanged(found, copy)
        for found, copy in self.arrays:
            if not _equal(found.value, copy):
                yield _written(found.value, copy)


@dataclass(eq=False)
class Snapshot:
    """What was reached, as it was."""

    parts: list[_Part]

    @classmethod
    def of(cls, roots: Iterable[Any], copied: int = _COPIED) -> Snapshot:
        """What these values reach, as it is; tensors and arrays of up to so many entries are copied."""
        reach = Reach(*roots)
        parts = [_Part.of(reach, copied), *(_of_module(m, reach.names, copied) for m in reach.modules)]
        return cls(parts)

    def settle(self) -> None:
        """Leave out what has changed by now: what a field remembers of its own calls is no condition of them."""
        self.parts = [part.settled() for part in self.parts]

    @property
    def changed(self) -> str | None:
        """The name of something that is not as it was, or None."""
        return next((name for name in (part.changed() for part in self.parts) if name is not None), None)

    def restore(self) -> None:
        """Make all that is kept as it was, for good."""
        for part in self.parts:
            part.restore()

    @contextmanager
    def held(self) -> Generator[None]:
        """A block in which all is as it was; after it, as before the block.

        Raises:
            Written: something was written to that is too large to be kept.
        """
        undo: list[Callable[[], None] | None] = []
        try:
            for part in self.parts:
                if not part.holds():
                    undo.extend(part.exchange())
            yield
        finally:
            for back in reversed(undo):
                if back is not None:
                    back()


def _of_module(module: nn.Module, names: frozenset[str], copied: int) -> _Part:
    """What lies in a module, looked at anew where it is not as it was when last looked at."""
    key = id(module)
    kept = _modules.get(key)
    if kept is not None and copied == _COPIED and kept[0]() is module and kept[1] == names and kept[2].holds():
        return kept[2]
    part = _Part.of(Reach.within(module, names), copied)
    if copied == _COPIED:
        while len(_modules) >= _MODULES:
            _modules.popitem(last=False)
        _modules[key] = ref(module, lambda gone: _forget(_modules, key, gone)), names, part
    return part


def _is_written(found: Found, version: int, copy: Tensor | None) -> bool:
    """Whether a tensor was written to since its count of writes was ``version``."""
    x = found.value
    if x._version != version:
        return True
    return found.name in _UNCOUNTED and copy is not None and not _equal(x, copy)


def _copy(found: Found, most: int) -> Tensor | None:
    """A copy of a small tensor, made once for each state of it."""
    x = found.value
    if x.numel() > most or type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided or x.is_meta:
        return None
    key = id(x)
    kept = _copies.get(key)
    if kept is not None and kept[0]() is x and not _is_written(found, kept[1], kept[2]):
        return kept[2]
    with torch.no_grad():
        copy = x.detach().clone()
    _copies[key] = ref(x, lambda gone: _forget(_copies, key, gone)), x._version, copy
    return copy


def _forget(kept: Any, key: int, gone: Any) -> None:
    """Let go of what was kept of an object that is gone, unless another has taken its place."""
    if key in kept and kept[key][0] is gone:
        del kept[key]


def _equal(a: Any, b: Any) -> bool:
    """Whether two tensors or arrays have equal entries; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all())


def _exchanged(found: Found, copy: Tensor | None) -> Callable[[], None]:
    """A tensor with the storage of its copy, which no count of writes notes; returns what undoes this."""
    x = found.value
    if copy is None:
        raise Written(found.label)
    now = x.detach()
    x.data = copy
    return lambda: setattr(x, "data", now)


def _written(x: np.ndarray, copy: np.ndarray) -> Callable[[], None]:
    now = x.copy()
    np.copyto(x, copy)
    return lambda: np.copyto(x, now)
