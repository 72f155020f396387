"""Evaluations of a field that are no part of a solve, and leave nothing behind."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dxdt.solve.plan import Plan

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
    """What a module holds as it is now."""

    module: nn.Module
    attributes: dict[str, Any] = field(init=False)
    lengths: dict[str, int] = field(init=False)
    buffers: dict[str, Tensor | None] = field(init=False)
    copies: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.attributes, self.buffers = dict(self.module.__dict__), dict(self.module._buffers)
        self.lengths = _lengths(self.module)
        self.copies = {name: b.detach().clone() for name, b in self.buffers.items() if b is not None}

    def changed(self) -> str | None:
        """The name of something that changed since."""
        now = self.module.__dict__
        found = [name for name in now if name not in self.attributes or now[name] is not self.attributes[name]]
        found += [name for name, length in _lengths(self.module).items() if length != self.lengths.get(name, length)]
        found += [name for name, b in self.module._buffers.items() if self._is_new(name, b)]
        return found[0] if found else None

    def _is_new(self, name: str, buffer: Tensor | None) -> bool:
        copy = self.copies.get(name)
        return buffer is not self.buffers.get(name) or copy is not None and not _same(buffer, copy)

    def restore(self) -> None:
        """Back to how it was."""
        self.module.__dict__.update(self.attributes)
        self.module._buffers.update(self.buffers)
        for name, length in self.lengths.items():
            entries = self.attributes[name]
            if isinstance(entries, list):
                del entries[length:]
        for name, value in self.copies.items():
            buffer = self.buffers[name]
            if buffer is not None and not _same(buffer, value):
                buffer.copy_(value)


def _lengths(module: nn.Module) -> dict[str, int]:
    kinds = (list, dict, set, deque)
    return {name: len(x) for name, x in module.__dict__.items() if isinstance(x, kinds)}


def _same(buffer: Tensor | None, copy: Tensor) -> bool:
    return buffer is not None and torch.equal(buffer, copy)


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
        """Something that a module remembers of the evaluation: class and name; None where nothing is."""
        found = ((x.module, x.changed()) for x in self.held)
        return next((f"{type(module).__name__}.{name}" for module, name in found if name is not None), None)


@contextmanager
def untouched(plan: Plan) -> Generator[Look]:
    """A block that evaluates the fields of a plan, after which counts, seeds and what modules hold are as before."""
    meter, seeds = plan.equation.meter, Seeds(plan.equation.layout.device)
    assert meter is not None
    count = meter.evaluations
    modules = {id(m): m for top in plan.equation.modules() for m in top.modules()}.values()
    held = [_Held(m) for m in modules]
    try:
        with torch.no_grad():
            yield Look(seeds, held)
    finally:
        meter.evaluations = count
        seeds.restore()
        for module in held:
            module.restore()
