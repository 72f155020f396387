"""Time several runs side by side, count what they dispatch, and find the floor below them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.peers import Run, wait
from benchmarks.problems import Problem

__all__ = ["CLOCKS", "Clock", "Counts", "Times", "count_operations", "floor_of", "set_threads", "time_together"]


Clock: TypeAlias = Callable[[], float]
"""Seconds since some moment."""


@dataclass(frozen=True)
class Times:
    """Seconds of one run.

    Attributes:
        median: over the repetitions.
        low, high: quartiles.
        first: of the first call, compilation included.
    """

    median: float
    low: float
    high: float
    first: float


def set_threads(number: int) -> None:
    """Let every library use so many threads."""
    torch.set_num_threads(number)
    # JAX reads this once, when it is imported.
    if number == 1 and "jax" not in sys.modules:
        told, flags = (
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        )
        os.environ["XLA_FLAGS"] = told if flags in told else f"{told} {flags}".strip()


CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def time_together(
    runs: Mapping[str, Run], repeats: int, least: float = 0.02, clock: Clock = time.perf_counter
) -> dict[str, Times]:
    """Times of several runs, their repetitions taken in turns, so that what disturbs the machine
    disturbs all of them.

    Args:
        runs: what to time.
        repeats: repetitions.
        least: seconds that one repetition should last at least, by running more than once.
        clock: of the wall, or of the processor where others use the machine too.
    """
    first, number = {}, {}
    for name, run in runs.items():
        first[name] = _seconds(run, 1, clock)
        once = min(_seconds(run, 1, clock) for _ in range(2))
        number[name] = max(1, int(np.ceil(least / max(once, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats):
        # In turns from another one each time, so that nobody always runs after the same neighbour.
        names = list(runs)
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(_seconds(runs[name], number[name], clock))
    out = {}
    for name, values in taken.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        out[name] = Times(float(middle), float(low), float(high), first[name])
    return out


def _seconds(run: Run, number: int, clock: Clock) -> float:
    begun = clock()
    for _ in range(number):
        run()
    return (clock() - begun) / number


@dataclass(frozen=True)
class Counts:
    """What one run dispatches.

    Attributes:
        operations: aten operations.
        syncs: values read by the host through torch (on a GPU each waits for it).
        allocations: new tensors that operations return.
        allocated: their bytes.
    """

    operations: int
    syncs: int
    allocations: int
    allocated: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.syncs = self.allocations = self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        self.syncs += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        )
        fresh = (
            [] if func.is_view or func._schema.is_mutable else [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        )
        self.allocations += len(fresh)
        self.allocated += sum(x.nbytes for x in fresh)
        return out


def count_operations(run: Run) -> Counts:
    """Operations of one eager run."""
    run()
    with _Counter() as counter:
        run()
    return Counts(counter.operations, counter.syncs, counter.allocations, counter.allocated)


_CHAIN = 30


def floor_of(problem: Problem, batch: int, evaluations: int, compiled: bool, clock: Clock = time.perf_counter) -> float:
    """Seconds of the field's evaluations alone, without any solver.

    Args:
        problem: gives the field.
        batch: samples.
        evaluations: how many.
        compiled: in one compiled chain, else one by one in eager mode.
        clock: as in ``time_together``.
    """
    field, y0 = problem.field(), problem.start(batch)
    t = torch.zeros((), dtype=y0.dtype, device=y0.device)

    def chain(y: Tensor) -> Tensor:
        for _ in range(_CHAIN):
            y = torch.add(y, field(t, y), alpha=1e-3)
        return y

    def alone(y: Tensor) -> Tensor:
        for _ in range(_CHAIN):
            field(t, y)
        return y

    call: Callable[[Tensor], Tensor] = alone
    if compiled:
        call = torch.compile(chain, fullgraph=True, options={"cpp_wrapper": problem.device == "cpu"})

    def run() -> None:
        call(y0)
        wait(problem.device)

    with torch.no_grad():
        times = time_together({"floor": run}, repeats=5, clock=clock)
    _release(field)
    return times["floor"].median / _CHAIN * evaluations


def _release(field: nn.Module) -> None:
    # Compiled code holds the field: a later problem would be compiled beside it.
    torch.compiler.reset()
    del field
