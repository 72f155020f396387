"""The problems of the benchmark: fields in torch, and the same numbers for a field in JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dxdt.nn import FastTanh

__all__ = ["PROBLEMS", "Problem", "mlp_of_width"]


class _MLP(nn.Module):
    """Affine maps with an activation between them, and ``final`` after the last."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: Callable[[Tensor], Tensor],
        final: Callable[[Tensor], Tensor] | None,
        gain: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.activation, self.final = activation, final
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(gain)  # pyright: ignore[reportCallIssue]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            y = self.activation(layer(y))
        y = last(y)
        return y if self.final is None else self.final(y)


class _LotkaVolterra(nn.Module):
    """Predators and prey: dx/dt = 1.5 x - x y, dy/dt = -3 y + x y."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.5, -1.0, -3.0, 1.0], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        prey, hunters = y.unbind(-1)
        a, b, c, d = self.rates.unbind()
        met = prey * hunters
        return torch.stack([a * prey + b * met, c * hunters + d * met], dim=-1)


@dataclass(frozen=True)
class Problem:
    """An initial value problem.

    Attributes:
        name: name on the command line.
        title: what it is.
        make: the field, from a fixed seed.
        to_jax: the same field as ``(jax, numbers) -> f(t, y, numbers)``.
        width: numbers in a sample.
        t1: end of the span from 0.
        tol: rtol and atol.
        dtype: of the state.
        pair: name of the solver of all libraries: ``Tsit5`` or ``Dopri5``.
        batches: batch sizes by default.
        device: where the field and the state lie.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    to_jax: Callable[[Any, list[Any]], Callable[..., Any]]
    width: int
    t1: float
    tol: float
    dtype: torch.dtype
    pair: str
    batches: tuple[int, ...] = (1, 64, 1024)
    device: str = "cpu"

    def field(self) -> nn.Module:
        """The vector field, the same at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().to(self.device)

    def start(self, batch: int) -> Tensor:
        """The initial state ``(batch, width)``, the same at each call."""
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(batch, self.width, generator=generator, dtype=torch.float64)
        y0 = 1 + 0.1 * noise if self.name == "lotka" else noise
        return y0.to(self.device, self.dtype)


def _jax_mlp(activation: str, final: str | None) -> Callable[[Any, list[Any]], Callable[..., Any]]:
    def build(jax: Any, numbers: list[Any]) -> Callable[..., Any]:
        acts = {"tanh": jax.numpy.tanh, "softplus": jax.nn.softplus}

        def field(t: Any, y: Any, p: list[Any]) -> Any:
            for i in range(0, len(p) - 2, 2):
                y = acts[activation](y @ p[i].T + p[i + 1])
            y = y @ p[-2].T + p[-1]
            return y if final is None else acts[final](y)

        return field

    return build


def _jax_lotka(jax: Any, numbers: list[Any]) -> Callable[..., Any]:
    def field(t: Any, y: Any, p: list[Any]) -> Any:
        a, b, c, d = (p[0][i] for i in range(4))
        met = y[..., 0] * y[..., 1]
        return jax.numpy.stack([a * y[..., 0] + b * met, c * y[..., 1] + d * met], axis=-1)

    return field


PROBLEMS = {
    p.name: p
    for p in (
        Problem(
            "mlp",
            "MLP 4-64-64-4 tanh, weights x3",
            lambda: _MLP((4, 64, 64, 4), torch.tanh, None, 3.0),
            _jax_mlp("tanh", None),
            *(4, 10.0, 1e-5, torch.float32, "Tsit5"),
        ),
        Problem(
            "fast",
            "MLP 4-64-64-4, weights x3, FastTanh (tanh in JAX)",
            lambda: _MLP((4, 64, 64, 4), FastTanh(), None, 3.0),
            _jax_mlp("tanh", None),
            *(4, 10.0, 1e-5, torch.float32, "Tsit5"),
        ),
        Problem(
            "lotka",
            "Lotka-Volterra",
            _LotkaVolterra,
            _jax_lotka,
            *(2, 10.0, 1e-6, torch.float64, "Tsit5"),
        ),
        Problem(
            "small",
            "small_neural_ode: MLP 4-32-4 softplus, tanh",
            lambda: _MLP((4, 32, 4), nn.functional.softplus, torch.tanh, 1.0),
            _jax_mlp("softplus", "tanh"),
            *(4, 100.0, 1e-6, torch.float32, "Dopri5"),
        ),
        Problem(
            "wide",
            "MLP 4-1024-1024-4 tanh: arithmetic dominates",
            lambda: _MLP((4, 1024, 1024, 4), torch.tanh, None, 1.0),
            _jax_mlp("tanh", None),
            *(4, 1.0, 1e-5, torch.float32, "Tsit5"),
            batches=(1, 64),
        ),
    )
}


def mlp_of_width(width: int) -> Problem:
    """The wide problem with hidden layers of another width."""
    make = lambda: _MLP((4, width, width, 4), torch.tanh, None, 1.0)  # noqa: E731
    return replace(PROBLEMS["wide"], title=f"MLP 4-{width}-{width}-4 tanh", make=make)
