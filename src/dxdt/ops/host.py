"""Questions to tensors that steer a loop on the host, also inside transforms of ``torch.func``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

__all__ = ["any_true", "transformed"]


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is active."""
    return _functorch.peek_interpreter_stack() is not None


def any_true(mask: Tensor) -> bool:
    """Whether any entry is true, for every entry of any axis that ``torch.vmap`` maps.

    A loop that goes on while some entry runs, and keeps the others by selection, is the same for each
    entry of a mapped axis as a loop over these entries alone.
    """
    if not transformed():
        return bool(mask.any())
    while _functorch.is_functorch_wrapped_tensor(mask):
        mask = _functorch.get_unwrapped(mask)
    with torch._C._DisableFuncTorch():
        return bool(mask.any())
