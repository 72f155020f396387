"""What of an equation shapes its program, and the equation formed again around what is given to it.

Fields and the random path are inputs of a program; the structure of the noise, the calculus and
the kind of the path are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.methods.symplectic import Separable
from dxdt.diffeq.problem.conversion import Converted
from dxdt.diffeq.problem.equation import ODE, SDE, Equation, Ito, Outlook, Rows, Stratonovich
from dxdt.diffeq.problem.noise import Noise
from dxdt.ops.tree import Layout

__all__ = ["Form", "fields_of"]

# Made here, because a compiler does not trace its making.
_UNKNOWN = Outlook()


def fields_of(equation: Equation) -> Any:
    """The user's callables as an input of a program: one, or a drift and a diffusion."""
    return equation.field if type(equation) is ODE else equation.fields


@dataclass(frozen=True)
class Form:
    """An equation without its fields.

    Attributes:
        separable: whether it is a separable system.
        noise, calculus: of a stochastic equation, else None.
        converted: whether it was written in the other calculus.
        driver: kind of the random path, or None.
    """

    noise: Noise | None = None
    calculus: Ito | Stratonovich | None = None
    converted: bool = False
    driver: Any = None
    separable: bool = False

    @classmethod
    def of(cls, rows: Rows) -> Form:
        """The form of an equation bound to its random path.

        Raises:
            CannotCompile: equations of its kind have no compiled form.
        """
        equation = rows.equation
        converted = type(equation) is Converted
        inner = equation.equation if converted else equation
        if type(inner) is ODE:
            return cls()
        if type(inner) is Separable:
            return cls(separable=True)
        if type(inner) is not SDE:
            asks = (
                ": compile the network that it asks, as torch.compile(network)" if hasattr(inner, "remainder") else ""
            )
            raise CannotCompile(f"{type(inner).__name__} has no compiled form yet{asks}")
        return cls(inner.noise, inner.calculus, converted, _kind(rows.noise))

    def equation(self, f: Any) -> Equation:
        """The equation with these fields."""
        if self.separable:
            return Separable(*f)
        if self.noise is None:
            return ODE(f)
        assert self.calculus is not None
        inner = SDE(f[0], f[1], self.noise, self.calculus)
        return Converted(inner) if self.converted else inner

    def rows(self, f: Any, layout: Layout, args: tuple[Any, ...], noise: Any) -> Rows:
        """The equation on rows, with unchecked and uncounted fields."""
        return Rows(self.equation(f), layout, args, noise, None, None, _UNKNOWN)

    def called(self, call: Callable[..., Any]) -> Any:
        """Fields that are ``call(number, t, y, *args)``, in the place of the user's."""
        drift = lambda t, y, *args: call(0, t, y, *args)  # noqa: E731
        if self.noise is None and not self.separable:
            return drift
        return drift, lambda t, y, *args: call(1, t, y, *args)


def _kind(bound: Any) -> Any:
    """Kind of a bound path and of the paths that it is made of."""
    inner = getattr(bound, "inner", None)
    return type(bound) if inner is None else (type(bound), _kind(inner))
