"""An equation together with the change of log density along it.

    dy/dt = f(t, y),    dl/dt = div f(t, y),    log p_{t0}(y(t0)) = log p_{t1}(y(t1)) + l(t1)

for l(t0) = 0. The directions that measure the divergence are drawn once and kept for the whole
solve, so that the augmented equation is an ordinary differential equation with smooth solutions.

Source: Chen et al., "Neural ordinary differential equations" (2018), theorem 1; Grathwohl et al.,
"FFJORD" (2019), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq.problem.equation import Equation, Field, StochasticEquation
from dxdt.ops.autodiff import Trace, value_and_traces

__all__ = ["Augmented", "augment"]


@final
@dataclass(frozen=True, eq=False)
class Augmented(Equation):
    """The equation for (y, l): one forward and one transposed pass of the field per evaluation.

    Args:
        equation: the equation of y, a tensor (batch, *shape) whose rows do not mix.
        directions: (probes, batch, *shape), fixed for the solve.
        kind: how products along the directions make a divergence.
    """

    equation: Equation
    directions: Tensor
    kind: Trace

    def drift(self, t: Tensor, y: tuple[Tensor, Tensor], *args: Any) -> tuple[Tensor, Tensor]:
        """Return (f(t, y), div f(t, y)), the latter (batch, kept)."""
        state, _ = y
        value, products = value_and_traces(lambda z: self.equation.drift(t, z, *args), state, self.directions)
        return value, self.kind.combine(products)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The callables of the equation, searched for parameters."""
        return self.equation.fields


def augment(
    equation: Equation, y0: Float[Tensor, "batch *shape"], kind: Trace
) -> tuple[Augmented, tuple[Tensor, Tensor]]:
    """Return the equation for (y, l) and its initial state (y0, 0).

    Args:
        equation: a deterministic equation whose state is one tensor.
        y0: initial state; axis 0 is the batch.
        kind: `Exact()` or `Hutchinson(probes, seed)`; l has one column for the former, and one for
            each probe for the latter.

    Raises:
        ValueError: `equation` has noise, or `y0` has no batch axis.
    """
    if isinstance(equation, StochasticEquation):
        raise ValueError(
            f"{type(equation).__name__} has noise, along which no density can be followed: "
            "give the probability flow, reverse(denoiser, tau=0)"
        )
    if y0.ndim < 2:
        raise ValueError(f"y0 of shape {tuple(y0.shape)} has no batch axis: give one row for each sample")
    directions = kind.directions(y0)
    columns = kind.combine(y0.new_zeros(directions.shape[0], y0.shape[0])).shape[1]
    return Augmented(equation, directions, kind), (y0, y0.new_zeros(y0.shape[0], columns))
