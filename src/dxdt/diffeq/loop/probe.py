"""Evaluations of a field that are no part of a solve, and leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from dxdt.diffeq.loop.plan import Plan
from dxdt.ops.snapshot import Snapshot

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


# Larger tensors, data rather than counts, are not copied to be compared.
_COPIED = 1 << 22


@dataclass(frozen=True)
class Look:
    """What an evaluation did beside its value."""

    seeds: Seeds
    before: Snapshot

    @property
    def draws(self) -> bool:
        """Whether random numbers were drawn."""
        return self.seeds.used

    @property
    def changed(self) -> str | None:
        """Something that a module or a function remembers of the evaluation; None where nothing is."""
        return self.before.changed


@contextmanager
def untouched(plan: Plan) -> Generator[Look]:
    """A block that evaluates the fields of a plan, after which counts, seeds and what is held are as before."""
    meter, seeds = plan.equation.meter, Seeds(plan.equation.layout.device)
    assert meter is not None
    count = meter.evaluations
    before = Snapshot.of((*plan.equation.equation.fields, plan.equation.args), _COPIED)
    try:
        with torch.no_grad():
            yield Look(seeds, before)
    finally:
        meter.evaluations = count
        seeds.restore()
        before.restore()
