"""Axes of tensors whose length may differ from call to call of a program."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch import Tensor

__all__ = ["leave_open"]


def leave_open(x: Tensor, axis: int) -> None:
    """Let programs serve tensors like this one with any length of an axis, from two on."""
    # Torch's function without what keeps a compiler from tracing it, which costs five times as much.
    unwrap(torch._dynamo.mark_dynamic)(x, axis)
