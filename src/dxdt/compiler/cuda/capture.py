"""Making a function over fixed tensors repeatable: as a CUDA graph, or by calling it again."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

__all__ = ["Call", "Capture", "Graphs", "Repetition", "Signal"]

Call: TypeAlias = Callable[[], object]
"""Work without arguments on tensors that stay where they are."""


class Signal(Protocol):
    """Two integers of the device as the host sees them, a little later."""

    def clear(self) -> None:
        """Forget what was sent."""
        ...

    def send(self) -> None:
        """Send the present value, behind those that were sent before; at most two are on their way."""
        ...

    def wait(self) -> tuple[int, int]:
        """The oldest value that was sent and not yet seen."""
        ...


class Capture(Protocol):
    """How work is made repeatable on one device."""

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else replays on the device meanwhile."""
        ...

    def holding(self) -> AbstractContextManager[None]:
        """Where tensors are made that captured work holds."""
        ...

    def __call__(self, work: Call) -> Call:
        """The same work, captured and not done; it was done once before.

        Raises:
            RuntimeError: it cannot be captured.
        """
        ...

    def signal(self, flag: Tensor) -> Signal:
        """What tells the host of ``flag``."""
        ...


class Repetition:
    """Work is done again by calling it, on any device."""

    def __init__(self) -> None:
        self._lock = RLock()

    @contextmanager
    def alone(self) -> Generator[None]:
        """One thread at a time."""
        with self._lock:
            yield

    def holding(self) -> AbstractContextManager[None]:
        """Anywhere."""
        return nullcontext()

    def __call__(self, work: Call) -> Call:
        """The work itself."""
        return work

    def signal(self, flag: Tensor) -> Signal:
        """Values that are read at once."""
        return _Read(flag)


class _Read:
    def __init__(self, flag: Tensor) -> None:
        self._flag, self._sent = flag, deque[list[int]]()

    def clear(self) -> None:
        self._sent.clear()

    def send(self) -> None:
        self._sent.append(self._flag.tolist())

    def wait(self) -> tuple[int, int]:
        going, count = self._sent.popleft()
        return going, count


class Graphs:
    """Work on a CUDA device becomes a CUDA graph.

    Solves that replay on one device follow each other, whatever threads and streams they come from. So
    their graphs share one pool of memory: nothing in it outlives a replay, because what does is made
    outside (``holding``), on a stream of its own, whose memory no other work is given meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, RLock()
        with torch.cuda.device(device):
            self._done = torch.cuda.Event()
            self._begin()

    def _begin(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        # A pool that no graph uses may not be used again.
        self._anchor = self._recorded(lambda: torch.zeros(1, device=self._device))

    @contextmanager
    def alone(self) -> Generator[None]:
        """One thread at a time, behind the work of the one before."""
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)

    @contextmanager
    def holding(self) -> Generator[None]:
        """On the stream of the graphs."""
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def __call__(self, work: Call) -> Call:
        """The replay of a graph of the work."""
        outside = torch.cuda.current_stream()
        try:
            return self._recorded(work)
        except RuntimeError:
            # The end of a capture that failed leaves its stream current, and its pool in doubt.
            torch.cuda.set_stream(outside)
            self._begin()
            raise

    def _recorded(self, work: Call) -> Call:
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        # Only what this thread does is part of it, and may fail it.
        capturing = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with _workspaces_apart(), _no_collection(), capturing:
            work()
        outside.wait_stream(self._stream)
        return graph.replay

    def signal(self, flag: Tensor) -> Signal:
        """Values that are copied to pinned memory behind the work in the queue."""
        return _Pinned(flag)


class _Pinned:
    def __init__(self, flag: Tensor) -> None:
        self._flag, self._sent = flag, deque[tuple[Tensor, torch.cuda.Event]]()
        self._free = [(torch.empty(2, dtype=torch.int64, pin_memory=True), torch.cuda.Event()) for _ in range(2)]

    def clear(self) -> None:
        self._free += self._sent
        self._sent.clear()

    def send(self) -> None:
        host, event = self._free.pop()
        host.copy_(self._flag, non_blocking=True)
        event.record()
        self._sent.append((host, event))

    def wait(self) -> tuple[int, int]:
        host, event = self._sent.popleft()
        event.synchronize()
        going, count = host.tolist()
        self._free.append((host, event))
        return going, count


@contextmanager
def _workspaces_apart() -> Generator[None]:
    """A graph has workspaces of cuBLAS of its own: it would still write to those of the stream when they are freed."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _no_collection() -> Generator[None]:
    """What dies during a capture may call what a capture forbids."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
