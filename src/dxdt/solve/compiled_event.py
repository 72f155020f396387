"""Events of a compiled solve: looked for in the recorded steps, once for each chunk of them.

Generated code walks on without looking. Afterwards the conditions are evaluated along the steps it
recorded, all at once where they can be batched; a row that met an event is taken back to it, and
what generated code did with that row later is struck from the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dxdt.ops.clock import beside, from_host, to_host
from dxdt.solve.engine import Chunk
from dxdt.solve.event import Crossing, Event, Watch
from dxdt.solve.gradient import Outcome
from dxdt.solve.record import Recorder
from dxdt.solve.save import polynomial
from dxdt.solve.solution import Status

__all__ = ["Lookout", "Met", "tied"]

_EVENT = Status.EVENT.code


@dataclass(eq=False)
class Met:
    """The steps in which rows met an event, one a row; zeros for rows without.

    Attributes:
        rows, theta, which: as in ``Crossing``.
        chunk, slot: which recorded step.
        t, dt: where it began, and its length.
        y, dense: its start ``(R, n)`` and coefficients ``(degree, R, n)``.
    """

    rows: np.ndarray
    theta: np.ndarray
    which: np.ndarray
    chunk: np.ndarray
    slot: np.ndarray
    t: np.ndarray
    dt: np.ndarray
    y: Tensor
    dense: Tensor

    @classmethod
    def nowhere(cls, y: Tensor, degree: int) -> Met:
        """No row has met an event."""
        rows = y.shape[0]
        none, zero = np.zeros(rows, dtype=np.int64), np.zeros(rows)
        return cls(
            none > 0, zero + 1, none - 1, none - 1, none.copy(), zero.copy(), zero + 1, y, y.new_zeros(degree, *y.shape)
        )


@dataclass(eq=False)
class Lookout:
    """The events of a solve, looked for chunk by chunk.

    Attributes:
        sides: sign of each condition after the last accepted step.
        attempts, accepted: counts of each row before the present chunk.
        chunk: number of the present chunk.
        batched: whether the conditions can be evaluated at many steps at once.
        ends: for each step with events, the rows that met one there and where every row stood.
    """

    watch: Watch
    recorder: Recorder
    sides: tuple[np.ndarray, ...]
    met: Met
    attempts: np.ndarray
    accepted: np.ndarray
    chunk: int = 0
    batched: bool = True
    ends: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def at(cls, watch: Watch, recorder: Recorder, t0: np.ndarray, y: Tensor, degree: int) -> Lookout:
        """Before the first step."""
        count = np.zeros(y.shape[0], dtype=np.int64)
        return cls(watch, recorder, watch.sides(t0, y), Met.nowhere(y, degree), count, count)

    def look(self, chunk: Chunk) -> Chunk:
        """The chunk with its rows stopped at their events, in the records and in the carry."""
        records, used, carry = chunk.records, chunk.used, chunk.carry
        assert records is not None and records.coefficients is not None
        t, dt = records.t.numpy(), records.dt.numpy()
        cut = np.zeros(dt[:used].shape, dtype=bool)
        signs = self._signs(chunk)
        ran = carry.attempts.numpy() - self.attempts
        k = 0
        while (k := self._next(signs, dt[:used] != 0, k)) < used:
            ok, y, dense = dt[k] != 0, records.y[k], records.coefficients[k]
            crossing, self.sides = self.watch.find(t[k], dt[k], ok, y, dense, self.sides)
            if crossing is not None:
                self._stop(chunk, k, crossing)
                cut[k], ran = crossing.rows, np.where(crossing.rows, k + 1, ran)
            k += 1
        self.attempts, self.accepted = carry.attempts.numpy().copy(), carry.accepted.numpy().copy()
        self.chunk += 1
        return chunk._replace(used=min(used, int(ran.max())), cut=cut)

    def _stop(self, chunk: Chunk, k: int, crossing: Crossing) -> None:
        """End rows at step ``k`` and strike what they did later."""
        records, carry = chunk.records, chunk.carry
        assert records is not None and records.coefficients is not None
        met, rows = self.met, np.asarray(crossing.rows)
        (mask,) = beside(carry.y, rows)
        t, dt, end = (x.numpy() for x in records[:3])
        stop = np.where(rows, t[k] + crossing.theta * dt[k], end[k])
        ok = dt[: k + 1] != 0
        for name, value in (("theta", crossing.theta), ("which", crossing.which), ("chunk", self.chunk), ("slot", k)):
            setattr(met, name, np.where(rows, value, getattr(met, name)))
        met.t, met.dt, met.rows = np.where(rows, t[k], met.t), np.where(rows, dt[k], met.dt), met.rows | rows
        wide = mask[:, None]
        met.y, met.dense = (
            torch.where(wide, a, b) for a, b in ((records.y[k], met.y), (records.coefficients[k], met.dense))
        )
        theta = from_host(np.asarray(crossing.theta), met.y)
        arrive = records.y[k] + polynomial(records.coefficients[k], theta)
        end[k] = stop
        t[k + 1 :, rows], dt[k + 1 :, rows], end[k + 1 :, rows] = stop[rows], 0.0, stop[rows]
        records.y[k + 1 :, mask] = arrive[mask]
        records.coefficients[k + 1 :, :, mask] = 0
        carry.y[mask] = arrive[mask]
        mask = torch.from_numpy(rows)
        carry.t[mask] = torch.from_numpy(stop)[mask]
        carry.status[mask] = _EVENT
        carry.attempts[mask] = torch.from_numpy(self.attempts + k + 1)[mask]
        carry.accepted[mask] = torch.from_numpy(self.accepted + ok.sum(0))[mask]
        self.recorder.crossings.append(np.asarray(crossing.which))
        self.ends.append((rows, stop))

    def _next(self, signs: list[np.ndarray] | None, ok: np.ndarray, k: int) -> int:
        """The first step from ``k`` on in which a condition may have changed its sign."""
        if signs is None or k >= len(ok):
            return k
        moved = np.zeros(len(ok) - k, dtype=bool)
        for sign, side in zip(signs, self.sides, strict=True):
            moved |= (ok[k:] & ((sign[k:] != side) | (sign[k:] == 0)).any(1)).any(1)
        return k + int(moved.argmax()) if moved.any() else len(ok)

    def _signs(self, chunk: Chunk) -> list[np.ndarray] | None:
        """Signs of each condition inside all steps, ``(K, checks, R)``, or None if they are not batched."""
        if not self.batched or not chunk.used:
            return None
        try:
            with torch.no_grad():
                return [self._sign(event, chunk) for event in self.watch.events]
        except (RuntimeError, NotImplementedError):
            self.batched = False  # branches on values; they are looked at step by step
            return None

    def _sign(self, event: Event, chunk: Chunk) -> np.ndarray:
        records, used = chunk.records, chunk.used
        assert records is not None and records.coefficients is not None
        y, dense = records.y[:used], records.coefficients[:used]
        *lower, top = dense.unbind(1)
        values = []
        for j in range(1, event.checks + 1):
            theta, rise = j / event.checks, top
            for c in reversed(lower):
                rise = torch.add(c, rise, alpha=theta)
            (time,) = beside(y, records.t[:used].numpy() + theta * records.dt[:used].numpy())
            at = torch.vmap(lambda t, y: self.watch._value(event, self.watch._time(t, y), y))
            values.append(at(time, y + theta * rise))
        value = torch.stack(values, 1)
        if value.dtype is torch.bool:
            # What is true ends a row whatever it was before: zero marks it.
            return np.where(to_host(value[:, -1:]) > 0, 0.0, -1.0)
        return np.sign(to_host(value))


def tied(outcome: Outcome, lookout: Lookout, steps: tuple[Tensor, Tensor] | None = None) -> Outcome:
    """The outcome with its events, differentiable in the conditions and in ``steps``: the starts
    ``(R, n)`` and coefficients ``(degree, R, n)`` of the steps in which they lie."""
    met = lookout.met
    if not lookout.ends:
        return outcome
    crossing = Crossing(met.rows, met.theta, met.which, met.rows)
    time, arrive, _ = lookout.watch.meet(crossing, met.t, met.dt, *((met.y, met.dense) if steps is None else steps))
    device = outcome.y.device
    times = [
        torch.where(*(torch.as_tensor(x, device=device) for x in (rows, time, stop))) for rows, stop in lookout.ends
    ]
    y = torch.where(torch.as_tensor(met.rows, device=device)[:, None], arrive, outcome.y)
    return outcome._replace(y=y, times=torch.stack(times), origin=time)
