"""Evaluations of a field that are no part of a solve, and leave nothing behind."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.problem.equation import filled, held

__all__ = ["Look", "Seeds", "untouched"]


class Seeds:
    """The generators of random numbers of torch, on the host and on a device, of numpy and Python as they are now."""

    def __init__(self, device: torch.device) -> None:
        self.where, self.python = device, random.getstate()
        self.torch, self.numpy = torch.get_rng_state(), np.random.get_state()
        self.device = torch.cuda.get_rng_state(device) if device.type == "cuda" else self.torch

    @property
    def used(self) -> bool:
        """Whether numbers were drawn since."""
        now = Seeds(self.where)
        same = all(np.array_equal(a, b) for a, b in zip(self.numpy, now.numpy, strict=True))
        same = same and torch.equal(self.torch, now.torch) and torch.equal(self.device, now.device)
        return not (same and self.python == now.python)

    def restore(self) -> None:
        """Back to where they were."""
        torch.set_rng_state(self.torch)
        if self.where.type == "cuda":
            torch.cuda.set_rng_state(self.device, self.where)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


@dataclass
class _Held:
    """What a module or a function holds by name, as it is now.

    Attributes:
        owner: its name.
        now: what it holds.
        put: holds a value again.
    """

    owner: str
    now: Callable[[], dict[str, Any]]
    put: Callable[[str, Any], None]
    before: dict[str, Any] = field(init=False)
    lengths: dict[str, int] = field(init=False)
    copies: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.now()
        self.lengths = _lengths(self.before)
        tensors = {name: x for name, x in self.before.items() if isinstance(x, Tensor) and not x.requires_grad}
        self.copies = {name: x.clone() for name, x in tensors.items() if x.numel() <= _COPIED and _is_plain(x)}

    def changed(self) -> str | None:
        """The name of something that changed since."""
        now, lengths = self.now(), _lengths(self.before)
        for name, value in now.items():
            if name not in self.before or value is not self.before[name]:
                return name
            if lengths.get(name) != self.lengths.get(name) or not self._same(name):
                return name
        return None

    def _same(self, name: str) -> bool:
        if name not in self.copies:
            return True
        a, b = self.before[name], self.copies[name]
        return a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all())

    def restore(self) -> None:
        """Back to how it was."""
        now = self.now()
        for name, value in self.before.items():
            if name not in now or now[name] is not value:
                self.put(name, value)
            if isinstance(value, list):
                del value[self.lengths[name] :]
            elif not self._same(name):
                value.copy_(self.copies[name])


# Larger tensors, data rather than counts, are not copied to be compared.
_COPIED = 1 << 22


def _is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.layout == torch.strided and x.device.type != "meta"


def _lengths(values: dict[str, Any]) -> dict[str, int]:
    return {name: len(x) for name, x in values.items() if isinstance(x, (list, dict, set, deque))}


def _of_module(module: nn.Module) -> _Held:
    def put(name: str, value: Any) -> None:
        (module._buffers if name in module._buffers else module.__dict__)[name] = value

    return _Held(type(module).__name__, lambda: {**module.__dict__, **module._buffers}, put)


def _of_functions(f: Any, depth: int = 2) -> Iterator[_Held]:
    """A function and those that it holds."""
    if not isinstance(f, FunctionType):
        return
    cells = dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True))

    def now() -> dict[str, Any]:
        return {name: cell.cell_contents for name, cell in cells.items() if filled(cell)}

    def put(name: str, value: Any) -> None:
        cells[name].cell_contents = value

    yield _Held(f.__name__, now, put)
    for value in held(f) if depth else ():
        yield from _of_functions(value, depth - 1)


@dataclass(frozen=True)
class Look:
    """What an evaluation did beside its value."""

    seeds: Seeds
    held: list[_Held]

    @property
    def draws(self) -> bool:
        """Whether random numbers were drawn."""
        return self.seeds.used

    @property
    def changed(self) -> str | None:
        """Something that a module or a function remembers of the evaluation; None where nothing is."""
        found = ((x.owner, x.changed()) for x in self.held)
        return next((f"{owner}.{name}" for owner, name in found if name is not None), None)


@contextmanager
def untouched(plan: Plan) -> Generator[Look]:
    """A block that evaluates the fields of a plan, after which counts, seeds and what is held are as before."""
    meter, seeds = plan.equation.meter, Seeds(plan.equation.layout.device)
    assert meter is not None
    count = meter.evaluations
    modules = {id(m): m for top in plan.equation.modules() for m in top.modules()}.values()
    kept = [_of_module(m) for m in modules]
    kept += [x for f in plan.equation.equation.fields for x in _of_functions(f)]
    try:
        with torch.no_grad():
            yield Look(seeds, kept)
    finally:
        meter.evaluations = count
        seeds.restore()
        for one in kept:
            one.restore()
