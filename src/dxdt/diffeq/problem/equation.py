"""Equations: vector fields and what drives them, and the same equation acting on rows.

    ODE    dy = f(t, y) dt
    SDE    dy = f(t, y) dt + g(t, y) dW          (Ito or Stratonovich, by the equation's calculus)

A user's field sees ``t`` in the real dtype of the state, in float32 at least, and in float64 where the span lies so far
from zero that float32 could not tell the parts of a step apart (shape ``()`` jointly, ``(B,)`` per
sample), ``y`` as the user gave it, then ``*args``. Solvers see rows: ``(R,)`` clocks, ``(R, n)``
states (see ``ops.tree``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from dxdt.diffeq.problem.affine import SemiLinear
from dxdt.diffeq.problem.differentiating import graphed, wants_graph
from dxdt.diffeq.problem.dtype_mismatch import explained
from dxdt.diffeq.problem.noise import Diagonal, Noise
from dxdt.diffeq.problem.reused_storage import ReusedStorage
from dxdt.ops.modules import parameters
from dxdt.ops.reach import Reach
from dxdt.ops.times import START, Ticks, moments
from dxdt.ops.tree import Layout, Tree

__all__ = [
    "ODE",
    "SDE",
    "Equation",
    "Field",
    "Ito",
    "Meter",
    "Outlook",
    "Rows",
    "StochasticEquation",
    "Stratonovich",
    "bounds_of",
    "within",
]

Field: TypeAlias = Callable[..., Any]
"""A vector field ``(t, y, *args) -> dy/dt`` with the structure of ``y``."""


@final
@dataclass(frozen=True)
class Ito:
    """The calculus in which g is evaluated at the start of each increment."""


@final
@dataclass(frozen=True)
class Stratonovich:
    """The calculus in which g is evaluated at the middle of each increment."""


class Equation(ABC):
    """What every equation answers: dy = f(t, y) dt, and the callables it was made of.

    A class with ``drift`` and ``fields`` is one without being told so. One that also says how it looks around other
    callables (``with_fields``), and that is equal to its like, compiles.
    """

    @abstractmethod
    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The drift f(t, y), with the structure of ``y``."""

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The user's callables, searched for parameters."""

    def with_fields(self, *fields: Any) -> Equation | None:
        """The same equation around other callables, or None where that has no meaning."""
        return None

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return _has(other, "drift", "fields") if cls is Equation else NotImplemented


