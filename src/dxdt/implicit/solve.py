"""The front door: fixed points, roots, least squares and minima, for one problem or for each sample of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from dxdt.implicit.fixed_point import Anderson
from dxdt.implicit.gradient import Gradient, Implicit
from dxdt.implicit.iterate import Found
from dxdt.implicit.least_squares import LevenbergMarquardt
from dxdt.implicit.method import ImplicitError, Method, Result, Status
from dxdt.implicit.newton import Newton
from dxdt.implicit.problem import Kind, Tolerance, packed
from dxdt.implicit.quasi_newton import BFGS
from dxdt.ops.host import transformed
from dxdt.ops.tree import Layout, Tree

__all__ = ["Options", "fixed_point", "least_squares", "minimise", "root"]

_STATUS = {s.code: s for s in Status}


class Options(TypedDict, total=False):
    """How a problem is solved, whatever its kind.

    Attributes:
        rtol, atol: a row has converged when its next step is below ``atol + rtol |y|`` (by default eps^(2/3) and
            its hundredth).
        max_steps: iterations of a row (default 256).
        gradient: how to differentiate (default ``Implicit()``).
        per_sample: axis 0 of every leaf is a batch of problems, each with its own convergence and status.
        throw: raise ``ImplicitError`` on failure; by default jointly yes, per sample no (a warning).
    """

    rtol: float
    atol: float
    max_steps: int
    gradient: Gradient
    per_sample: bool
    throw: bool | None


def fixed_point(
    g: Callable[..., Tree], y0: Tree, args: Any = (), method: Method | None = None, **options: Unpack[Options]
) -> Result:
    """Find y = g(y, *args).

    Args:
        g: function or module; its value has the structure, shapes and dtypes of y.
        y0: first iterate: a tensor or a tree of tensors.
        args: extra arguments of g.
        method: default ``Anderson()``; ``Picard()``, or any method for roots, least squares or minima.
        options: see ``Options``.

    Raises:
        TypeError, ValueError: the problem is not well posed; the message says what to change.
        ImplicitError: the iteration failed (see ``Options``).
    """
    return _solve(Kind.FIXED_POINT, g, y0, args, Anderson() if method is None else method, options)


def root(
    f: Callable[..., Tree], y0: Tree, args: Any = (), method: Method | None = None, **options: Unpack[Options]
) -> Result:
    """Find F(y, *args) = 0.

    Args:
        f: F, a function or module; its value has the structure, shapes and dtypes of y.
        y0: first iterate: a tensor or a tree of tensors.
        args: extra arguments of F.
        method: default ``Newton()``; also ``Chord()``, ``Broyden()``, ``Bisection(low, high)``, or any method for
            least squares or minima.
        options: see ``Options``.

    Raises:
        TypeError, ValueError: the problem is not well posed; the message says what to change.
        ImplicitError: the iteration failed (see ``Options``).
    """
    return _solve(Kind.ROOT, f, y0, args, Newton() if method is None else method, options)


def least_squares(
    r: Callable[..., Tree], y0: Tree, args: Any = (), method: Method | None = None, **options: Unpack[Options]
) -> Result:
    """Find y where |r(y, *args)|^2 is least.

    Args:
        r: residuals: any tree of tensors, with y's batch first where ``per_sample``.
        y0: first iterate: a tensor or a tree of tensors.
        args: extra arguments of r.
        method: default ``LevenbergMarquardt()``; also ``GaussNewton()``, ``Dogleg()``, or any method for minima.
        options: see ``Options``.

    Raises:
        TypeError, ValueError: the problem is not well posed; the message says what to change.
        ImplicitError: the iteration failed (see ``Options``).
    """
    return _solve(Kind.LEAST_SQUARES, r, y0, args, LevenbergMarquardt() if method is None else method, options)


def minimise(
    phi: Callable[..., Tensor], y0: Tree, args: Any = (), method: Method | None = None, **options: Unpack[Options]
) -> Result:
    """Find y where phi(y, *args) is least.

    Args:
        phi: one number, ``()`` jointly or ``(B,)`` per sample.
        y0: first iterate: a tensor or a tree of tensors.
        args: extra arguments of phi.
        method: default ``BFGS()``; also ``LBFGS()``.
        options: see ``Options``.

    Raises:
        TypeError, ValueError: the problem is not well posed; the message says what to change.
        ImplicitError: the iteration failed (see ``Options``).
    """
    return _solve(Kind.MINIMUM, phi, y0, args, BFGS() if method is None else method, options)


def _solve(kind: Kind, function: Callable[..., Any], y0: Tree, args: Any, method: Method, options: Options) -> Result:
    args = args if isinstance(args, tuple) else (args,)
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}: choose among {', '.join(Options.__annotations__)}")
    layout = Layout.of(y0, per_sample=options.get("per_sample", False))
    gradient, max_steps = options.get("gradient") or Implicit(), options.get("max_steps", 256)
    _expect(method, Method, "method", "dxdt.implicit.Newton()")
    _expect(gradient, Gradient, "gradient", "dxdt.implicit.Implicit()")
    if method.kind < kind:
        raise ValueError(
            f"{type(method).__name__} finds {method.kind.words} but was given {kind.words}: "
            f"use {_SUITABLE[kind]} or another method for {kind.words}"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}: give at least 1")
    calls = [0]

    def counted(*given: Any) -> Any:
        calls[0] += 1
        return function(*given)

    tolerance = _tolerance(options.get("rtol"), options.get("atol"), layout)
    origin = packed(kind, counted, args, layout, tolerance)
    problem = origin.raised(method.kind)
    y = layout.pack(y0)
    method.check(problem, y)
    gradient.check(origin)
    found = gradient.run(origin, problem, method, y, max_steps)
    return _finish(found, layout, calls[0], options.get("throw"))


_SUITABLE = {
    Kind.FIXED_POINT: "Anderson()",
    Kind.ROOT: "Newton()",
    Kind.LEAST_SQUARES: "LevenbergMarquardt()",
    Kind.MINIMUM: "BFGS()",
}


def _tolerance(rtol: float | None, atol: float | None, layout: Layout) -> Tolerance:
    relative = torch.finfo(layout.dtype).eps ** (2 / 3) if rtol is None else rtol
    absolute = relative * 1e-2 if atol is None else atol
    if not (relative >= 0 and absolute >= 0 and 0 < relative + absolute < float("inf")):
        raise ValueError(f"rtol={rtol}, atol={atol}: give finite tolerances >= 0, one of them positive")
    return Tolerance(relative, absolute)


def _expect(value: Any, kind: type, name: str, example: str) -> None:
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}: give an instance of it, as {value.__name__}()")
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: give an object such as {example}")


def _finish(found: Found, layout: Layout, evaluations: int, throw: bool | None) -> Result:
    y = layout.unpack(found.y)
    if transformed():
        # Codes of a mapped axis have no single value: the caller finds NaN where a row failed.
        bad = (found.status != Status.SUCCESS.code).unsqueeze(-1)
        y = layout.unpack(torch.where(bad, float("nan"), found.y))
        return Result(y, found.status, found.steps, found.size, evaluations)
    status = [_STATUS[code] for code in found.status.tolist()]
    joint = not layout.per_sample
    steps = found.steps[0].item() if joint else found.steps
    result = Result(y, status[0] if joint else status, steps, found.size[0] if joint else found.size, evaluations)
    failed = [i for i, s in enumerate(status) if not s.ok]
    if not failed:
        return result
    if joint:
        message = f"the iteration {status[0].value} (after {steps} iterations)"
    else:
        first = failed[0]
        message = f"{len(failed)} of {layout.rows} samples failed; sample {first} {status[first].value}"
    if throw or (throw is None and joint):
        raise ImplicitError(message, result)
    if throw is None:
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return result
