"""Events of a compiled solve: looked for in the recorded steps, once for each chunk of them.

Generated code walks on without looking. Afterwards the conditions are evaluated along the steps it
recorded, all at once where they can be batched. A row that met an event is taken back to it: what
generated code did with that row later is struck from the records, and its clocks, its controller and
its solver are set as the eager loop sets them, so that the next chunk goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.loop.event import Crossing, Event, Track
from dxdt.diffeq.loop.plan import Carry, Plan
from dxdt.diffeq.loop.sign_change import Bracket, Signs, bracket
from dxdt.diffeq.loop.step import sided
from dxdt.diffeq.problem.status import RUNNING, Status
from dxdt.diffeq.programs.engine import Chunk, Records, clocks_of
from dxdt.ops.times import beside, to_host

__all__ = ["Lookout", "Met"]

_EVENT, _MAXED, _SUCCESS = Status.EVENT.code, Status.MAX_STEPS.code, Status.SUCCESS.code


class Met(NamedTuple):
    """Rows that met an event in a chunk, each in a step of its own.

    The other rows stand where one that met an event does: they are evaluated with it, of which nothing
    is wanted, and there a derivative is finite.

    Attributes:
        crossing: as ``Watch.find`` gives it.
        slot: which recorded step.
        t, dt: where it began, and its length.
        last: whether it was to end at t1.
        stop: where every row stands after it.
        y, dense: its start ``(R, n)`` and coefficients ``(degree, R, n)``.
        arrive: the state at the event, and that of the other rows after the chunk.
    """

    crossing: Crossing
    slot: np.ndarray
    t: np.ndarray
    dt: np.ndarray
    last: np.ndarray
    stop: np.ndarray
    y: Tensor
    dense: Tensor
    arrive: Tensor

    @property
    def rows(self) -> np.ndarray:
        """Which rows met one."""
        return self.crossing.rows

    @property
    def mask(self) -> Tensor:
        """The same as a tensor beside the data."""
        return beside(self.y, self.rows)[0]

    @property
    def steps(self) -> tuple[Tensor, ...]:
        """Slots and rows of the steps that were cut, beside the data."""
        row = np.flatnonzero(self.rows)
        return beside(self.y, self.slot[row], row)


@dataclass(eq=False)
class Lookout:
    """The events of a solve, looked for chunk by chunk.

    Attributes:
        plan: of the solve.
        sides: sign of each condition after the last accepted step.
        attempts, accepted: counts of each row before the present chunk.
        batched: whether the conditions can be evaluated at many steps at once.
        renewed: numbers of the attempts after which the solver's memory of some row was renewed; in the
            eager loop, where rows go side by side, each costs one evaluation.
    """

    plan: Plan
    sides: tuple[np.ndarray, ...]
    attempts: np.ndarray
    accepted: np.ndarray
    batched: bool = True
    renewed: set[int] = field(default_factory=set)

    @classmethod
    def at(cls, plan: Plan, y: Tensor) -> Lookout:
        """Before the first step.

        Raises:
            CannotCompile: conditions or reset maps draw random numbers.
        """
        assert plan.watch is not None
        count, random = np.zeros(y.shape[0], dtype=np.int64), torch.get_rng_state()
        lookout = cls(plan, plan.watch.sides(plan.span.t0, y), count, count)
        with torch.no_grad():
            plan.watch.probe(plan.span.t0, y)
        if not torch.equal(random, torch.get_rng_state()):
            torch.set_rng_state(random)
            raise CannotCompile("an event draws random numbers, others than it would draw in the eager loop")
        return lookout

    def look(self, chunk: Chunk) -> tuple[Chunk, Met | None]:
        """The chunk with its rows taken back to their events, in the records and in the carry."""
        carry = chunk.carry
        met = self._met(chunk)
        if met is not None:
            self._take_back(chunk, met)
        kept = to_host(carry.attempts).astype(np.int64) - self.attempts
        self.attempts, self.accepted = self.attempts + kept, to_host(carry.accepted).astype(np.int64)
        return chunk._replace(used=min(chunk.used, int(kept.max()))), met

    def _met(self, chunk: Chunk) -> Met | None:
        """The first event of each row."""
        assert self.plan.watch is not None
        signs, books, size = self._signs(chunk), _Books.of(chunk), len(self.attempts)
        slot, rows = np.full(size, -1), np.zeros(size, dtype=bool)
        found = [Bracket.nowhere(size)] * len(self.plan.watch.events)
        while True:
            following = self._next(signs, books.ok, np.where(rows, len(books.ok), slot))
            some = following < len(books.ok)
            if not some.any():
                break
            slot = np.where(some, following, slot)
            new = self._brackets(books, np.where(some, slot, 0), some, signs)
            found = [a.updated(b) for a, b in zip(found, new, strict=True)]
            rows = rows | np.any([b.rows for b in new], axis=0)
        return self._located(chunk, books, slot, found) if rows.any() else None

    def _brackets(self, books: _Books, slot: np.ndarray, some: np.ndarray, signs: list[Signs] | None) -> list[Bracket]:
        """Where the conditions change in the rows in ``some``, each in a step of its own; their sides follow."""
        watch, row = self.plan.watch, np.arange(len(slot))
        assert watch is not None
        track = Track(watch, *books.gathered(slot, row))
        with torch.no_grad():
            if signs is None:
                inside = [track.signs(event) for event in watch.events]
            else:
                inside = [Signs(x.values[:, slot, row], x.boolean, x.places[:, slot, row]) for x in signs]
            before = (track.leaning(*x) for x in zip(watch.events, repeat(some), self.sides, inside, strict=False))
            found = [bracket(e.direction, s, some, x) for e, s, x in zip(watch.events, before, inside, strict=True)]
        self.sides = tuple(np.where(some, new, old) for (_, new), old in zip(found, self.sides, strict=True))
        return [b for b, _ in found]

    def _located(self, chunk: Chunk, books: _Books, slot: np.ndarray, found: list[Bracket]) -> Met:
        """The events themselves; other rows stand where one that met an event does."""
        watch, carry = self.plan.watch, chunk.carry
        assert watch is not None and chunk.records is not None
        rows = np.any([b.rows for b in found], axis=0)
        donor = np.where(rows, np.arange(len(rows)), np.flatnonzero(rows)[0])
        slot = slot[donor]
        t, dt, y, dense = books.gathered(slot, donor)
        with torch.no_grad():
            crossing, self.sides = watch.locate(Track(watch, t, dt, y, dense), found, self.sides)
        assert crossing is not None
        crossing = crossing._replace(theta=crossing.theta[donor])
        end = to_host(chunk.records.end[: chunk.used])[slot, donor]
        stop = np.where(crossing.theta < 1, t + crossing.theta * dt, end)
        stop = np.where(rows, stop, to_host(carry.t))
        last = rows & (end == np.atleast_1d(self.plan.span.t1)[donor])
        return Met(crossing, slot, t, dt, last, stop, y, dense, carry.y.clone())

    def _take_back(self, chunk: Chunk, met: Met) -> None:
        """Set rows to where their events leave them."""
        plan, carry, rows = self.plan, chunk.carry, met.rows
        watch, mask = plan.watch, met.mask
        assert watch is not None and chunk.records is not None
        with torch.no_grad():
            _, arrive, leave = watch.meet(met.crossing, met.t, met.dt, met.y, met.dense)
        met.arrive[mask] = arrive[mask]
        ok = to_host(chunk.records.dt[: chunk.used]) != 0
        accepted = self.accepted + ok.cumsum(0)[met.slot, np.arange(len(rows))]
        _strike(chunk.records, chunk.used, met)
        attempts = self.attempts + met.slot + 1
        self._set_clocks(chunk, met, attempts)
        for ticks, value in ((carry.t, met.stop), (carry.attempts, attempts), (carry.accepted, accepted)):
            _set(ticks, rows, value)
        carry.y[mask] = leave[mask]
        self._renew(carry, met, attempts)

    def _set_clocks(self, chunk: Chunk, met: Met, attempts: np.ndarray) -> None:
        """Status, step and controller of rows that met an event, as ``loop._watched`` sets them."""
        carry, rows, ends = chunk.carry, met.rows, met.crossing.ends
        status = np.where(attempts >= self.plan.max_steps, _MAXED, RUNNING)
        status = np.where(met.stop == self.plan.span.t1, _SUCCESS, status)
        _set(carry.status, rows, np.where(ends, _EVENT, status))
        records, row = chunk.records, np.arange(len(rows))
        if records is None or records.clocks is None:
            return
        before = to_host(records.clocks[: chunk.used])
        after = np.concatenate([before[1:], to_host(clocks_of(carry))[None]])[met.slot, :, row].T
        before = before[met.slot, :, row].T
        rest = met.t + met.dt - met.stop
        goes = abs(rest) > 1e-12 * abs(met.dt)
        clocks = np.where(goes, before, after)
        clocks[0] = np.where(goes, rest, after[0])
        for ticks, value in zip((carry.dt, *carry.control), clocks, strict=True):
            _set(ticks, rows, value)

    def _renew(self, carry: Carry, met: Met, attempts: np.ndarray) -> None:
        """Solver state of rows that go on."""
        goes = met.rows & ~met.crossing.ends
        if not goes.any() or not carry.solver:
            return
        plan, meter = self.plan, self.plan.equation.meter
        (rows,) = beside(carry.y, goes)
        assert meter is not None
        count = meter.evaluations
        clocks = to_host(carry.t) if plan.equation.layout.per_sample else to_host(carry.t)[0]
        with torch.no_grad():
            state = plan.solver.init(sided(plan, clocks), carry.t.to(carry.y.device), carry.y, plan.dense)
        meter.evaluations = count
        for old, new in zip(carry.solver, state, strict=True):
            old[rows] = new[rows]
        self.renewed.update(attempts[goes].tolist())

    def _next(self, signs: list[Signs] | None, ok: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """For each row the first step behind ``slot`` in which a condition may have changed its sign."""
        due = ok & (np.arange(len(ok))[:, None] > slot)
        if signs is not None:
            moved = np.zeros(ok.shape, dtype=bool)
            for (sign, boolean, _), side in zip(signs, self.sides, strict=True):
                # What is true ends a row whatever it was before.
                moved |= (sign > 0 if boolean else (sign != side) | (sign == 0)).any(0)
            due &= moved
        return np.where(due.any(0), due.argmax(0), len(ok))

    def _signs(self, chunk: Chunk) -> list[Signs] | None:
        """Signs of each condition inside all steps, ``(checks, K, R)``, or None if they are not batched."""
        if not self.batched or not chunk.used:
            return None
        assert self.plan.watch is not None
        try:
            with torch.no_grad():
                return [self._sign(event, chunk) for event in self.plan.watch.events]
        except (RuntimeError, NotImplementedError):
            self.batched = False  # branches on values; they are looked at step by step
            return None

    def _sign(self, event: Event, chunk: Chunk) -> Signs:
        records, used, watch = chunk.records, chunk.used, self.plan.watch
        assert watch is not None and records is not None and records.coefficients is not None
        *lower, top = records.coefficients[:used].unbind(1)
        t, dt = (x[:used].to(top.device) for x in (records.t, records.dt))
        at = torch.vmap(lambda t, y: watch._value(event, watch._time(t, y), y))

        def values(theta: Tensor) -> Tensor:
            """The condition at points ``(P, K or 1, R or 1)`` of the steps."""
            place, rise = theta.to(top.dtype).unsqueeze(-1), top
            for c in reversed(lower):
                rise = torch.addcmul(c, place, rise)
            times, states = t + theta * dt, torch.addcmul(records.y[:used], place, rise)
            return at(times.flatten(0, 1), states.flatten(0, 1)).reshape(len(theta), used, -1)

        theta = torch.arange(event.checks + 1, dtype=torch.float64, device=top.device) / event.checks
        value = values(theta[:, None, None])
        if value.dtype is torch.bool:
            return Signs.at_end(to_host(value[-1]))
        return Signs.along(to_host(value), lambda x: to_host(values(beside(top, x)[0][None]))[0])


class _Books(NamedTuple):
    """The records of a chunk as events see them: clocks on the host."""

    t: np.ndarray
    dt: np.ndarray
    ok: np.ndarray
    records: Records

    @classmethod
    def of(cls, chunk: Chunk) -> _Books:
        assert chunk.records is not None
        t, dt = (to_host(x[: chunk.used]) for x in chunk.records[:2])
        return cls(t, dt, dt != 0, chunk.records)

    def gathered(self, slot: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
        """Start, length, state and coefficients of a step for each row."""
        records = self.records
        assert records.coefficients is not None
        at = beside(records.y, slot, row)
        dense = records.coefficients[at[0], :, at[1]].movedim(1, 0)
        return self.t[slot, row], self.dt[slot, row], records.y[at], dense


def _strike(records: Records, used: int, met: Met) -> None:
    """Remove what was recorded of rows after their events: they stand still there."""
    row = np.flatnonzero(met.rows)
    records.end.numpy()[met.slot[row], row] = met.stop[row]
    later = np.arange(used)[:, None] > np.where(met.rows, met.slot, used)
    for clock in (records.t, records.end):
        clock.numpy()[:used] = np.where(later, met.stop, clock.numpy()[:used])
    records.dt.numpy()[:used][later] = 0.0
    at, row = beside(records.y, *np.nonzero(later))
    records.y[at, row] = met.arrive[row]
    assert records.coefficients is not None
    records.coefficients[at, :, row] = 0


def _set(ticks: Tensor, rows: np.ndarray, value: np.ndarray) -> None:
    """Write clocks of some rows."""
    ticks.numpy()[rows] = value[rows]
