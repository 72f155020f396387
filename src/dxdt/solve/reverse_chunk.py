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

from dxdt.ops.axes import leave_open
from dxdt.ops.modules import named
from dxdt.ops.tree import Layout, flatten
from dxdt.solve.batch import Batch
from dxdt.solve.equation import Rows
from dxdt.solve.fallback import CannotCompile
from dxdt.solve.form import Form
from dxdt.solve.solver import Solver

__all__ = ["Holder", "Pulled", "Taken", "any_length", "hold", "opened", "reverse"]


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


class Taken(NamedTuple):
    """Steps of a chunk and the cotangents that enter at each: of the value at its end and at its
    start ``(K, R, n)``, and of its coefficients ``(K, degree, R, n)``."""

    t: Tensor
    dt: Tensor
    y: Tensor
    end: Tensor
    start: Tensor
    coefficients: Tensor | None
    number: Tensor | None

    def any_length(self) -> Taken:
        """The same for a program that serves any number of steps: at least two slots, since
        compilers make a size of one a special case."""
        parts = [x if x is None or len(x) > 1 else torch.cat([x, x]) for x in self]
        any_length(parts)
        return Taken(*parts)  # pyright: ignore[reportArgumentType]


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
            taken=Taken(t, dt, y, end, start, rows(taken.coefficients, 2), rows(taken.number)),
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
    solver: Solver,
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
) -> Any:
    """Cotangents of the start of a chunk and of what its steps share, from those of its end.

    ``last`` is the place of the last step in ``taken``. Where derivatives for times are wanted, ``clocks`` says
    which steps begin at t0 and which end at t1, ``(K, R)`` each, and two cotangents ``(R,)`` of t0 and t1 follow
    that of the start. Nothing is written in place: what the compiler makes of that fails inside derivatives.
    """
    gy = gy.reshape(layout.rows, layout.size)
    rows_of = opened(form, layout, holder, args, names)

    def step(path: Any, index: Any, t: Tensor, dt: Tensor, y: Tensor, *inner: Tensor) -> Any:
        rows = rows_of(inner, path)
        state = solver.init(rows, t, y, dense)
        after = solver.step(rows, t, dt, y, state, index)
        return (after.y, solver.dense(after, dt, y)) if dense else (after.y,)

    def keeps(i: Tensor, *carry: Tensor) -> Tensor:
        return i >= 0

    def body(i: Tensor, gy: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
        slot = i.reshape(1)
        t, dt = (x.index_select(0, slot)[0] for x in taken[:2])
        y, end, begin_ = (x.index_select(0, slot)[0].reshape(gy.shape) for x in taken[2:5])
        index = 0 if taken.number is None else taken.number.index_select(0, slot)[0]
        path = None if noise is None else _Made(noise.increment(t, dt, index))
        ok = (dt != 0).unsqueeze(-1)
        cots = [torch.where(ok, gy + end, 0.0)]
        if dense:
            assert taken.coefficients is not None
            held = taken.coefficients.index_select(0, slot)[0]
            cots.append(held.reshape(held.shape[0], *gy.shape))
        moved, totals = totals[: len(ends)], totals[len(ends) :]
        if clocks is None:
            back, *rest = pull(lambda *at: step(path, index, t, dt, *at), (y, *shared), tuple(cots))
        else:
            gt, gdt, back, *rest = pull(lambda *at: step(path, index, *at), (t, dt, y, *shared), tuple(cots))
            fresh, last = (x.index_select(0, slot)[0] for x in clocks)
            moved = moved[0] + torch.where(fresh, gt - gdt, 0.0), moved[1] + torch.where(last, gdt, 0.0)
        return (
            i - 1,
            torch.where(ok, back + begin_, gy),
            *moved,
            *(a + b for a, b in zip(totals, rest, strict=True)),
        )

    ends = () if clocks is None else (torch.zeros_like(taken.t[0]), torch.zeros_like(taken.t[0]))
    compiling = torch.compiler.is_dynamo_compiling()
    pull, loop = (_pulled, while_loop) if compiling else (_pulled_eagerly, _looped_eagerly)
    return loop(keeps, body, (last.clone(), gy.clone(), *ends, *(x.clone() for x in totals)))[1:]


class _Made:
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
