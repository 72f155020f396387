"""A compiled solve seen from outside: chunks of the engine turned into the outcome of a solve."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dxdt.compiler.cuda import replays
from dxdt.compiler.explain import DRAWS, REMEMBERS, CannotCompile
from dxdt.diffeq.compiled.events import Lookout, Met
from dxdt.diffeq.control.controller import Span
from dxdt.diffeq.gradients.gradient import Outcome
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.diffeq.loop.probe import untouched
from dxdt.diffeq.loop.save import SaveTimes, interpolate
from dxdt.diffeq.loop.saving import Recorder
from dxdt.diffeq.loop.step import beyond, sides
from dxdt.diffeq.programs.engine import Chunk, Records, chunks
from dxdt.diffeq.programs.field_key import identified
from dxdt.diffeq.programs.signature import Form, fields_of
from dxdt.diffeq.programs.starters import phases_of
from dxdt.ops.times import HOST, beside, from_host

__all__ = ["Asked", "Forward", "Read", "check_field", "compilable", "joined", "run_compiled", "undone"]

# Fields that were looked at, by what identifies them, and why they must run eager.
_checked: dict[Any, str] = {}
_FIELDS = 256


def compilable(plan: Plan) -> None:
    """Look at what can be known before tracing.

    Raises:
        CannotCompile: the solve has no compiled form.
    """
    Form.of(plan.equation)
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    if stack is not None or forward_ad._current_level >= 0:
        raise CannotCompile("transforms of torch.func and forward derivatives have no compiled form")
    if plan.watch is not None and plan.watch.goes_on and plan.solver.facts.stateful:
        raise CannotCompile(f"events with a reset have no compiled form with {type(plan.solver).__name__} yet")
    device = plan.equation.layout.device
    if device.type != "cpu" and not replays(device):
        raise CannotCompile(f"compiled loops run on the CPU and on CUDA, not on {device.type}")


def check_field(plan: Plan, y: Tensor) -> None:
    """Evaluate a field once, the first time it is met.

    A wrong one is then named as such, and one whose steps cannot be formed again is refused before
    the compiler spends its time on it.

    Raises:
        CannotCompile: the field writes into the state, draws random numbers, or remembers its evaluations.
    """
    equation = plan.equation
    key = identified(plan), equation.layout
    if key not in _checked:
        if len(_checked) >= _FIELDS:
            del _checked[next(iter(_checked))]
        _checked[key] = _refusal(plan, y)
    reason = _checked[key]
    if reason:
        raise CannotCompile(reason)


def _refusal(plan: Plan, y: Tensor) -> str:
    """Why a field must run eager, or nothing."""
    with torch.inference_mode(False):  # for its tensors no writes are counted
        state = y.detach().clone()
    before = state._version
    with untouched(plan) as look:
        plan.equation.probe(plan.span.t0, state)
        if state._version != before:
            return "it writes into the state that it is given: form new tensors instead"
        if look.draws:
            return DRAWS
        changed = look.changed
        if changed is not None:
            return REMEMBERS.format(changed)
    return ""


@contextmanager
def undone(plan: Plan, recorder: Recorder) -> Generator[None]:
    """Books and counts as they were before, where a compiled solve gives up."""
    meter, times = plan.equation.meter, recorder.times
    assert meter is not None
    count, following = meter.evaluations, None if times is None else times.next
    try:
        yield
    except CannotCompile:
        meter.evaluations = count
        if times is not None and following is not None:
            times.next = following
        for entries in (recorder.index, recorder.row, recorder.t):
            entries.clear()
        for clocks in (recorder.starts, recorder.lengths, recorder.ends, recorder.crossings):
            clocks.clear()
        raise


class Asked(NamedTuple):
    """Values that were taken from the steps of a chunk.

    Attributes:
        slot, row: which step of which row.
        theta: place in the step, in (0, 1].
        request: which of the given times it answers.
        ends: whether they are ends of steps, whatever the time.
    """

    slot: np.ndarray
    row: np.ndarray
    theta: np.ndarray
    request: np.ndarray
    ends: bool


@dataclass
class Read:
    """What was read from a chunk.

    Attributes:
        records, used: its records, where they are kept, and how many slots of them are used.
        noise: the random path in it.
        y: the state after it, of rows that met an event before any reset; None once it is handed over.
        accepted: steps that each row had accepted before it.
        since: those of them that it accepted before the present piece of its solution began.
        met: events in it.
        sides: the first and the last time that each step shows to the field, where that has jumps.
        leap: time just beyond a jump that each step ends at, else NaN; or None.
        asked, values: what was asked of it, and the answers.
        starts, coefficients: its part of the path.
    """

    records: Records | None
    used: int
    noise: Any
    y: Tensor | None
    accepted: np.ndarray
    since: np.ndarray
    met: Met | None
    sides: tuple[Tensor, ...] = ()
    leap: Tensor | None = None
    asked: Asked | None = None
    values: Tensor | None = None
    starts: Tensor | None = None
    coefficients: Tensor | None = None

    @property
    def kept(self) -> Records:
        """The used slots of the records."""
        assert self.records is not None
        return self.records.first(self.used)

    def hand_over(self) -> None:
        """Let go of answers that others hold."""
        self.y = self.values = self.starts = self.coefficients = None


def joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    """Answers of several chunks, None where there are none."""
    some = [x for x in parts if x is not None]
    return torch.cat(some) if some else None


@dataclass
class Forward:
    """Answers of a compiled solve, gathered chunk by chunk.

    Attributes:
        keep: whether records are kept, for a gradient.
        tape: the chunks.
        attempts: of each row so far.
        jumps: numbers of the attempts after which some row crossed a jump of the field.
        lookout: looks for events, where there are some.
        lighter: leaves out of a chunk what need not be kept, or None.
    """

    plan: Plan
    recorder: Recorder
    keep: bool
    tape: list[Read] = field(default_factory=list)
    carry: Carry | None = None
    attempts: np.ndarray | int = 0
    jumps: set[int] = field(default_factory=set)
    lookout: Lookout | None = None
    lighter: Callable[[Chunk], Chunk] | None = None

    def run(self, y: Tensor, dt: Any) -> Outcome:
        """Solve; the outcome is not differentiable."""
        plan, f = self.plan, fields_of(self.plan.equation.equation)
        accepted = np.zeros(y.shape[0], dtype=np.int64)
        since = accepted
        records = self.keep or self.recorder.wants or plan.watch is not None or plan.controller.jumps
        if plan.watch is not None:
            self.lookout = Lookout.at(plan, y)
        states = self.keep and plan.solver.facts.stateful and self.lighter is None
        for chunk in chunks(plan, f, plan.equation.args, y, dt, records, states):
            met = None
            if self.lookout is not None and chunk.used:
                chunk, met = self.lookout.look(chunk)
            if chunk.records is not None and chunk.used:
                self.tape.append(self._read(chunk, met, accepted, since))
                accepted = chunk.carry.accepted.numpy().copy()
                since = since if met is None else np.where(met.rows, accepted, since)
            self.attempts, self.carry = chunk.carry.attempts.numpy().copy(), chunk.carry
        assert self.carry is not None
        self._count(y, dt)
        carry = _on_host(self.carry)
        starts, coefficients = (joined(x) for x in ((r.starts for r in self.tape), (r.coefficients for r in self.tape)))
        values, times = joined(r.values for r in self.tape), [r.met for r in self.tape if r.met is not None]
        events = torch.stack([torch.from_numpy(m.stop) for m in times]) if times else None
        return Outcome(carry.y, values, starts, coefficients, events, None, carry)

    def _count(self, y: Tensor, dt: Any) -> None:
        """Evaluations of the drift: of the starting rule, of the start, after jumps and resets, of every attempt."""
        plan, meter = self.plan, self.plan.equation.meter
        assert self.carry is not None and meter is not None
        solver, state = plan.solver, self.carry.solver
        automatic = dt is None and plan.scale is not None
        rule = automatic * (2 - (solver.slope(state) is not None))
        renewed = len(self.jumps) + (0 if self.lookout is None else len(self.lookout.renewed))
        meter.evaluations += (1 + renewed) * solver.opening(state) + rule
        done, attempts = 0, int(np.max(self.attempts))
        for rule, until in phases_of(plan):
            taken = attempts if until is None else min(until, attempts)
            meter.evaluations += (taken - done) * rule.cost(state)
            done = taken

    def _read(self, chunk: Chunk, met: Met | None, accepted: np.ndarray, since: np.ndarray) -> Read:
        records, used, recorder = chunk.records, chunk.used, self.recorder
        assert records is not None
        kept = chunk if self.lighter is None else self.lighter(chunk)
        y = chunk.carry.y if met is None else met.arrive
        read = Read(kept.records if self.keep else None, used, kept.noise, y, accepted, since, met)
        if met is not None:
            recorder.crossings.append(np.asarray(met.crossing.which))
        if not (recorder.wants or self.plan.controller.jumps):
            return read
        ok = records.dt[:used].numpy() != 0
        end = records.end[:used].numpy()
        if self.plan.controller.jumps:
            self._at_jumps(read, records, ok, end)
        if recorder.dense:
            self._path(read, records, ok, end)
        if recorder.times is not None:
            self._at_times(read, recorder.times, records, end, ok)
        elif recorder.every:
            self._after_steps(read, records, end, ok)
        return read

    def _at_jumps(self, read: Read, records: Records, ok: np.ndarray, end: np.ndarray) -> None:
        """Which side of a jump each step saw, and after which the solver's memory was renewed."""
        t, dt = (x[: read.used].numpy() for x in (records.t, records.dt))
        t0, t1 = (np.broadcast_to(np.atleast_1d(x), t.shape).ravel() for x in self.plan.span[1:3])
        # One clock for each step of each row.
        plan = replace(self.plan, span=Span(HOST, t0, t1))
        landed, crossed = (x.reshape(t.shape) for x in plan.controller.land(plan.span, t.ravel(), dt.ravel()))
        jumped = crossed & ok & (landed == end) & (end != t1.reshape(t.shape))
        slot, row = np.nonzero(jumped)
        self.jumps.update((np.broadcast_to(self.attempts, ok.shape[1])[row] + slot).tolist())
        if not self.keep:
            return
        found = sides(plan, t.ravel(), dt.ravel())
        bounds = (np.full(t.size, -np.inf), np.full(t.size, np.inf)) if found is None else found
        read.sides = tuple(torch.from_numpy(x.reshape(t.shape)) for x in bounds)
        read.leap = torch.from_numpy(np.where(jumped, beyond(plan, end.ravel()).reshape(t.shape), np.nan))

    def _path(self, read: Read, records: Records, ok: np.ndarray, end: np.ndarray) -> None:
        some = np.flatnonzero(ok.any(1))
        if not len(some):
            return
        t, dt = records.t[: read.used].numpy(), records.dt[: read.used].numpy()
        self.recorder.starts += list(np.where(ok, t, end)[some])
        self.recorder.lengths += list(dt[some])
        self.recorder.ends += list(end[some].copy())
        index = beside(records.y, some)
        assert records.coefficients is not None
        read.starts, read.coefficients = records.y[index], records.coefficients[index]

    def _after_steps(self, read: Read, records: Records, end: np.ndarray, ok: np.ndarray) -> None:
        every = self.recorder.every
        count = read.accepted + np.cumsum(ok, axis=0)
        slot, row = np.nonzero(ok & (count % every == 0))
        self._enter(count[slot, row] // every - 1, row, end[slot, row])
        read.values = _ends(read, records)[beside(records.y, slot, row)]
        read.asked = Asked(slot, row, np.ones(len(slot)), slot * 0, True)

    def _at_times(self, read: Read, times: SaveTimes, records: Records, end: np.ndarray, ok: np.ndarray) -> None:
        slot, row, index, wanted = _due(times, end, ok)
        if not len(slot):
            return
        start, length = records.t.numpy()[slot, row], records.dt.numpy()[slot, row]
        whole = wanted == end[slot, row]
        if read.met is not None:
            whole &= ~(read.met.rows[row] & (read.met.slot[row] == slot))
        theta = np.where(whole, 1.0, (wanted - start) / length)
        self._enter(index, row, wanted)
        at = beside(records.y, slot, row)
        dense = None
        if (theta < 1).any():
            assert records.coefficients is not None
            dense = records.coefficients[at[0], :, at[1]].movedim(1, 0)
        y0, y1 = records.y[at], _ends(read, records)[at]
        read.values = interpolate(y0, y1, dense, from_host(theta, y0))
        read.asked = Asked(slot, row, theta, index, False)

    def _enter(self, index: np.ndarray, row: np.ndarray, t: np.ndarray) -> None:
        self.recorder.index.append(index)
        self.recorder.row.append(row)
        self.recorder.t.append(t)


def _ends(read: Read, records: Records) -> Tensor:
    """States after each attempt: where the next one starts, if nothing is reset."""
    assert read.y is not None
    return torch.cat([records.y[1 : read.used], read.y[None]])


def _due(times: SaveTimes, end: np.ndarray, ok: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Requests that lie in a chunk: slot, row, index of the request and its time."""
    before = times.next.copy()
    # Accepted steps answer; after a jump an attempt that is rejected stands beyond their ends.
    place = np.maximum.accumulate(np.where(ok, end * times.sign, -np.inf), axis=0)
    times.reach(place[-1] * times.sign)
    counts = times.next - before
    row = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(a, b) for a, b in zip(before, times.next, strict=True)] or [np.zeros(0, int)])
    index = index.astype(np.int64)
    wanted = times.times[index, row if times.times.shape[1] > 1 else 0]
    slot = np.empty(len(row), dtype=np.int64)
    for r in np.flatnonzero(counts):
        mine = row == r
        slot[mine] = np.searchsorted(place[:, r], wanted[mine] * times.sign[r], side="left")
    return slot, row, index, wanted


def _on_host(carry: Carry) -> Carry:
    """The final carry with its clocks on the host, ``(R,)``."""
    clocks = (carry.t, carry.dt, carry.status, carry.attempts, carry.accepted)
    t, dt, status, attempts, accepted = (x.numpy() for x in clocks)
    return carry._replace(t=t, dt=dt, status=status, attempts=attempts, accepted=accepted)


def run_compiled(plan: Plan, y: Tensor, dt: Any, recorder: Recorder) -> Outcome:
    """A compiled solve without a gradient.

    Raises:
        CannotCompile: the solve or its field has no compiled form.
    """
    with undone(plan, recorder):
        compilable(plan)
        check_field(plan, y)
        forward = Forward(plan, recorder, keep=False)
        with torch.no_grad():
            return forward.run(y, dt)
