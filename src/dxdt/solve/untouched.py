"""Evaluations of a field that are no part of a solve, and leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from dxdt.solve.plan import Plan

__all__ = ["Seeds", "untouched"]


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


@contextmanager
def untouched(plan: Plan) -> Generator[Seeds]:
    """A block that evaluates the fields of a plan, after which counts, seeds and what modules hold are as before."""
    meter, seeds = plan.equation.meter, Seeds(plan.equation.layout.device)
    assert meter is not None
    count = meter.evaluations
    modules = list({id(m): m for top in plan.equation.modules() for m in top.modules()}.values())
    kept = [(m, dict(m.__dict__), dict(m._buffers), _copies(m)) for m in modules]
    try:
        with torch.no_grad():
            yield seeds
    finally:
        meter.evaluations = count
        seeds.restore()
        for module, attributes, held, copies in kept:
            module.__dict__.update(attributes)
            module._buffers.update(held)
            for name, value in copies.items():
                if not torch.equal(held[name], value):  # pyright: ignore[reportArgumentType]
                    held[name].copy_(value)  # pyright: ignore[reportOptionalMemberAccess]


def _copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.detach().clone() for name, b in module._buffers.items() if b is not None}
