"""Terms that keep a learnt differential equation easy to solve.

As integrals along the solution, followed as extra states that share one pass of the field:

    kinetic  K = int |f|^2 dt,        Jacobian  J = int |e^T df/dy|^2 dt,   E[e e^T] = I

As a random end of the span (`random_end`), and as sums over the accepted steps of a solve of the
solver's own estimates (`step_terms`):

    error      R_E = sum_n |err_n| |dt_n|
    stiffness  R_S = sum_n |k_s - k_(s-1)| / |z_s - z_(s-1)|

with k_i = f(z_i) the stages of a step.

Source: Finlay et al., "How to train your neural ODE: the world of Jacobian and kinetic
regularization" (ICML 2020); Ghosh et al., "STEER: simple temporal regularization for neural ODEs"
(NeurIPS 2020); Pal et al., "Opening the blackbox: accelerating neural differential equations by
regularizing internal solver heuristics" (ICML 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq.methods.explicit import RungeKutta, Tsit5
from dxdt.diffeq.problem.equation import Equation, Field, StochasticEquation
from dxdt.diffeq.solution import Solution
from dxdt.ops.autodiff import Hutchinson, Trace, vjp
from dxdt.ops.tree import leaves

__all__ = ["Jacobian", "Kinetic", "StepTerms", "Term", "augment", "random_end", "step_terms"]


class Term(Protocol):
    """A density along the solution whose integral is a penalty."""

    def rate(
        self, value: Float[Tensor, "batch *shape"], pulled: Float[Tensor, "probes batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """Return the density from f(t, y) and the products e^T df/dy along the directions."""
        ...


@final
@dataclass(frozen=True)
class Kinetic:
    """|f(t, y)|^2: solutions move no faster than they must."""

    def rate(
        self, value: Float[Tensor, "batch *shape"], pulled: Float[Tensor, "probes batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """Return the squared speed of every sample."""
        return value.flatten(1).square().sum(-1)


@final
@dataclass(frozen=True)
class Jacobian:
    """|e^T df/dy|^2, an unbiased estimate of the squared Frobenius norm: paths do not bend."""

    def rate(
        self, value: Float[Tensor, "batch *shape"], pulled: Float[Tensor, "probes batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """Return the mean over the directions."""
        return pulled.flatten(2).square().sum(-1).mean(0)


@final
@dataclass(frozen=True, eq=False)
class Regularised:
    """The equation for (y, q), or (y, l, q) where the change of log density is followed too.

    Args:
        equation: the equation of y, a tensor (batch, *shape) whose rows do not mix.
        terms: densities; q is (batch, len(terms)).
        directions: (probes, batch, *shape), fixed for the solve.
        density: how products along the directions make a divergence, or None without one.
    """

    equation: Equation
    terms: tuple[Term, ...]
    directions: Tensor
    density: Trace | None

    def drift(self, t: Tensor, y: tuple[Tensor, ...], *args: Any) -> tuple[Tensor, ...]:
        """Return the slopes of all states: one forward pass, and one transposed one if needed."""
        value, pulled = self._passes(t, y[0], args)
        rates = torch.stack([term.rate(value, pulled) for term in self.terms], -1)
        if self.density is None:
            return value, rates
        products = (self.directions * pulled).flatten(2).sum(-1)
        return value, self.density.combine(products), rates

    def _passes(self, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        if self.density is None and all(isinstance(term, Kinetic) for term in self.terms):
            return self.equation.drift(t, y, *args), self.directions
        value, pull = vjp(lambda z: self.equation.drift(t, z, *args), y)
        if len(self.directions) == 1:
            return value, pull(self.directions[0]).unsqueeze(0)
        return value, torch.func.vmap(pull)(self.directions)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The callables of the equation, searched for parameters."""
        return self.equation.fields


def augment(
    equation: Equation,
    y0: Float[Tensor, "batch *shape"],
    *terms: Term,
    probe: Trace | None = None,
    density: bool = False,
) -> tuple[Regularised, tuple[Tensor, ...]]:
    """Return an equation that integrates penalties beside y, and its initial state.

    Solve it, and add `q.mean(0) @ weights` to the loss, where `y, q = solution.y1` (or `y, l, q`
    with `density`).

    Args:
        equation: a deterministic equation whose state is one tensor.
        y0: initial state; axis 0 is the batch.
        terms: `Kinetic()`, `Jacobian()`, or your own.
        probe: the directions of the Jacobian, `Hutchinson()` by default.
        density: follow the change of log density as well, from the same transposed pass; l then
            has the columns that `solve.density.augment` gives it.

    Raises:
        ValueError: `equation` has noise, `y0` has no batch axis, or there are no terms.
    """
    if isinstance(equation, StochasticEquation):
        raise ValueError(f"{type(equation).__name__} has noise: give the terms of its drift, as ODE(drift)")
    if y0.ndim < 2:
        raise ValueError(f"y0 of shape {tuple(y0.shape)} has no batch axis: give one row for each sample")
    if not terms:
        raise ValueError("augment has no terms: give Kinetic(), Jacobian(), or both")
    probe = Hutchinson() if probe is None else probe
    directions = probe.directions(y0)
    state = y0, y0.new_zeros(y0.shape[0], len(terms))
    if density:
        columns = probe.combine(y0.new_zeros(directions.shape[0], y0.shape[0])).shape[1]
        state = y0, y0.new_zeros(y0.shape[0], columns), state[1]
    return Regularised(equation, terms, directions, probe if density else None), state


