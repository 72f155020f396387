"""What of an equation shapes its program, and the equation formed again around what is given to it.

Fields and the random path are inputs of a program; the structure of the noise, the calculus and
the kind of the path are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.problem.equation import Equation, Outlook, Rows
from dxdt.ops.tree import Layout

__all__ = ["Form", "fields_of"]

# Made here, because a compiler does not trace its making.
_UNKNOWN = Outlook()


def fields_of(equation: Equation) -> Any:
    """The user's callables as an input of a program: the only one, or all of them."""
    fields = equation.fields
    return fields[0] if len(fields) == 1 else fields


@dataclass(frozen=True)
class Form:
    """An equation without its fields.

    Attributes:
        around: the equation, with None in the place of each field.
        fields: how many it has.
        driver: kind of the random path, or None.
    """

    around: Equation
    fields: int
    driver: Any = None

    @classmethod
    def of(cls, rows: Rows) -> Form:
        """The form of an equation bound to its random path.

        Raises:
            CannotCompile: it does not say how it looks around other fields, or is not equal to its like.
        """
        equation, count = rows.equation, len(rows.equation.fields)
        around = equation.with_fields(*(None,) * count) if hasattr(equation, "with_fields") else None
        if around is None or not _is_key(around):
            asks = (
                ": compile the network that it asks, as torch.compile(network)"
                if hasattr(equation, "remainder")
                else ": give it with_fields(*fields), and make it a frozen dataclass"
            )
            raise CannotCompile(f"{type(equation).__name__} has no compiled form yet{asks}")
        return cls(around, count, None if rows.noise is None else _kind(rows.noise))

    def equation(self, f: Any) -> Equation:
        """The equation with these fields."""
        made = self.around.with_fields(*(f if self.fields > 1 else (f,)))
        assert made is not None
        return made

    def rows(self, f: Any, layout: Layout, args: tuple[Any, ...], noise: Any) -> Rows:
        """The equation on rows, with unchecked and uncounted fields."""
        return Rows(self.equation(f), layout, args, noise, None, None, _UNKNOWN)

    def called(self, call: Callable[..., Any]) -> Any:
        """Fields that are ``call(number, t, y, *args)``, in the place of the user's."""
        if self.fields == 1:
            return _numbered(call, 0)
        return tuple(_numbered(call, number) for number in range(self.fields))


def _numbered(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    return lambda t, y, *args: call(number, t, y, *args)


def _is_key(around: Equation) -> bool:
    """Whether programs can be kept under an equation: it is hashable, and equal to another one made alike."""
    try:
        hash(around)
    except TypeError:
        return False
    return around == around.with_fields(*around.fields)


def _kind(bound: Any) -> Any:
    """Kind of a bound path and of the paths that it is made of."""
    inner = getattr(bound, "inner", None)
    return type(bound) if inner is None else (type(bound), _kind(inner))
