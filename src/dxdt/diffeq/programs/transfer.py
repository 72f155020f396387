"""A carry on its way between a program, whose clocks lie beside the data, and the host."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dxdt.diffeq.loop.plan import Carry, pack
from dxdt.ops.times import hosted, placed

__all__ = ["beside_data", "on_host"]


def on_host(carry: Carry, *more: Tensor) -> tuple[list[Tensor], Carry]:
    """A carry with its clocks on the host, and more clocks that come with them."""
    clocks = hosted([*_clocks(carry), *more])
    size = len(clocks) - len(more)
    return clocks[size:], _with_clocks(carry, clocks[:size])


def beside_data(carry: Carry) -> tuple[Tensor, ...]:
    """Such a carry as a program takes it."""
    return pack(_with_clocks(carry, placed(_clocks(carry), carry.y.device)))


def _clocks(carry: Carry) -> list[Tensor]:
    return [carry.t, carry.dt, *carry.control, carry.status, carry.attempts, carry.accepted]


def _with_clocks(carry: Carry, clocks: Sequence[Tensor]) -> Carry:
    t, dt, *control, status, attempts, accepted = clocks
    return carry._replace(t=t, dt=dt, control=tuple(control), status=status, attempts=attempts, accepted=accepted)
