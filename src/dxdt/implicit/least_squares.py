"""Least squares min |r(y)|^2 / 2: Gauss-Newton, and two ways of keeping it from running away.

All share the linear model r(y + s) = r + J s. What a step gains is compared with what the model promised,

    rho = (|r|^2 - |r(y + s)|^2) / (|r|^2 - |r + J s|^2),

and a step that gains nothing is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from dxdt.implicit.method import RUNNING, Iterate, Method, State, Status
from dxdt.implicit.problem import Kind, Problem
from dxdt.ops.autodiff import jacobian
from dxdt.ops.linear import dot, factor

__all__ = ["Dogleg", "GaussNewton", "LevenbergMarquardt"]

_SINGULAR, _STALLED = Status.SINGULAR.code, Status.STALLED.code
# Damping at which a step is below rounding, and cosine of residual and columns that counts as right angles then.
_MOST, _RIGHT_ANGLE = 1e14, 1e-6


class _Model(NamedTuple):
    """The linear model at y: values ``(R, m)``, J ``(R, m, n)``, J^T r ``(R, n)``, J^T J ``(R, n, n)``."""

    value: Tensor
    slope: Tensor
    gradient: Tensor
    normal: Tensor


def _model(problem: Problem, y: Tensor) -> _Model:
    value, slope = jacobian(problem.function, y)
    gradient = (slope.mT @ value.unsqueeze(-1)).squeeze(-1)
    return _Model(value, slope, gradient, slope.mT @ slope)


def _promised(model: _Model, step: Tensor) -> Tensor:
    """What the model gains by a step, |r|^2 - |r + J s|^2, ``(R, 1)``."""
    moved = (model.slope @ step.unsqueeze(-1)).squeeze(-1)
    return -2 * dot(model.gradient, step) - dot(moved, moved)


def _cosine(model: _Model, free: Tensor | None = None) -> Tensor:
    """Largest cosine between the residual and a column of J, ``(R,)``: zero at a solution."""
    columns = model.normal.diagonal(dim1=-2, dim2=-1).sqrt()
    whole = columns * torch.linalg.vector_norm(model.value, dim=-1, keepdim=True)
    cosines = torch.where(whole > 0, model.gradient.abs() / torch.where(whole > 0, whole, 1.0), 0.0)
    return (cosines if free is None else torch.where(free, cosines, 0.0)).amax(-1)


@final
@dataclass(frozen=True)
class GaussNewton(Method):
    """Gauss-Newton method: y <- argmin_z |r(y) + J(y) (z - y)|^2, by a QR factorisation of J.

    Converges quadratically where the residuals vanish at the solution, linearly where they are small.
    """

    kind: ClassVar[Kind] = Kind.LEAST_SQUARES

    def init(self, problem: Problem, y: Tensor) -> State:
        return ()

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        value, slope = jacobian(problem.function, y)
        if slope.shape[-2] < slope.shape[-1]:
            raise ValueError(
                f"GaussNewton was given {slope.shape[-2]} residuals for {slope.shape[-1]} unknowns, which does not "
                f"tell one solution: use LevenbergMarquardt()"
            )
        q, r = torch.linalg.qr(slope)
        rise = torch.linalg.solve_triangular(r, -(q.mT @ value.unsqueeze(-1)), upper=True).squeeze(-1)
        pivots = r.diagonal(dim1=-2, dim2=-1).abs()
        rank = pivots > 1e-14 * pivots.amax(-1, keepdim=True)
        failed = torch.where(rank.all(-1) | ~torch.isfinite(value).all(-1), RUNNING, _SINGULAR)
        return Iterate(y + rise, (), problem.tolerance(rise, y), failed)


@final
@dataclass(frozen=True, eq=False)
class LevenbergMarquardt(Method):
    """Levenberg-Marquardt method, with bounds on y where they are given.

        (J^T J + lam D) s = -J^T r,     D the largest diagonal of J^T J so far

    The damping lam falls by Nielsen's rule, by max(1/3, 1 - (2 rho - 1)^3), after a step that gained, and doubles,
    then quadruples, after one that did not. With bounds, unknowns at a bound that the gradient pushes outwards are
    held there, and the step of the others is cut at theirs.

    D. Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", SIAM J. 11 (1963);
    H. Nielsen, "Damping parameter in Marquardt's method", report IMM-REP-1999-05, DTU (1999).

    Args:
        low, high: bounds, numbers or tensors that broadcast to one row of unknowns; None for none.
        damping: lam before the first step.

    Raises:
        ValueError: a damping that is not positive.
    """

    low: Any = None
    high: Any = None
    damping: float = 1e-3

    kind: ClassVar[Kind] = Kind.LEAST_SQUARES

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"LevenbergMarquardt(damping={self.damping}): give a positive number")

    def bounds(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds as rows ``(R, n)``, infinite where there are none.

        Raises:
            ValueError: bounds that do not fit, or are out of order.
        """
        ends = []
        for name, bound, none in (("low", self.low, -float("inf")), ("high", self.high, float("inf"))):
            given = torch.as_tensor(none if bound is None else bound, dtype=y.dtype, device=y.device)
            try:
                ends.append(given.expand_as(y))
            except RuntimeError as error:
                raise ValueError(
                    f"LevenbergMarquardt({name}) has shape {tuple(given.shape)} but rows have {y.shape[1]} unknowns: "
                    f"give a number, or one for each unknown"
                ) from error
        return ends[0], ends[1]

    def check(self, problem: Problem, y: Tensor) -> None:
        low, high = self.bounds(y)
        if not bool((low < high).all()):
            raise ValueError("LevenbergMarquardt has bounds with low >= high: give an interval for each unknown")

    def init(self, problem: Problem, y: Tensor) -> State:
        low, high = self.bounds(y)
        inside = torch.minimum(torch.maximum(y, low), high)
        one = y.new_ones(y.shape[0], 1)
        return inside, self.damping * one, 2 * one, torch.zeros_like(y)

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        y, lam, growth, scale = state  # the state holds y, because the first may lie outside of the bounds
        low, high = self.bounds(y)
        model = _model(problem, y)
        scale = torch.maximum(scale, model.normal.diagonal(dim1=-2, dim2=-1))
        held = ((y <= low) & (model.gradient > 0)) | ((y >= high) & (model.gradient < 0))
        rise = _damped(model, lam * torch.where(scale > 0, scale, 1.0), held)
        rise = torch.minimum(torch.maximum(y + rise, low), high) - y
        after = problem(y + rise)
        before, now = dot(model.value, model.value), dot(after, after)
        promised = _promised(model, rise)
        gain = (before - now) / torch.where(promised > 0, promised, 1.0)
        ok = torch.isfinite(now) & (promised > 0) & (gain > 1e-4)
        factor_ = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        new = torch.where(ok, y + rise, y)
        cosine = _cosine(model, ~held)
        done = ok | (lam < 1)  # a small step is small whether or not rounding lets it gain, unless damping made it so
        size = torch.where(done.squeeze(-1), problem.tolerance(rise, y), float("inf"))
        size = torch.minimum(size, cosine / problem.tolerance.rtol)
        stuck = (lam > _MOST).squeeze(-1) & ~ok.squeeze(-1)
        size = torch.where(stuck & (cosine < _RIGHT_ANGLE), size.clamp(max=1.0), size)
        failed = torch.where(stuck & (cosine >= _RIGHT_ANGLE), _STALLED, RUNNING)
        lam, growth = torch.where(ok, lam * factor_, lam * growth), torch.where(ok, 2.0, 2 * growth)
        return Iterate(new, (new, lam.clamp(min=1e-16), growth, scale), size, failed)


