"""Symplectic methods for separable systems: drifts of q and kicks of p in turn.

    dq/dt = f(t, p),   dp/dt = g(t, q)

    for each stage i:   q <- q + a_i dt f(t + B_i dt, p),   p <- p + b_i dt g(t + A_i dt, q)

with A_i the sum of a up to and with i, and B_i the sum of b before i: time moves with q for the
kicks and with p for the drifts, so that systems that depend on time are separable as well. For
Hamiltonian f and g each step is a symplectic map; with equal steps the energy stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, cast, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.problem.equation import Equation, Field, Rows
from dxdt.ops.times import END, START, Table, Ticks, factors, moments, scaled_sum
from dxdt.ops.tree import Layout, Tree

__all__ = [
    "BlanesMoan4",
    "BlanesMoan6",
    "SemiImplicitEuler",
    "Separable",
    "StoermerVerlet",
    "Symplectic",
    "Yoshida4",
]


@dataclass(frozen=True)
class Separable(Equation):
    """Separable system dq/dt = dq(t, p, *args), dp/dt = dp(t, q, *args) on the state ``(q, p)``.

    Every solver for ordinary equations solves it; symplectic methods use the two halves.

    Args:
        dq: velocity; its value has the structure of q.
        dp: force; its value has the structure of p.
    """

    dq: Field
    dp: Field

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The time derivative of the state (q, p)."""
        q, p = y
        return self.dq(t, p, *args), self.dp(t, q, *args)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The user's callables, searched for parameters."""
        return (self.dq, self.dp)

    def with_fields(self, *fields: Field) -> Separable:
        return Separable(*fields)


class _Halves:
    """The halves of a separable equation, acting on rows."""

    def __init__(self, eq: Rows) -> None:
        self.eq = eq
        self.q, self.p = _layouts(eq.layout)

    def velocity(self, t: Tensor, p: Tensor) -> Tensor:
        return self._value(cast(Separable, self.eq.equation).dq, t, self.p.unpack(p), self.q, "dq's value")

    def force(self, t: Tensor, q: Tensor) -> Tensor:
        return self._value(cast(Separable, self.eq.equation).dp, t, self.q.unpack(q), self.p, "dp's value")

    def _value(self, field: Field, t: Tensor, x: Tree, layout: Layout, what: str) -> Tensor:
        eq = self.eq
        value = field(eq.seen(t), x, *eq.args)
        if eq.meter is not None:
            if eq.meter.evaluations < 2:
                layout.check(value, what)
            eq.meter.evaluations += 1
        rows = layout.pack(value)
        return rows if eq.muted is None else torch.where(eq.muted.to(rows.device), 0.0, rows)


def _layouts(layout: Layout) -> tuple[Layout, Layout]:
    """How q and p lie in the columns of (q, p)."""
    first, second = layout.spec.children()
    n = first.num_leaves
    halves = []
    for spec, part in ((first, slice(None, n)), (second, slice(n, None))):
        shapes, dtypes = layout.shapes[part], layout.dtypes[part]
        pairs = zip(shapes, dtypes, strict=True)
        size = sum(prod(s) * (2 if d.is_complex else 1) for s, d in pairs)
        halves.append(replace(layout, spec=spec, shapes=shapes, dtypes=dtypes, size=size))
    return halves[0], halves[1]


@dataclass(frozen=True)
class Composition:
    """Coefficients of a method.

    Args:
        drifts: a, by stage; zero where a stage only kicks.
        kicks: b, by stage.
        order: order of the method.
    """

    drifts: tuple[float, ...]
    kicks: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        for name in ("drifts", "kicks"):
            if abs(sum(getattr(self, name)) - 1) > 1e-12:
                raise ValueError(f"Composition.{name} sums to {sum(getattr(self, name)):.12g}: give 1")
        lengths = Table.of(np.stack([self.drifts, self.kicks], 1).ravel())
        nodes = np.stack([np.cumsum([0.0, *self.kicks[:-1]]), np.cumsum(self.drifts)], 1)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "nodes", Table.of([*nodes.ravel(), 1.0]))

    lengths: ClassVar[Table]
    """a and b in turn, stage by stage."""

    nodes: ClassVar[Table]
    """Where the velocity and the force of each stage are evaluated, and the end."""

    @property
    def kicks_first(self) -> bool:
        """Whether a step begins with the kick with which the one before it ended."""
        return self.drifts[0] == 0


