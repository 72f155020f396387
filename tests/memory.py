"""What tensor operations cost: operations dispatched, host syncs, bytes alive.

All three are counts, not timings, so that a test may assert them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dxdt.lab.evaluation.memory import LiveBytes

__all__ = ["LiveBytes", "Operations", "host_syncs"]


class Operations(TorchDispatchMode):
    """Counts the aten operations that are dispatched inside it.

    Attributes:
        counts: operations by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_syncs(monkeypatch: Any):
    """Counts reads of tensors by the host: ``.item()``, truth values, ``.numpy()``, ``.tolist()``.

    Yields:
        A list that grows by one name with each read.
    """
    reads: list[str] = []
    names = ("item", "numpy", "tolist", "__bool__", "__float__", "__int__", "__index__")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(Tensor, name, _counting(getattr(Tensor, name), name, reads))
        yield reads


def _counting(method: Any, name: str, reads: list[str]) -> Any:
    def counted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        reads.append(name)
        return method(self, *args, **kwargs)

    return counted
