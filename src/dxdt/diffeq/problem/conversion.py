"""One equation in the other calculus.

    Ito           dy = f dt + g dW
    Stratonovich  dy = (f - 1/2 sum_j (D g_j) g_j) dt + g o dW

Source: P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations" (1992),
4.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast, final

import torch
from torch import Tensor

from dxdt.diffeq.problem.equation import Ito, StochasticEquation, Stratonovich
from dxdt.diffeq.problem.noise import Noise
from dxdt.ops.tree import Layout, Tree, tree_map

__all__ = ["Converted", "to_ito", "to_stratonovich"]


@final
@dataclass(frozen=True)
class Converted(StochasticEquation):
    """An equation with noise in the other calculus: the same solution with the same g.

    The correction takes one derivative of g along g for diagonal and scalar noise and m for a
    matrix; no matrix of derivatives is formed.

    Args:
        equation: an ``SDE``, or anything like it.

    Raises:
        TypeError: the equation has no noise.
    """

    equation: StochasticEquation
    noise: Noise = field(init=False, repr=False, compare=False)
    calculus: Ito | Stratonovich = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.equation, StochasticEquation):
            raise TypeError(
                f"{type(self.equation).__name__} has no noise, so it has no calculus to change: give an SDE"
            )
        object.__setattr__(self, "noise", self.equation.noise)
        other = Stratonovich() if isinstance(self.equation.calculus, Ito) else Ito()
        object.__setattr__(self, "calculus", other)

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        """The user's callables, searched for parameters."""
        return self.equation.fields

    def with_fields(self, *fields: Any) -> Converted | None:
        inner = self.equation.with_fields(*fields)
        return None if inner is None else Converted(cast(StochasticEquation, inner))

    def drift(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """f(t, y) with the correction."""
        drift = self.equation.drift(t, y, *args)
        noise = self.equation.noise
        if noise.additive:
            return drift

        def g(y: Tree) -> Tree:
            return self.equation.diffusion(t, y, *args)

        # Forward differentiation writes to what it is given, which must not share its memory.
        y = tree_map(Tensor.contiguous, y)
        columns = [tree_map(Tensor.contiguous, v) for v in noise.columns(g(y))]
        turn = noise.along([torch.func.jvp(g, (y,), (v,))[1] for v in columns])
        half = -0.5 if isinstance(self.equation.calculus, Ito) else 0.5
        return tree_map(lambda f, c: f + half * c, drift, turn)

    def diffusion(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """g(t, y)."""
        return self.equation.diffusion(t, y, *args)

    def noise_size(self, layout: Layout) -> int:
        """Components of W in a row."""
        return self.equation.noise_size(layout)


def to_stratonovich(equation: StochasticEquation) -> StochasticEquation:
    """The equation in Stratonovich calculus, itself if it is so already."""
    return _in(Stratonovich, equation)


def to_ito(equation: StochasticEquation) -> StochasticEquation:
    """The equation in Ito calculus, itself if it is so already."""
    return _in(Ito, equation)


def _in(calculus: type, equation: StochasticEquation) -> StochasticEquation:
    if isinstance(getattr(equation, "calculus", None), calculus):
        return equation
    return equation.equation if isinstance(equation, Converted) else Converted(equation)
