"""Multilayer perceptrons, alone and as time-dependent vector fields f(t, y).

Hidden layers share one width and one activation; the last layer is linear.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.layers import ConcatSquash, scaled


def _check_sizes(name: str, **sizes: int) -> None:
    for label, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {label}={size} leaves no units; give at least 1.")


@final
class MLP(nn.Module):
    """Map x to W_d act(... act(W_0 x + b_0) ...) + b_d.

    Args:
        in_features, out_features: lengths of the last axis before and after.
        width: units of each hidden layer.
        depth: number of hidden layers; 0 gives a linear map.
        activation: a module without parameters, applied after every hidden layer.
        output_scale: variance factor of the last layer's initial weights; small values start a
            vector field near rest.

    Raises:
        ValueError: a size is below 1 or `depth` is negative.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: nn.Module | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_sizes("MLP", in_features=in_features, out_features=out_features, width=width)
        if depth < 0:
            raise ValueError(f"MLP: depth={depth} is negative; give 0 or more hidden layers.")
        sizes = [in_features, *[width] * depth]
        self.hidden = nn.ModuleList(scaled(nn.Linear(n, m)) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.output = scaled(nn.Linear(sizes[-1], out_features), output_scale)
        self.activation = nn.Tanh() if activation is None else activation

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return the network's value for every row of `x`."""
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.output(x)


@final
class MLPField(nn.Module):
    """The vector field f(t, y) = MLP([y, t]), or MLP(y) for an autonomous one.

    Args:
        features: length of y's last axis.
        autonomous: leave time out.
        width, depth, activation, output_scale: as in `MLP`.

    Shapes: t is () or the leading axes of y; y and f(t, y) are (*batch, features).
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: nn.Module | None = None,
        output_scale: float = 1.0,
        autonomous: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.autonomous = autonomous
        self.net = MLP(
            features if autonomous else features + 1,
            features,
            width=width,
            depth=depth,
            activation=activation,
            output_scale=output_scale,
        )

    def forward(self, t: Tensor, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return dy/dt at time `t`."""
        if self.autonomous:
            return self.net(y)
        clock = t.reshape(t.shape + (1,) * (y.ndim - t.ndim)).expand(*y.shape[:-1], 1)
        return self.net(torch.cat((y, clock.to(y.dtype)), dim=-1))


@final
class ConcatSquashField(nn.Module):
    """The vector field made of `ConcatSquash` layers with an activation between them.

    Args:
        features: length of y's last axis.
        width, depth: hidden units and number of hidden layers.
        activation: a module without parameters.

    Shapes: t is () or the leading axes of y; y and f(t, y) are (*batch, features).

    Source: Grathwohl et al., "FFJORD: free-form continuous dynamics" (2019), appendix B.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check_sizes("ConcatSquashField", features=features, width=width, depth=depth)
        self.features = features
        sizes = [features, *[width] * depth, features]
        self.layers = nn.ModuleList(ConcatSquash(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.activation = nn.Tanh() if activation is None else activation

    def forward(self, t: Tensor, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return dy/dt at time `t`."""
        clock = t.to(y.dtype)
        for layer in self.layers[:-1]:
            y = self.activation(layer(clock, y))
        return self.layers[-1](clock, y)
