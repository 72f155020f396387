"""How many bytes of tensors are alive while something runs: counted, not sampled."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside it have made and that are alive.

    Attributes:
        now: bytes alive.
        peak: most bytes alive since the last ``restart``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def restart(self) -> None:
        """Measure the peak from here."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in (out,) if isinstance(out, Tensor) else pytree.tree_leaves(out):
            if _strided(x):
                self._watch(x.untyped_storage(), args, kwargs)
        return out

    def _watch(self, storage: Any, *given: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        # A view or an in-place result of what the caller brought along is not new.
        if any(x.untyped_storage()._cdata == key for x in pytree.tree_leaves(given) if _strided(x)):
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _strided(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided
