"""The backward pass of a chunk: its steps formed again, from last to first, and pulled through.

One program serves a chunk of any number of steps. The same function runs as a Python loop with
autograd where it has no compiled form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.func import functional_call

from dxdt.compiler.cuda import replays
from dxdt.compiler.explain import CannotCompile
from dxdt.compiler.open_sizes import leave_open
from dxdt.diffeq.methods.solver import Phase, Solver, State
from dxdt.diffeq.problem.equation import Rows
from dxdt.diffeq.programs.batch import Batch
from dxdt.diffeq.programs.signature import Form
from dxdt.ops.modules import named
from dxdt.ops.tree import Layout, flatten

__all__ = [
    "Found",
    "Holder",
    "Made",
    "Memory",
    "Pulled",
    "Taken",
    "any_length",
    "filled",
    "hold",
    "means",
    "opened",
    "reverse",
    "room",
]


class Holder(nn.Module):
    """Fields and the modules they use, so that their parameters can be given from outside."""

    called: tuple[Any, ...]

    def __init__(self, f: Any, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        # One is made for each solve: entered as they are, for what else torch would look at is known.
        self._modules.update((str(i), module) for i, module in enumerate(modules))
        self.__dict__["called"] = f if isinstance(f, tuple) else (f,)

    def forward(self, which: int, *given: Any) -> Any:
        """The value of one of the fields."""
        return self.called[which](*given)


def hold(f: Any, modules: Iterator[nn.Module], params: tuple[Tensor, ...]) -> tuple[Holder, tuple[str, ...]]:
    """The field with its modules, and the names of the parameters there, in their order.

    Raises:
        CannotCompile: a parameter belongs to no module of the field.
    """
    holder = Holder(f, list({id(m): m for m in modules}.values()))
    names = named(holder)
    if any(id(p) not in names for p in params):
        raise CannotCompile(
            "a tensor in params= belongs to no module of the field, so it cannot be an input of the program"
        )
    return holder, tuple(names[id(p)] for p in params)


def any_length(parts: Iterable[Tensor | None]) -> None:
    """Let the first size of tensors vary between calls of a program."""
    for x in parts:
        if x is not None:
            leave_open(x, 0)


def room(steps: int, device: torch.device) -> int:
    """Slots for so many steps: at least two, since compilers make a size of one a special case; few sizes
    where each is captured."""
    return max(16, 1 << (steps - 1).bit_length()) if replays(device) else max(2, steps)


def filled(x: Tensor, size: int) -> Tensor:
    """Steps in so many slots; the others are never asked for."""
    return torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


class Taken(NamedTuple):
    """Steps of a chunk and the cotangents that enter at each: of the value at its end and at its
    start ``(K, R, n)``, and of its coefficients ``(K, degree, R, n)``.

    Attributes:
        number: names of the steps, ``(K, R)``, where noise has to know them.
        states: of a solver that remembers: its state at the start of each step ``(K, R, ...)``.
        sides: the first and the last time that the step shows to the field, ``(K, R)`` each, where the field jumps.
        leap: time just beyond a jump at which such a state is renewed after the step, ``(K, R)``, else NaN.
    """

    t: Tensor
    dt: Tensor
    y: Tensor
    end: Tensor
    start: Tensor
    coefficients: Tensor | None
    number: Tensor | None
    states: tuple[Tensor, ...] = ()
    sides: tuple[Tensor, ...] = ()
    leap: Tensor | None = None

    def any_length(self) -> Taken:
        """The same for a program that serves any number of steps."""
        size = room(len(self.t), self.t.device)
        taken = self.each(lambda x: x if len(x) == size else filled(x, size))
        taken.each(lambda x: any_length([x]))
        return taken

    def each(self, f: Callable[[Tensor], Any]) -> Taken:
        """``f`` of all that there is."""
        parts = (tuple(map(f, x)) if isinstance(x, tuple) else None if x is None else f(x) for x in self)
        return Taken(*parts)  # pyright: ignore[reportArgumentType]

    def at(self, i: Tensor, like: Tensor) -> Taken:
        """One step, its state in rows such as ``like``."""
        slot = i.reshape(1)
        one = self.each(lambda x: x.index_select(0, slot)[0])
        y, end, start = (x.reshape(like.shape) for x in (one.y, one.end, one.start))
        held = one.coefficients
        held = None if held is None else held.reshape(held.shape[0], *like.shape)
        return one._replace(y=y, end=end, start=start, coefficients=held)


class Memory(NamedTuple):
    """What carries the cotangents of a solver's state through a chunk and, at the start of the solve, out of it.

    Attributes:
        state: cotangents at the end of the chunk, ``(R, ...)`` each.
        t0, y0: where the solve began.
        first: whether the chunk is the first, ``()``.
        bounds: for each phase but the last, how many steps of the chunk are taken before its end, ``()`` each.
    """

    state: tuple[Tensor, ...]
    t0: Tensor
    y0: Tensor
    first: Tensor
    bounds: tuple[Tensor, ...]


class Found(NamedTuple):
    """Cotangents of the start of a chunk, of t0 and t1 where they are wanted, of what its steps share, and of the
    state of a solver that remembers."""

    y: Tensor
    ends: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]
    state: tuple[Tensor, ...]


class Pulled(NamedTuple):
    """What the backward pass of a chunk is formed from (see ``reverse``)."""

    holder: Holder
    args: tuple[Any, ...]
    names: tuple[str, ...]
    shared: tuple[Tensor, ...]
    taken: Taken
    last: Tensor
    gy: Tensor
    totals: Any
    clocks: tuple[Tensor, Tensor] | None
    noise: Any
    memory: Memory | None = None

    def opened(self, batch: Batch | None, layout: Layout) -> Pulled:
        """The same as inputs of a program whose batch is open where it is one."""
        if batch is None:
            return self

        def rows(x: Tensor | None, axis: int = 1) -> Any:
            return None if x is None else batch.rows(x, layout, axis)

        taken = self.taken
        t, dt, y, end, start = (rows(x) for x in taken[:5])
        return self._replace(
            args=batch.args(self.args),
            shared=batch.shared(self.shared, self.args),
            taken=Taken(
                *(t, dt, y, end, start, rows(taken.coefficients, 2), rows(taken.number)),
                sides=tuple(rows(x) for x in taken.sides),
            ),
            gy=rows(self.gy, 0),
            totals=batch.shared(self.totals, self.args),
            clocks=None if self.clocks is None else (rows(self.clocks[0]), rows(self.clocks[1])),
        )


def opened(
    form: Form, layout: Layout, holder: Holder, args: tuple[Any, ...], names: tuple[str, ...]
) -> Callable[[Sequence[Tensor], Any], Rows]:
    """The equation as a function of the tensors that its fields share and of the random path.

    These are the tensors among the arguments, in their order, and the parameters of those names.
    """
    leaves, spec = flatten(args)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())]

    def rows_of(inner: Sequence[Tensor], path: Any) -> Rows:
        now = list(leaves)
        for i, x in zip(places, inner, strict=False):
            now[i] = x
        named = dict(zip(names, inner[len(places) :], strict=True))
        f = form.called(lambda *given: functional_call(holder, named, given))
        return form.rows(f, layout, tuple(spec.unflatten(now)), path)

    return rows_of


def reverse(
    phases: Sequence[Phase],
    form: Form,
    layout: Layout,
    dense: bool,
    holder: Holder,
    args: tuple[Any, ...],
    names: tuple[str, ...],
    shared: tuple[Tensor, ...],
    taken: Taken,
    last: Tensor,
    gy: Tensor,
    totals: Any,
    clocks: tuple[Tensor, Tensor] | None,
    noise: Any,
    memory: Memory | None,
) -> Found:
    """Cotangents of the start of a chunk and of what its steps share, from those of its end.

    ``last`` is the place of the last step in ``taken``. Where derivatives for times are wanted, ``clocks`` says
    which steps begin at t0 and which end at t1, ``(K, R)`` each, and two cotangents ``(R,)`` of t0 and t1 follow
    that of the start. Nothing is written in place: what the compiler makes of that fails inside derivatives.
    A solver that remembers has a ``memory``; the state of another is formed again where each step begins.
    """
    gy = gy.reshape(layout.rows, layout.size)
    rows_of = opened(form, layout, holder, args, names)
    size = 0 if memory is None else len(memory.state)

    def step(solver: Solver, path: Any, at: Taken, t: Tensor, dt: Tensor, y: Tensor, *inner: Tensor) -> Any:
        whole = rows_of(inner[size:], path)
        rows = whole.between(*at.sides) if at.sides else whole
        # A tensor in any case: solvers know by it that they cannot look at values.
        index = torch.zeros_like(at.t, dtype=torch.int64) if at.number is None else at.number
        state = solver.init(rows, t, y, dense) if memory is None else inner[:size]
        after = solver.step(rows, t, dt, y, state, index)
        kept = () if memory is None else after.state
        if at.leap is not None:
            jumped = ~at.leap.isnan()
            kept = _renewed(solver.init(whole, torch.where(jumped, at.leap, at.t), after.y, dense), kept, jumped)
        return after.y, *kept, *((solver.dense(after, dt, y),) if dense else ())

    def walk(solver: Solver, least: Tensor | None, carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def keeps(i: Tensor, *carry: Tensor) -> Tensor:
            return i >= (0 if least is None else least)

        def body(i: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
            cotangents, moved, totals = carry[: 1 + size], carry[1 + size : first], carry[first:]
            at = taken.at(i, carry[0])
            t, dt = at.t, at.dt
            path = None if noise is None else Made(noise.increment(t, dt, 0 if at.number is None else at.number))
            ok = dt != 0
            entering = [cotangents[0] + at.end, *cotangents[1:]]
            cots = [torch.where(_wide(ok, g), g, 0.0) for g in entering]
            if at.coefficients is not None:
                cots.append(at.coefficients)
            begun = (at.y, *at.states, *shared)
            if clocks is None:
                found = pull(lambda *x: step(solver, path, at, t, dt, *x), begun, tuple(cots))
            else:
                gt, gdt, *found = pull(lambda *x: step(solver, path, at, *x), (t, dt, *begun), tuple(cots))
                fresh, last = (x.index_select(0, i.reshape(1))[0] for x in clocks)
                moved = moved[0] + torch.where(fresh, gt - gdt, 0.0), moved[1] + torch.where(last, gdt, 0.0)
            back = [found[0] + at.start, *found[1 : 1 + size]]
            return (
                i - 1,
                *(torch.where(_wide(ok, g), b, g) for b, g in zip(back, cotangents, strict=True)),
                *moved,
                *(a + b for a, b in zip(totals, found[1 + size :], strict=True)),
            )

        return loop(keeps, body, carry)

    ends = () if clocks is None else (torch.zeros_like(taken.t[0]), torch.zeros_like(taken.t[0]))
    first = 1 + size + len(ends)
    pull, loop = means()
    states = () if memory is None else memory.state
    carry = (last.clone(), gy.clone(), *(x.clone() for x in states), *ends, *(x.clone() for x in totals))
    for n in range(len(phases) - 1, -1, -1):
        carry = walk(phases[n].solver, memory.bounds[n - 1] if memory is not None and n else None, carry)
    gy, states, ends, totals = carry[1], carry[2 : 2 + size], carry[2 + size : 1 + first], carry[1 + first :]
    if memory is None:
        return Found(gy, ends, totals, ())
    # The solver's state was formed at the start of the solve.
    cots = tuple(torch.where(memory.first, g, 0.0) for g in states)
    begun = (memory.t0, memory.y0, *shared)
    gt, back, *rest = pull(lambda t, y, *x: phases[0].solver.init(rows_of(x, noise), t, y, dense), begun, cots)
    ends = (ends[0] + gt, ends[1]) if ends else ()
    return Found(gy + back, ends, tuple(a + b for a, b in zip(totals, rest, strict=True)), states)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (like.dim() - 1))


def _renewed(new: State, old: State, rows: Tensor) -> State:
    return tuple(torch.where(_wide(rows, a), a, b) for a, b in zip(new, old, strict=True))


def means() -> tuple[Callable[..., Sequence[Tensor]], Callable[..., Any]]:
    """How to pull cotangents through a function, and how to loop: inside a compiler, or in Python with autograd."""
    compiling = torch.compiler.is_dynamo_compiling()
    return (_pulled, while_loop) if compiling else (_pulled_eagerly, _looped_eagerly)


class Made:
    """What the random path did in one step: a constant of the differentiation."""

    def __init__(self, increment: Any) -> None:
        self.made = increment

    def increment(self, t: Any, dt: Any, step: Any) -> Any:
        """The increment of the step."""
        return self.made


def _pulled(f: Callable[..., Any], at: tuple[Tensor, ...], cots: tuple[Tensor, ...]) -> Sequence[Tensor]:
    return torch.func.vjp(f, *at)[1](cots)


def _pulled_eagerly(f: Callable[..., Any], at: tuple[Tensor, ...], cots: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """The same by autograd, which admits fields that ``torch.func`` does not."""
    leaves = [x.detach().requires_grad_() for x in at]
    with torch.enable_grad():
        outs = f(*leaves)
    pairs = [(o, c) for o, c in zip(outs, cots, strict=True) if o.requires_grad]
    return torch.autograd.grad(
        [o for o, _ in pairs],
        leaves,
        [c for _, c in pairs],
        allow_unused=True,
        materialize_grads=True,
    )


def _looped_eagerly(keeps: Callable[..., Tensor], body: Callable[..., Any], carry: tuple[Tensor, ...]) -> Any:
    while bool(keeps(*carry)):
        carry = body(*carry)
    return carry