def _damped(model: _Model, damping: Tensor, held: Tensor) -> Tensor:
    """The damped step of the unknowns that are not held, zero for the others."""
    free = (~held).to(damping.dtype)
    system = model.normal * free.unsqueeze(-1) * free.unsqueeze(-2) + torch.diag_embed(torch.where(held, 1.0, damping))
    step = factor(system).solve(-model.gradient * free)
    return torch.where(torch.isfinite(step), step, 0.0)


@final
@dataclass(frozen=True)
class Dogleg(Method):
    """Powell's dogleg: the path from the steepest descent to the Gauss-Newton step, within a trust region.

    The region of radius d, in the norm of the columns of J, shrinks to a quarter where rho < 1/4 and doubles where
    rho > 3/4 and the step reached its border.

    M. Powell, "A hybrid method for nonlinear equations" (1970);
    J. Nocedal, S. Wright, "Numerical optimization", 4.1 and 10.3 (2006).

    Args:
        radius: of the first region, relative to |y| (and to 1 where y is zero).

    Raises:
        ValueError: a radius that is not positive.
    """

    radius: float = 1.0

    kind: ClassVar[Kind] = Kind.LEAST_SQUARES

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"Dogleg(radius={self.radius}): give a positive number")

    def init(self, problem: Problem, y: Tensor) -> State:
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        return self.radius * torch.where(size > 0, size, 1.0), torch.zeros_like(y)

    def step(self, problem: Problem, y: Tensor, state: State) -> Iterate:
        radius, scale = state
        model = _model(problem, y)
        # The unknowns in units in which the columns of J are alike.
        scale = torch.maximum(scale, model.normal.diagonal(dim1=-2, dim2=-1).sqrt())
        unit = torch.where(scale > 0, scale / scale.amax(-1, keepdim=True), 1.0)
        unit = torch.where(unit > 0, unit, 1.0)
        model = model._replace(
            slope=model.slope / unit.unsqueeze(-2),
            gradient=model.gradient / unit,
            normal=model.normal / unit.unsqueeze(-1) / unit.unsqueeze(-2),
        )
        rise, border = _dogleg(model, radius)
        after = problem(y + rise / unit)
        before, now = dot(model.value, model.value), dot(after, after)
        promised = _promised(model, rise)
        gain = (before - now) / torch.where(promised > 0, promised, 1.0)
        gain = torch.where(torch.isfinite(gain), gain, -1.0)
        ok = (promised > 0) & (gain > 1e-4)
        length = torch.linalg.vector_norm(rise, dim=-1, keepdim=True)
        wider = torch.where((gain > 0.75) & border, 2 * radius, radius)
        after_radius = torch.where(gain < 0.25, length / 4, wider)
        new = torch.where(ok, y + rise / unit, y)
        done = ok | ~border  # as above: the region did not make it small
        size = torch.where(done.squeeze(-1), problem.tolerance(rise / unit, y), float("inf"))
        cosine = _cosine(model)
        size = torch.minimum(size, cosine / problem.tolerance.rtol)
        stuck = ~ok.squeeze(-1) & (problem.tolerance(rise / unit, y) < 1e-6)
        size = torch.where(stuck & (cosine < _RIGHT_ANGLE), size.clamp(max=1.0), size)
        failed = torch.where(stuck & (cosine >= _RIGHT_ANGLE), _STALLED, RUNNING)
        return Iterate(new, (after_radius, scale), size, failed)


