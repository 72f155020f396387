"""A compiled solve as a chain of pieces between its events, each one node of the graph.

A piece ends with the chunk in which some row met an event. When and where it did follows in the graph
from the start and the coefficients of that step, by the implicit function theorem, and so does the state
after a reset; with these the next piece begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.compiled.events import Met
from dxdt.diffeq.compiled.forward import Read, joined
from dxdt.diffeq.gradients.gradient import Inputs, Outcome
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.ops.times import Ticks

__all__ = ["Piece", "chained", "pieces"]


@dataclass
class Piece:
    """Chunks of a compiled solve of which at most the last has events.

    Attributes:
        reads: the chunks.
        y: the state after them, of rows that met an event before any reset.
    """

    reads: Sequence[Read]
    y: Tensor

    @property
    def met(self) -> Met | None:
        """The events that it ends with."""
        return self.reads[-1].met if self.reads else None

    def outputs(self) -> tuple[Tensor | None, ...]:
        """State, values, the path, and the steps with events; those that are not needed again are handed over."""
        values, starts, coefficients = (
            joined(getattr(read, name) for read in self.reads) for name in ("values", "starts", "coefficients")
        )
        for read in self.reads:
            read.hand_over()
        steps = (None, None) if self.met is None else (self.met.y.clone(), self.met.dense.clone())
        return self.y.clone(), values, starts, coefficients, *steps


def pieces(tape: Sequence[Read], y: Tensor) -> list[Piece]:
    """The pieces of a solve that ended with ``y``: at least one, without chunks where nothing was solved."""
    ends = [i + 1 for i, read in enumerate(tape) if read.met is not None]
    if not ends or ends[-1] < len(tape):
        ends.append(len(tape))
    found = [tape[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return [Piece(reads, _end(reads, y)) for reads in found]


def _end(reads: Sequence[Read], y: Tensor) -> Tensor:
    last = reads[-1].y if reads else None
    return y if last is None else last


class Node(Protocol):
    """A piece as a function of its state, of where the present piece of each row began, and of the end of the span."""

    def __call__(
        self, number: int, y: Tensor, origin: Tensor | None, end: Tensor | None
    ) -> tuple[Tensor | None, ...]: ...


def chained(plan: Plan, inputs: Inputs, chain: Sequence[Piece], node: Node, carry: Carry) -> Outcome:
    """The outcome of a solve that is differentiable piece by piece."""
    origin, end = (None, None) if inputs.ends is None else inputs.ends
    if origin is None and plan.watch is not None:
        origin = torch.as_tensor(np.atleast_1d(plan.span.t0), device=inputs.y.device)
    y, times, answers = inputs.y, list[Tensor](), list[tuple[Tensor | None, ...]]()
    for number, piece in enumerate(chain):
        after, values, starts, coefficients, *steps = node(number, y, origin, end)
        assert after is not None
        y, met = after, piece.met
        if met is not None:
            assert plan.watch is not None and origin is not None and steps[0] is not None and steps[1] is not None
            clocks = _clocks(piece.reads[-1], met, origin, end)
            time, arrive, leave = plan.watch.meet(met.crossing, *clocks, steps[0], steps[1])
            mask = met.mask
            times.append(torch.where(mask, time, torch.from_numpy(met.stop).to(mask.device)))
            values = _with_arrivals(piece.reads[-1], met, values, arrive)
            y, origin = torch.where(mask[:, None], leave, y), torch.where(mask, time, origin)
        answers.append((values, starts, coefficients))
    values, starts, coefficients = (joined(parts) for parts in zip(*answers, strict=True))
    events = torch.stack(times) if times else None
    return Outcome(y, values, starts, coefficients, events, origin if times else None, carry)


def _clocks(read: Read, met: Met, origin: Tensor, end: Tensor | None) -> tuple[Ticks, Ticks]:
    """Start and length of the steps with events, as ``step.attach`` ties them to differentiable times."""
    row = np.arange(len(met.rows))
    ok = read.kept.dt.numpy() != 0
    fresh = met.rows & ((read.accepted - read.since + ok.cumsum(0)[met.slot, row]) == 1)
    start, stop, fresh, last = (torch.from_numpy(x).to(origin.device) for x in (met.t, met.t + met.dt, fresh, met.last))
    start = torch.where(fresh, origin, start)
    stop = stop if end is None else torch.where(last, end, stop)
    return start, stop - start


def _with_arrivals(read: Read, met: Met, values: Tensor | None, arrive: Tensor) -> Tensor | None:
    """Values after steps, those of steps with events being the state on arrival."""
    asked = read.asked
    if values is None or asked is None or not asked.ends:
        return values
    cut = met.rows[asked.row] & (met.slot[asked.row] == asked.slot)
    at = torch.from_numpy(np.flatnonzero(cut)) + (len(values) - len(asked.slot))
    return values.index_put((at.to(values.device),), arrive[torch.from_numpy(asked.row[cut]).to(values.device)])