class StochasticEquation(Equation):
    """dy = f(t, y) dt + g(t, y) dW.

    Attributes:
        noise: structure of g.
        calculus: how g dW is meant.
    """

    noise: Noise
    calculus: Ito | Stratonovich

    @abstractmethod
    def diffusion(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The diffusion g(t, y)."""

    def noise_size(self, layout: Layout) -> int:
        """Components of W in a row."""
        return self.noise.size(layout)

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return _has(other, "drift", "fields", "diffusion") if cls is StochasticEquation else NotImplemented


def _has(kind: type, *names: str) -> bool:
    """Whether instances of a class answer to these names."""
    return all(any(name in vars(base) for base in kind.__mro__) for name in names)


@dataclass(frozen=True)
class ODE(Equation):
    """Ordinary differential equation dy/dt = f(t, y, *args).

    Args:
        field: function or module; its value has the structure, shapes and dtypes of ``y``.
    """

    field: Field

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The time derivative f(t, y)."""
        return self.field(t, y, *args)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The user's callables, searched for parameters."""
        return (self.field,)

    def with_fields(self, *fields: Field) -> ODE:
        return ODE(*fields)


@dataclass(frozen=True)
class SDE(StochasticEquation):
    """Stochastic differential equation dy = f(t, y, *args) dt + g(t, y, *args) dW.

    Args:
        drift_field: f, a function or module with the structure of ``y``.
        diffusion_field: g; what it returns is set by ``noise``.
        noise: structure of g: ``Diagonal()``, ``Scalar()``, ``Additive(m)``, ``General(m)``.
        calculus: ``Ito()`` or ``Stratonovich()``.
    """

    drift_field: Field
    diffusion_field: Field
    noise: Noise = Diagonal()  # noqa: RUF009
    calculus: Ito | Stratonovich = Ito()  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("noise", "calculus"):
            value = getattr(self, name)
            if isinstance(value, type):
                object.__setattr__(self, name, value())

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The drift f(t, y)."""
        return self.drift_field(t, y, *args)

    def diffusion(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The diffusion g(t, y)."""
        return self.diffusion_field(t, y, *args)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The user's callables, searched for parameters."""
        return (self.drift_field, self.diffusion_field)

    def with_fields(self, *fields: Field) -> SDE:
        return SDE(*fields, noise=self.noise, calculus=self.calculus)


def constants() -> Any:
    """A place whose new tensors are constants for the transforms of ``torch.func`` around it."""
    stack = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    transformed = not torch.compiler.is_compiling() and stack.peek_interpreter_stack() is not None
    return torch._C._DisableFuncTorch() if transformed else nullcontext()


def bounds_of(low: Ticks, high: Ticks, layout: Layout) -> tuple[Tensor, Tensor]:
    """Clocks ``(R,)`` as times of a field: ``()`` jointly, else ``(R,)``."""
    both = (x if isinstance(x, Tensor) else torch.as_tensor(x, device=layout.device) for x in (low, high))
    low, high = (x.to(layout.time_dtype) for x in both)
    return (low, high) if layout.per_sample else (low.reshape(()), high.reshape(()))


def within(t: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Times moved into bounds, with the derivative of what was moved."""
    low, high = bounds
    return torch.minimum(torch.maximum(t.detach(), low), high) + (t - t.detach())


@dataclass(eq=False)
class Meter:
    """What a solve counts.

    Attributes:
        evaluations: calls of the drift so far.
        checked: whether the field's value was found to have the layout of the state.
        diffused: likewise for the diffusion.
        plain: whether state and slope are one tensor each, in the dtype of the rows.
        inside: whether the fields differentiate by themselves, which takes a graph also where none is kept.
        storage, diffused_storage: whether drift and diffusion answer with storage that they write to again.
    """

    evaluations: int = 0
    checked: bool = False
    diffused: bool = False
    plain: bool = False
    inside: bool = False
    storage: ReusedStorage = field(default_factory=ReusedStorage)
    diffused_storage: ReusedStorage = field(default_factory=ReusedStorage)


@dataclass(frozen=True, eq=False)
class Outlook:
    """What a solver may know of the solve ahead.

    Attributes:
        times: of a known grid whose steps nothing cuts short, ``(N + 1, 1)`` or ``(N + 1, R)``, or None.
        dense: whether steps must be able to interpolate.
        errors: whether error estimates are read.
        scale: their norm in units of the tolerance (see ``Scale``), or None where there is none.
        memo: what a solver makes once for a solve.
    """

    times: np.ndarray | None = None
    dense: bool = True
    errors: bool = True
    scale: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    memo: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Rows:
    """An equation that acts on rows, and counts how often it was asked.

    Attributes:
        equation: the user's equation.
        layout: how the user's state lies in rows.
        args: extra arguments of the fields.
        noise: the random path bound to this solve, for stochastic equations.
        meter: counts of this solve, shared by all copies of the equation; None in a compiled loop,
            which sees checked fields only.
        muted: rows whose fields count as zero, ``(R, 1)``, or None.
        outlook: what is known of the solve ahead.
        bounds: the first and the last time that the fields are shown, ``()`` or ``(R,)`` each, or None.
    """

    equation: Equation
    layout: Layout
    args: tuple[Any, ...] = ()
    noise: Any = None
    meter: Meter | None = field(default_factory=Meter)
    muted: Tensor | None = None
    outlook: Outlook = field(default_factory=Outlook)
    bounds: tuple[Tensor, Tensor] | None = None

    @property
    def stochastic(self) -> StochasticEquation:
        """The equation, where it has noise."""
        return cast(StochasticEquation, self.equation)

    @property
    def affine(self) -> SemiLinear:
        """The equation, where it shows its affine part."""
        return cast(SemiLinear, self.equation)

    def mute(self, rows: np.ndarray) -> Rows:
        """The equation with zero fields in some rows, of which nothing is wanted."""
        return replace(self, muted=torch.from_numpy(rows)[:, None])

    def between(self, low: Ticks, high: Ticks) -> Rows:
        """The equation whose fields are shown no time before ``low`` and none after ``high``, ``(R,)`` each."""
        return replace(self, bounds=bounds_of(low, high, self.layout))

    def seen(self, t: Tensor) -> Tensor:
        """A time as the fields see it."""
        t = t if t.dtype is self.layout.time_dtype else t.to(self.layout.time_dtype)
        return t if self.bounds is None else within(t, self.bounds)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y) as rows ``(R, n)``."""
        return self.unmuted(self._drift(t, y))

    def unmuted(self, rows: Tensor) -> Tensor:
        """Values of a field, zero in muted rows."""
        return rows if self.muted is None else torch.where(self.muted.to(rows.device), 0.0, rows)

    def answer(self, t: Tensor, y: Tensor, sight: Any = None) -> Any:
        """What the remainder of a semi-linear equation answers, in the user's shape; t stays float64."""
        layout, meter = self.layout, self.meter
        seen = () if sight is None else (sight,)
        if self.bounds is not None:
            t = within(t, self.bounds)
        answer = self._asked(self.affine.remainder, t, layout.unpack(y), *seen)
        if meter is not None:
            meter.evaluations += 1
            if not meter.checked:
                layout.check(answer.data, "the remainder's data")
                meter.checked = True
        return answer

    @property
    def natural(self) -> tuple[int, ...] | None:
        """Shape in which a joint solve may hand its state to ``direct``, once the field has been checked."""
        meter = self.meter
        if meter is None or not meter.plain or self.layout.per_sample:
            return None
        if self.muted is not None or self.bounds is not None:
            return None
        return self.layout.whole

    def direct(self, t: Tensor, y: Tensor) -> Tensor:
        """The field's own value, in the user's shape: nothing to pack or unpack."""
        self.meter.evaluations += 1  # pyright: ignore[reportOptionalMemberAccess]
        field = cast(ODE, self.equation).field
        try:
            value = field(t, y, *self.args)
        except RuntimeError as error:
            value = self._with_graph(field, (t, y, *self.args), error)
        return value if value.dtype is y.dtype else value.to(y.dtype)

    def _asked(self, f: Field, t: Tensor, y: Tree, *seen: Any) -> Any:
        """The value of a field."""
        meter = self.meter
        if meter is None:
            return f(t, y, *self.args, *seen)
        try:
            if not meter.inside or torch.is_grad_enabled():
                return f(t, y, *self.args, *seen)
        except RuntimeError as error:
            return self._with_graph(f, (t, y, *self.args, *seen), error)
        return graphed(f, (t, y, *self.args, *seen))

    def _with_graph(self, f: Field, given: tuple[Any, ...], error: RuntimeError) -> Any:
        """The value of a field that differentiates inside, and failed where no graph is kept.

        Raises:
            RuntimeError: the field's own error.
        """
        if torch.is_grad_enabled() or not wants_graph(error):
            told = explained(error, self.equation.fields, self.args, self.layout)
            raise told if told is error else told from error
        try:
            value = graphed(f, given)
        except RuntimeError:
            raise error from None
        assert self.meter is not None
        self.meter.inside, self.meter.plain = True, False
        return value

    def _drift(self, t: Tensor, y: Tensor) -> Tensor:
        layout, meter, t = self.layout, self.meter, self.seen(t)
        if meter is None:
            value = self.equation.drift(t, layout.unpack(y), *self.args)
            if torch.compiler.is_compiling():  # costs nothing later, and the field may have been another one when met
                layout.check(value, "the field's value")
            return layout.pack(value)
        if meter.plain and layout.aliased:
            return self.direct(t, y)
        meter.evaluations += 1
        marked = meter.checked or y.requires_grad
        value = self._asked(self.equation.drift, t, layout.unpack(y))
        if not meter.checked:
            layout.check(value, "the field's value")
            meter.checked = True
            if y.requires_grad and not marked and not torch.is_grad_enabled():
                # The field marks what it is shown, to differentiate inside: from now on that is no state of the solve.
                y.requires_grad_(False)
                meter.inside = True
        value = meter.storage.owned(value)
        if not meter.plain and not meter.storage.open:
            plain = layout.single and layout.bare and type(self.equation) is ODE
            meter.plain = plain and not (meter.inside or meter.storage.found)
        return layout.pack(value)

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        """g(t, y) as rows."""
        layout, meter, equation, t = self.layout, self.meter, self.stochastic, self.seen(t)
        value = self._asked(equation.diffusion, t, layout.unpack(y))
        if meter is not None and not meter.diffused:
            equation.noise.check(value, layout)
            meter.diffused = True
        value = value if meter is None else meter.diffused_storage.owned(value)
        rows = equation.noise.rows(value, layout)
        if self.muted is None:
            return rows
        return torch.where(self.muted.reshape(-1, *(1,) * (rows.dim() - 1)).to(rows.device), 0.0, rows)

    @property
    def kind(self) -> Noise | None:
        """Structure of the noise, None without."""
        return None if self.noise is None else self.stochastic.noise

    def spread(self, g: Tensor, w: Tensor) -> Tensor:
        """g dW as rows ``(R, n)``."""
        return self.stochastic.noise.product(g, w)

    def kicked(self, y: Tensor, g: Tensor, w: Tensor) -> Tensor:
        """y + g dW as rows ``(R, n)``."""
        return self.stochastic.noise.added(y, g, w)

    def probe(self, t: Ticks, y: Tensor) -> tuple[Tensor, ...]:
        """Every field evaluated once at the start, to look at its graph."""
        (time,) = moments(t, t * 0, START, self.layout)
        drift = self.drift(time, y)
        return (drift,) if self.noise is None else (drift, self.diffusion(time, y))

    def increment(self, t: Ticks, dt: Ticks, index: Ticks) -> Any:
        """What the random path does over [t, t + dt]."""
        with constants():
            if isinstance(dt, Tensor) and not torch.compiler.is_compiling():
                t, dt = t.detach(), dt.detach()
            return self.noise.increment(t, dt, index)

    def unit_noise(self, start: np.ndarray, end: np.ndarray, index: Ticks) -> Tensor:
        """Noise of a step on the clock of a semi-linear equation, in units of its standard deviation."""
        with constants():
            return self.noise.unit(start, end, index)

    def reach(self) -> Reach:
        """What the user's callables and arguments reach."""
        return Reach(*self.equation.fields, self.args) if self.args else Reach(*self.equation.fields)

    def modules(self) -> Iterator[nn.Module]:
        """Modules that the callables are, are methods of, or reach."""
        reach = self.reach()
        yield from reach.modules
        yield from reach.owners

    def parameters(self) -> list[Tensor]:
        """Parameters that the callables reach and that require a gradient, each once."""
        reach = self.reach()
        found = parameters(reach.modules)
        if reach.parameters:
            found = list({id(p): p for p in (*found, *reach.parameters)}.values())
        return found