def _dogleg(model: _Model, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The step, and whether it ends at the border of the region."""
    moved = (model.slope @ model.gradient.unsqueeze(-1)).squeeze(-1)
    square = dot(model.gradient, model.gradient)
    curve = dot(moved, moved)
    down = -model.gradient * square / torch.where(curve > 0, curve, 1.0)
    # A matrix without an inverse has a Gauss-Newton step after the least damping that rounding sees.
    least = 1e-14 * model.normal.diagonal(dim1=-2, dim2=-1).amax(-1)
    system = model.normal + torch.diag_embed(least.unsqueeze(-1).expand_as(model.gradient))
    full = factor(system).solve(-model.gradient)
    full = torch.where(torch.isfinite(full).all(-1, keepdim=True), full, down)
    length = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
    first = torch.linalg.vector_norm(down, dim=-1, keepdim=True)
    # Between both: |down + a (full - down)| = radius.
    rest = full - down
    a, b, c = dot(rest, rest), dot(down, rest), square_gap(radius, first)
    root = (b * b + a * c.clamp(min=0)).sqrt()
    along = torch.where(a > 0, (root - b) / torch.where(a > 0, a, 1.0), 0.0).clamp(0, 1)
    step = torch.where(first >= radius, down * (radius / torch.where(first > 0, first, 1.0)), down + along * rest)
    inside = length <= radius
    return torch.where(inside, full, step), ~inside


def square_gap(radius: Tensor, length: Tensor) -> Tensor:
    """radius^2 - length^2 without overflow of what is larger."""
    return (radius - length) * (radius + length)
