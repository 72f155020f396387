"""Exponential integrators on their own: weights, golden steps, stability, history, front door."""

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffeq.methods.exponential.weights import powers
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.tree import Layout

D, N = dxdt.DataPrediction(), dxdt.NoisePrediction()


@dataclass(frozen=True)
class Answer:
    data: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Clocked:
    """Mean-reverting coefficients as functions of lam, with time t = -lam; the answer is a given function."""

    answer: Any
    tau: float = 0.0
    mu: Tensor | None = None
    width: float = 50 / 255
    noise: Any = field(default_factory=dxdt.Additive)
    calculus: Any = field(default_factory=dxdt.Ito)

    @property
    def fields(self) -> tuple[Any, ...]:
        return (self.answer,)

    def a(self, t: Tensor) -> Tensor:
        return self.width * torch.exp(-t) / (1 + self.width**2 * torch.exp(-2 * t)).sqrt()

    def b(self, t: Tensor) -> Tensor:
        return 1 - self.a(t)

    def c(self, t: Tensor) -> Tensor:
        return self.width / (1 + self.width**2 * torch.exp(-2 * t)).sqrt()

    def lam(self, t: Tensor) -> Tensor:
        return -t

    def time(self, lam: Tensor) -> Tensor:
        return -lam

    def remainder(self, t: Tensor, y: Tensor) -> Answer:
        value = self.answer(t, y)
        return Answer(value, value)

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def noise_size(self, layout: Layout) -> int:
        return layout.size


class Ordinary(dxdt.diffeq.Equation):
    """The same without its noise."""

    tau = 0.0

    def __init__(self, inner: Clocked) -> None:
        self.inner, self.mu = inner, inner.mu
        for name in ("a", "b", "c", "lam", "time", "remainder"):
            setattr(self, name, getattr(inner, name))

    @property
    def fields(self) -> tuple[Any, ...]:
        return self.inner.fields

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        return self.inner.drift(t, y)


class Silent:
    """A driver that never moves."""

    adaptive, levy = False, None

    def bind(self, t0: Any, t1: Any, rows: int, size: int, dtype: Any, device: Any) -> Any:
        self.shape = rows, size
        return self

    def increment(self, t: Any, dt: Any, step: Any = 0) -> Any:
        return Still(torch.zeros(self.shape, dtype=torch.float64))


@dataclass(frozen=True)
class Still:
    W: Tensor


class Half:
    """A bound driver whose every normal is one half."""

    def unit(self, start: np.ndarray, end: np.ndarray, index: int) -> Tensor:
        return torch.full((1, 1), 0.5, dtype=torch.float64)


GOLDEN = {
    (0.0, D): (0.331793240498, 0.368558391760, 0.380392202807),
    (1.0, D): (0.552137796435, 0.605040119858, 0.622732503247),
    (0.0, N): (-0.652576465238, -0.722297659957, -0.742236214005),
    (1.0, N): (-0.743404935043, -0.882847324480, -0.922724432576),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("tau", "kind"), GOLDEN, ids=str)
def test_one_step_of_the_mean_reverting_sampler_has_its_golden_digits(tau: float, kind: Any, order: int):
    x = torch.full((1, 1), 0.25, dtype=torch.float64)
    q0, q1, q2 = (torch.full((1, 1), q, dtype=torch.float64) for q in (0.8, 0.6, 0.5))
    equation = Clocked(lambda t, y: q0, tau, torch.full((1, 1), 0.4, dtype=torch.float64))
    rows = Rows(equation, Layout.of(x, per_sample=False), noise=Half() if tau else None)
    gaps = torch.tensor([[-0.9, -0.6]], dtype=torch.float64)[:, : order - 1]
    state = (q1, q2)[: order - 1] + ((gaps,) if order > 1 else ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # noise prediction is unstable at this length, and says so
        step = dxdt.Exponential(order, kind).step(rows, np.float64(1.1), np.float64(-1.4), x, state, np.int64(5))
    assert step.y.item() == pytest.approx(GOLDEN[tau, kind][order - 1], abs=1e-12)


def test_moments_of_the_exponential_are_exact_for_any_length():
    z = torch.tensor([-40.0, -3.0, -1.6, -1.4, -0.1, -1e-3, -1e-9, 0.0, 1e-9, 1e-2, 1.4, 1.6, 4.0], dtype=torch.float64)
    x, w = np.polynomial.legendre.leggauss(80)
    u, w = torch.from_numpy(0.5 * (x + 1)), torch.from_numpy(0.5 * w)
    for k, found in enumerate(powers(z, 5).unbind(-1)):
        exact = (torch.exp(z[:, None] * (1 - u)) * u**k * w).sum(1)
        assert torch.allclose(found, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("order", "tau", "bound"), [(1, 1.0, math.log(3)), (2, 1.0, 0.536), (2, 0.0, 1.257), (3, 0.0, 0.613)]
)
def test_noise_prediction_amplifies_beyond_its_bound_and_not_below(order: int, tau: float, bound: float):
    """The prior's limit: c is constant, so that E[eps | x] = y / c, and nothing is known of the data."""
    assert dxdt.largest_step(order, tau) == pytest.approx(bound, abs=6e-4)
    for share, grows in ((0.98, False), (1.03, True)):
        h, steps = share * dxdt.largest_step(order, tau), 400
        # Far below lam = 0 the factor c is its limit to the last digit.
        grid = 40 + h * steps - h * np.arange(steps + 1)
        jolt = grid[3]  # a first disturbance: y = const is exact
        equation = Clocked(lambda t, y, jolt=jolt: (y + 0.1 * (t > jolt)) / (50 / 255), tau)
        quiet = Silent() if tau else None
        y = torch.ones(1, 1, dtype=torch.float64)
        with pytest.warns(RuntimeWarning, match="amplifies") if grows else nullcontext():
            solution = dxdt.solve(
                equation if tau else Ordinary(equation), y, grid, solver=dxdt.Exponential(order, N), driver=quiet
            )
        assert (solution.y1.abs().item() > 100) == grows


def test_data_prediction_has_no_bound():
    grid = 400.0 - 20.0 * np.arange(19)
    for order in (1, 2, 3, 4):
        equation = Ordinary(Clocked(lambda t, y: torch.full_like(y, 0.3)))
        y = dxdt.solve(equation, torch.ones(1, 1, dtype=torch.float64), grid, solver=dxdt.Exponential(order)).y1
        assert y.abs().item() < 10
