"""Operations on single elements, as C++ expressions.

Functions are those of the C library, whose vectorised forms have errors of a few units in the last
place; none of them is reordered or approximated further.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["COMPARISONS", "INTEGERS", "LOGIC", "NUMBERS", "POINTS", "ROUNDED", "SAID", "power"]

aten = torch.ops.aten


def _call(name: str) -> Callable[..., str]:
    return lambda t, *x: f"f_{name}({', '.join(x)})"


def _infix(sign: str) -> Callable[..., str]:
    return lambda t, a, b: f"({a} {sign} {b})"


POINTS: dict[Any, Callable[..., str]] = {
    aten.mul: _infix("*"),
    aten.div: _infix("/"),
    aten.neg: lambda t, x: f"(-{x})",
    aten.abs: _call("abs"),
    aten.reciprocal: lambda t, x: f"(({t})1 / {x})",
    aten.square: lambda t, x: f"({x} * {x})",
    aten.sign: lambda t, x: f"(({t})({x} > 0) - ({t})({x} < 0))",
    aten.maximum: _call("max"),
    aten.minimum: _call("min"),
    aten.clamp_min: _call("clamp_min"),
    aten.clamp_max: _call("clamp_max"),
    aten.relu: lambda t, x: f"f_relu({x})",
    aten.sigmoid: lambda t, x: f"(({t})1 / (({t})1 + f_exp(-{x})))",
    aten.rsqrt: lambda t, x: f"(({t})1 / f_sqrt({x}))",
    aten.clone: lambda t, x: x,
    aten.copy: lambda t, a, b: b,
    aten._to_copy: lambda t, x: x,
    torch.ops.prims.convert_element_type: lambda t, x: x,
    **{
        getattr(aten, name): _call(name)
        for name in (
            *("sqrt", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos"),
            *("atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "floor", "ceil", "trunc"),
            *("round", "atan2", "hypot"),
        )
    },
}
"""From the type and the operands, cast to it, to an expression; by operator packet."""

SAID = {"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"}
"""What may be told of these besides their operands, because their value says it too."""

ROUNDED: dict[Any, Callable[..., str]] = {
    (aten.div, "floor"): _call("floor_divide"),
    (aten.div, "trunc"): lambda t, a, b: f"f_trunc({a} / {b})",
    (aten.fmod, None): _call("fmod"),
    (aten.remainder, None): _call("remainder"),
}
"""Quotients of floating-point numbers and what they leave, by operator and rounding mode."""

COMPARISONS: dict[Any, Callable[..., str]] = {
    aten.eq: _infix("=="),
    aten.ne: _infix("!="),
    aten.lt: _infix("<"),
    aten.le: _infix("<="),
    aten.gt: _infix(">"),
    aten.ge: _infix(">="),
}
"""Operands are promoted together, the value is a truth."""

LOGIC: dict[Any, Callable[..., str]] = {
    aten.bitwise_and: _infix("&"),
    aten.bitwise_or: _infix("|"),
    aten.bitwise_xor: _infix("^"),
    aten.logical_and: lambda t, a, b: f"((bool){a} & (bool){b})",
    aten.logical_or: lambda t, a, b: f"((bool){a} | (bool){b})",
    aten.logical_not: lambda t, x: f"(!(bool){x})",
    aten.bitwise_not: lambda t, x: f"(!{x})" if t == "bool" else f"(~{x})",
    aten.isnan: lambda t, x: f"({x} != {x})",
    aten.isinf: lambda t, x: f"(f_abs({x}) == INFINITY)",
    aten.isfinite: lambda t, x: f"(f_abs({x}) < INFINITY)",
}
"""Operands keep their types."""


def power(t: str, x: str, exponent: float) -> str:
    """x to a number."""
    known = {0.0: f"({t})1", 0.5: f"f_sqrt({x})", 1.0: x, 2.0: f"({x} * {x})", 3.0: f"({x} * {x} * {x})"}
    known |= {-1.0: f"(({t})1 / {x})", -0.5: f"(({t})1 / f_sqrt({x}))", -2.0: f"(({t})1 / ({x} * {x}))"}
    if t not in ("float", "double") and not (float(exponent).is_integer() and 0 <= exponent <= 3):
        return f"({t})f_pow((double){x}, (double){exponent!r})"
    return known.get(float(exponent)) or f"f_pow({x}, ({t}){float(exponent)!r})"


INTEGERS = {operator.add: "+", operator.sub: "-", operator.mul: "*"}
"""Operations on sizes."""

NUMBERS: dict[Any, Callable[..., str]] = {
    **{f: lambda t, a, b, sign=sign: f"({a} {sign} {b})" for f, sign in INTEGERS.items()},
    operator.truediv: lambda t, a, b: f"({a} / {b})",
    operator.pow: lambda t, a, b: f"f_pow({a}, {b})",
    torch.sym_float: lambda t, a: a,
    torch._sym_sqrt: lambda t, a: f"f_sqrt({a})",  # pyright: ignore[reportAttributeAccessIssue]
}
"""Operations on real numbers that follow from sizes."""
