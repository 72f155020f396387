"""One equation in the other calculus.

    Ito           dy = f dt + g dW
    Stratonovich  dy = (f - 1/2 sum_j (D g_j) g_j) dt + g o dW

Source: P. Kloeden, E. Platen, "Numerical Solution of Stochastic Differential Equations" (1992),
4.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffeq.problem.equation import Equation, Ito, Stratonovich
from dxdt.ops.tree import Layout, Tree, tree_map

__all__ = ["Converted", "to_ito", "to_stratonovich"]


@final
@dataclass(frozen=True)
class Converted:
    """An equation with noise in the other calculus: the same solution with the same g.

    The correction takes one derivative of g along g for diagonal and scalar noise and m for a
    matrix; no matrix of derivatives is formed.

    Args:
        equation: an ``SDE``, or anything like it.

    Raises:
        TypeError: the equation has no noise.
    """

    equation: Equation

    def __post_init__(self) -> None:
        if not hasattr(self.equation, "diffusion"):
            raise TypeError(
                f"{type(self.equation).__name__} has no noise, so it has no calculus to change: give an SDE"
            )

    @property
    def calculus(self) -> Ito | Stratonovich:
        """The calculus of this form."""
        return Stratonovich() if isinstance(self.equation.calculus, Ito) else Ito()

    @property
    def noise(self) -> Any:
        """Structure of g."""
        return self.equation.noise

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        """The user's callables, searched for parameters."""
        return self.equation.fields

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


def to_stratonovich(equation: Equation) -> Equation:
    """The equation in Stratonovich calculus, itself if it is so already."""
    return _in(Stratonovich, equation)


def to_ito(equation: Equation) -> Equation:
    """The equation in Ito calculus, itself if it is so already."""
    return _in(Ito, equation)


def _in(calculus: type, equation: Equation) -> Equation:
    if isinstance(getattr(equation, "calculus", None), calculus):
        return equation
    return equation.equation if isinstance(equation, Converted) else Converted(equation)
