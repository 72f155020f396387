"""Which tensors that require a gradient a program reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["reads", "watched"]


class _Seen(threading.local):
    tensors: list[Tensor] | None = None


_seen = _Seen()


@contextmanager
def reads() -> Generator[list[Tensor]]:
    """The tensors that programs called in the block read and that require a gradient."""
    before, _seen.tensors = _seen.tensors, []
    try:
        yield _seen.tensors
    finally:
        _seen.tensors = before


def watched(program: Callable[..., Any], inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiled graph that tells what it reads.

    Which of its inputs require a gradient is among the conditions under which it is called.
    """
    at = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not at:
        return program

    def run(*given: Any) -> Any:
        if _seen.tensors is not None:
            _seen.tensors.extend([given[i] for i in at])
        return program(*given)

    return run