def random_end(
    t: tuple[float, float],
    width: float,
    *,
    size: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[float, float | Tensor]:
    """Return the span with its end drawn uniformly from [t1 - width, t1 + width].

    A field that is trained with it has to be at rest near t1, and is less stiff. Solve to t1
    itself when the model is used.

    Args:
        t: the span (t0, t1).
        width: half the width of the interval, below |t1 - t0|.
        size: draw one end for each of so many samples (solve with `per_sample=True`).
        generator: source of randomness, torch's own by default.

    Raises:
        ValueError: the interval reaches beyond t0.
    """
    t0, t1 = t
    if not 0 <= width < abs(t1 - t0):
        raise ValueError(f"random_end(width={width}) reaches beyond t0 = {t0}: give 0 <= width < {abs(t1 - t0)}")
    draw = torch.rand(size or 1, generator=generator, dtype=torch.float64) * 2 - 1
    ends = t1 + width * draw
    return t0, float(ends) if size is None else ends


class StepTerms(NamedTuple):
    """Sums over the accepted steps, `()`, or `(B,)` per sample.

    Attributes:
        error: sum of |error estimate| |dt|.
        stiffness: sum of the estimates of the largest eigenvalue's modulus.
    """

    error: Tensor
    stiffness: Tensor


def step_terms(
    equation: Equation,
    solution: Solution,
    *args: Any,
    solver: RungeKutta | None = None,
    per_sample: bool = False,
) -> StepTerms:
    """Return the solver's error and stiffness estimates over a solve, as terms of a loss.

    The accepted steps are formed once more, all in one call of the field for each stage, from the
    states of `solution`: differentiable in those and in what the field depends on.

    Args:
        equation: the equation that was solved.
        solution: its solution with `Save(start=True, steps=True)`, the state being one tensor.
        args: extra arguments of the field.
        solver: the pair that was used, `Tsit5()` by default.
        per_sample: whether the solve was.

    Raises:
        ValueError: the solver has no error estimate, or the solution has fewer than two values.
    """
    solver = Tsit5() if solver is None else solver
    tableau = solver.tableau
    if tableau.error is None:
        raise ValueError(f"{type(solver).__name__} has no error estimate: give a pair such as Tsit5()")
    if len(leaves(solution.ys)) != 1 or solution.ts.shape[0] < 2:
        raise ValueError("step_terms needs one tensor after every step: solve with save=Save(start=True, steps=True)")
    times, states = solution.ts, leaves(solution.ys)[0]
    reached = solution.reached[1:] & solution.reached[:-1]
    dt = torch.where(reached, times.diff(dim=0), 0.0)
    start = torch.where(reached, times[:-1], times[0])
    wide = reached.reshape(reached.shape + (1,) * (states.dim() - reached.dim()))
    y = torch.where(wide, states[:-1], states[0])
    field = torch.func.vmap(lambda t, y: equation.drift(t.to(y.real.dtype), y, *args))
    h = dt.to(y.dtype).reshape(wide.shape)
    stages, points = [field(start, y)], [y]
    nodes = [float(c) for c in tableau.c or (0.0, *(sum(map(float, row)) for row in tableau.a))]
    rows = [*tableau.a, tableau.b] if len(tableau.error) > tableau.stages else [*tableau.a]
    for row, node in zip(rows, [*nodes[1:], 1.0], strict=False):
        point = y + h * _weighed(row, stages)
        points.append(point)
        stages.append(field(start + node * dt, point))
    keep = 2 if per_sample else 1
    error = _norm(h * _weighed(tableau.error, stages), keep)
    rise, run = (_norm(x[-1] - x[-2], keep) for x in (stages, points))
    live = reached & (run > 0)
    stiffness = torch.where(live, rise / torch.where(live, run, 1.0), 0.0)
    weighed = torch.where(reached, error * dt.abs().to(error.dtype), 0.0)
    return StepTerms(weighed.sum(0), stiffness.sum(0))


def _weighed(weights: Any, stages: list[Tensor]) -> Tensor:
    pairs = [(float(w), k) for w, k in zip(weights, stages, strict=False) if float(w) != 0]
    total = pairs[0][0] * pairs[0][1]
    for w, k in pairs[1:]:
        total = total + w * k
    return total


def _norm(x: Tensor, keep: int) -> Tensor:
    """Euclidean norm over all but the first axes, with derivative zero where it is zero."""
    squares = x.flatten(keep).abs().square().sum(-1) if x.dim() > keep else x.abs().square()
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