class Symplectic(Solver):
    """Base of the symplectic methods; a method is a subclass that gives ``composition``.

    Where steps end with a kick and begin with one, the last force serves the next step. Each call
    of dq or dp counts as an evaluation. Dense output is cubic.
    """

    composition: ClassVar[Composition]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        rule = cls.composition
        stages = 2 * len(rule.drifts) - 2 * rule.kicks_first
        cls.facts = Facts(rule.order, stages, min(3, rule.order), degree=3, separable=True, compiles=True)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        if not (hasattr(eq.equation, "dq") and hasattr(eq.equation, "dp")):
            name = type(eq.equation).__name__
            raise TypeError(
                f"{type(self).__name__} solves separable systems but was given {name}: "
                f"write the equation as dxdt.Separable(dq, dp)"
            )
        (start,) = moments(t, t * 0, START, eq.layout)
        halves = _Halves(eq)
        q, p = y[:, : halves.q.size], y[:, halves.q.size :]
        force = (halves.force(start, q),) if dense or self.composition.kicks_first else ()
        return (*force, halves.velocity(start, p)) if dense else force

    def opening(self, state: State) -> int:
        return len(state)

    def cost(self, state: State) -> int:
        # Dense output adds the velocity at the end, which serves a step that begins with a drift.
        return self.facts.stages + (self.composition.kicks_first and len(state) == 2)

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        halves, rule = _Halves(eq), self.composition
        lengths = factors(rule.lengths, dt, y)
        times = moments(t, dt, rule.nodes, eq.layout)
        q, p = y[:, : halves.q.size], y[:, halves.q.size :]
        force = state[0] if state else None
        for i, (a, b) in enumerate(zip(rule.drifts, rule.kicks, strict=True)):
            if a:
                f = state[1] if i == 0 and len(state) == 2 else halves.velocity(times[2 * i], p)
                q, force = scaled_sum(q, lengths[2 * i], f), None
            if b:
                force = halves.force(times[2 * i + 1], q) if force is None else force
                p = scaled_sum(p, lengths[2 * i + 1], force)
        assert force is not None
        new = torch.cat([q, p], 1)
        if len(state) < 2:
            return Step(new, None, (force,) if rule.kicks_first else (), ())
        after = force, halves.velocity(times[-1], p)
        return Step(new, None, after, (*state, *after))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        g0, f0, g1, f1 = step.data
        slopes = torch.cat([f0, g0], 1), torch.cat([f1, g1], 1)
        return torch.stack(hermite(y, step.y, h * slopes[0], h * slopes[1]))


@final
@dataclass(frozen=True)
class SemiImplicitEuler(Symplectic):
    """Semi-implicit (symplectic) Euler: q' = q + dt f(t, p), p' = p + dt g(t + dt, q').

    R. de Vogelaere, "Methods of integration which preserve the contact transformation property of
    the Hamilton equations", Report 4, University of Notre Dame (1956).
    """

    composition = Composition((1.0,), (1.0,), 1)


@final
@dataclass(frozen=True)
class StoermerVerlet(Symplectic):
    """Stoermer-Verlet, or leapfrog, as half a kick, a drift, half a kick: one force a step.

    L. Verlet, "Computer experiments on classical fluids I", Phys. Rev. 159 (1967).
    """

    composition = Composition((0.0, 1.0), (0.5, 0.5), 2)


_OUTER = 1 / (2 - 2 ** (1 / 3))
_INNER = 1 - 2 * _OUTER


@final
@dataclass(frozen=True)
class Yoshida4(Symplectic):
    """Three Stoermer-Verlet steps of lengths w, 1 - 2 w, w with w = 1 / (2 - 2^(1/3)).

    H. Yoshida, "Construction of higher order symplectic integrators", Phys. Lett. A 150 (1990).
    """

    composition = Composition(
        (0.0, _OUTER, _INNER, _OUTER),
        (_OUTER / 2, (_OUTER + _INNER) / 2, (_OUTER + _INNER) / 2, _OUTER / 2),
        4,
    )


def _mirrored(half: list[float], middle: bool) -> tuple[float, ...]:
    """A palindrome that sums to one: given entries around one in the middle, or around a pair."""
    rest = 1 - 2 * sum(half)
    centre = [rest] if middle else [rest / 2, rest / 2]
    return (*half, *centre, *reversed(half))


@final
@dataclass(frozen=True)
class BlanesMoan4(Symplectic):
    """Optimised symmetric splitting of order four with six drifts.

    S. Blanes, P. Moan, "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystroem
    methods", J. Comput. Appl. Math. 142 (2002), method S6.
    """

    composition = Composition(
        (0.0, *_mirrored([0.209515106613362, -0.143851773179818], middle=False)),
        _mirrored([0.0792036964311957, 0.353172906049774, -0.0420650803577195], middle=True),
        4,
    )


@final
@dataclass(frozen=True)
class BlanesMoan6(Symplectic):
    """Optimised symmetric splitting of order six with ten drifts.

    S. Blanes, P. Moan, "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystroem
    methods", J. Comput. Appl. Math. 142 (2002), method S10.
    """

    composition = Composition(
        (
            0.0,
            *_mirrored(
                [0.148816447901042, -0.132385865767784, 0.067307604692185, 0.432666402578175],
                middle=False,
            ),
        ),
        _mirrored(
            [
                0.0502627644003922,
                0.413514300428344,
                0.0450798897943977,
                -0.188054853819569,
                0.541960678450780,
            ],
            middle=True,
        ),
        6,
    )
