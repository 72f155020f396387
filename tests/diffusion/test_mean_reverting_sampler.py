"""Samplers of mean reversion are those of the preserving process after a shift and a scale, and truly of order 3."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from dxdt import DataPrediction, Exponential, Inside, NoisePrediction
from dxdt.diffusion import (
    DDIM,
    VP,
    Ancestral,
    Given,
    LogSNR,
    MeanReverting,
    MixtureOracle,
    Posterior,
    Process,
    Reversion,
    integrate,
    reverse,
)
from dxdt.paths.driver import Increment
from grids import solve_on_grid

D, N = DataPrediction(), NoisePrediction()
L = 50 / 255
THETA = Reversion()
MR = MeanReverting(L, THETA)
MU = 0.4


@dataclass(frozen=True)
class Twice:
    """B = 2 Theta, with which VP forgets as mean reversion does."""

    half: Any = THETA

    @property
    def t0(self) -> float:
        return self.half.t0

    @property
    def t1(self) -> float:
        return self.half.t1

    def integral(self, t: Tensor) -> Tensor:
        return 2 * self.half.integral(t)

    def rate(self, t: Tensor) -> Tensor:
        return 2 * self.half.rate(t)

    def inverse(self, total: Tensor) -> Tensor:
        return self.half.inverse(total / 2)


PRESERVING = VP(Twice())


def answer(process: Process, radius: float, shift: float, x: Tensor, t: Tensor, mu: Tensor | None) -> Posterior:
    """A smooth denoiser that says the same of y = (x - shift) / radius under either process."""
    y = (x - shift) / radius
    lam = process.lam(t) + math.log(radius)
    data = torch.tanh(y + 0.3 * torch.sin(2 * lam).reshape(-1, 1)) * torch.sigmoid(lam).reshape(-1, 1)
    at = process.moments(t, x)
    x0 = radius * data + shift
    xi = x if mu is None else x - at.b * mu
    return Posterior(process, t, x, x0, (xi - at.a * x0) / at.c, mu)


@dataclass(frozen=True)
class Twin:
    """The denoiser of one of the two processes."""

    process: Process
    radius: float
    shift: float

    def __call__(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        return answer(self.process, self.radius, self.shift, x, t, mu)


@dataclass(frozen=True)
class Told:
    """A driver whose normals are given, one for each step."""

    z: Tensor
    adaptive: bool = False
    levy: Any = None

    def bind(self, *given: Any) -> "Told":
        return self

    def increment(self, t: Any, dt: Any, step: Any = 0) -> Increment:
        """The same for all who ask about one step."""
        k = int(np.ravel(step)[0])
        return Increment(dt, float(np.ravel(np.abs(dt))[0]) ** 0.5 * self.z[k], None)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """The same numbers beside the path."""
        return self.z[int(np.ravel(step)[0])]


def grid(steps: int = 12) -> Tensor:
    return LogSNR()(MR, steps, 100.0, 1.0)


Z = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

ODES: list[Any] = [Exponential(k, kind) for k in (1, 2, 3) for kind in (D, N)]
ODES += [Exponential(3, D, Inside()), Exponential(3, corrector=dxdt.Corrector()), DDIM(), dxdt.Heun(), dxdt.Tsit5()]
SDES: list[Any] = [Exponential(1), Exponential(2), Exponential(3), DDIM(), Ancestral(), dxdt.EulerMaruyama()]


@pytest.mark.filterwarnings("ignore:Exponential:RuntimeWarning")
@pytest.mark.parametrize(("solver", "tau"), [(s, 0.0) for s in ODES] + [(s, 1.0) for s in SDES], ids=str)
def test_whole_solves_are_those_of_the_preserving_process(solver: Any, tau: float):
    """x = mu + L y, for every kind of solver of either equation."""
    options: dict[str, Any] = dict(grid=Given(grid()), solver=solver, tau=tau)
    if tau:
        options["driver"] = Told(Z)
    mu = torch.full((5, 3), MU, dtype=torch.float64)
    y = integrate(Twin(PRESERVING, 1.0, 0.0), Y, **options).y1
    x = integrate(Twin(MR, L, MU), MU + L * Y, mu=mu, **options).y1
    assert ((x - MU) / L - y).abs().max() < 1e-14


@pytest.mark.parametrize("solver", [DDIM(), Ancestral()], ids=str)
def test_the_first_order_sde_in_data_is_the_strided_posterior(solver: Any):
    mu = torch.full((5, 3), MU, dtype=torch.float64)
    options: dict[str, Any] = dict(grid=Given(grid()), tau=1.0, mu=mu, driver=Told(Z))
    ours = integrate(Twin(MR, L, MU), MU + L * Y, solver=Exponential(1), **options).y1
    posterior = integrate(Twin(MR, L, MU), MU + L * Y, solver=solver, **options).y1
    assert torch.allclose(ours, posterior, rtol=0, atol=1e-13)


def test_the_first_order_flow_is_one_rotation_in_noise_data_and_velocity():
    mu = torch.full((5, 3), MU, dtype=torch.float64)
    denoiser, x, times = Twin(MR, L, MU), MU + L * Y, grid(6)
    noise, data = (
        solve_on_grid(reverse(denoiser, 0.0, mu), x, times, solver=Exponential(1, kind)).y1 for kind in (N, D)
    )
    for s, t in zip(times[:-1], times[1:], strict=True):
        known = reverse(denoiser, 0.0, mu).remainder(s, x)
        angle = torch.atan2(MR.c(s) / L, MR.a(s)) - torch.atan2(MR.c(t) / L, MR.a(t))
        x = MU + angle.cos() * (x - MU) - angle.sin() * known.angular_velocity
    assert torch.allclose(noise, data, rtol=0, atol=1e-13)
    assert torch.allclose(x, data, rtol=0, atol=1e-13)


def test_golden_velocity_step():
    """v = 0.3 at lam = -1.1, from x = 0.25 to lam = 0.3."""
    s, t = (MR.time(torch.tensor(lam, dtype=torch.float64)) for lam in (-1.1, 0.3))
    x = torch.full((1, 1), 0.25, dtype=torch.float64)
    a, c = MR.a(s), MR.c(s)
    assert (a.item(), c.item()) == pytest.approx((0.065130259222, 0.195662111885), abs=1e-12)
    assert (MR.a(t).item(), MR.c(t).item()) == pytest.approx((0.255867549499, 0.189551342750), abs=1e-12)
    x0, eps = MU + a * (x - MU) - c / L * 0.3, (c / L * (x - MU) + a * 0.3) / L
    assert (x0.item(), eps.item()) == pytest.approx((0.090867429932, -0.663726432911), abs=1e-11)
    mu = torch.full((1, 1), MU, dtype=torch.float64)

    def denoiser(x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        return Posterior(MR, t, x, x0, eps, mu)

    denoiser.process = MR  # pyright: ignore[reportFunctionMemberAccess]
    y = solve_on_grid(reverse(denoiser, 0.0, mu), x, (float(s), float(t)), dt=float(s - t), solver=Exponential(1)).y1
    assert y.item() == pytest.approx(0.195092770249, abs=1e-11)


W = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS, WIDTHS = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ((0.1, 0.75, 1.1), (0.08, 0.05, 0.15)))
MIXTURE = MixtureOracle(MR, W, MEANS, WIDTHS)


def share(x: Tensor, t: Tensor) -> Tensor:
    """Exact distribution function of x_t."""
    a, b, v = MR.a(t), MR.b(t), MR.variance(t)
    return (W * torch.special.ndtr((x - a * MEANS.T - b * MU) / (a**2 * WIDTHS.T**2 + v).sqrt())).sum(1, keepdim=True)


def place(p: Tensor, t: Tensor) -> Tensor:
    """Its inverse: the flow keeps quantiles."""
    low, high = torch.full_like(p, -30.0), torch.full_like(p, 30.0)
    for _ in range(70):
        middle = 0.5 * (low + high)
        below = share(middle, t) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def third_order(times: Tensor, p: Tensor, factor: float) -> Tensor:
    """Three exact states, then the published step of order 3 in data, whose last weight is `factor` of ours."""
    mu = torch.full_like(p, MU)
    a, c, lam = MR.a(times), MR.c(times), MR.lam(times)
    q = [MIXTURE(place(p, times[k]), times[k], mu).data for k in (0, 1)]
    x = place(p, times[2])
    for k in range(2, len(times) - 1):
        q.append(MIXTURE(x, times[k], mu).data)
        h, r0, r1 = lam[k + 1] - lam[k], lam[k] - lam[k - 1], lam[k - 1] - lam[k - 2]
        r0, r1 = r0 / h, r1 / h
        d0, d1 = (q[-1] - q[-2]) / r0, (q[-2] - q[-3]) / r1
        second = (d0 - d1) / (r0 + r1)
        first = d0 + r0 * second
        i0 = -torch.expm1(-h)
        i1 = 1 - i0 / h
        i2 = 1 - 2 * i1 / h
        sum_ = i0 * (q[-1] - MU) + i1 * first + factor * i2 * second
        x = MU + c[k + 1] / c[k] * (x - MU) + a[k + 1] * sum_
    return x


def test_order_three_is_three_where_the_published_formula_measures_two():
    """The published third weight lacks a factor of two, in this sampler and in DPM-Solver's multistep method."""
    p = torch.tensor([[0.1], [0.29], [0.6], [0.9]], dtype=torch.float64)
    mu, orders = torch.full_like(p, MU), {}
    start, end = (MR.time(torch.tensor(lam, dtype=torch.float64)) for lam in (-2.0, 4.5))
    runs: dict[str, Any] = {
        "published": lambda times: third_order(times, p, 0.5),
        "corrected": lambda times: third_order(times, p, 1.0),
        "ours": lambda times: (
            solve_on_grid(reverse(MIXTURE, 0.0, mu), place(p, times[0]), times, solver=Exponential(3)).y1
        ),
    }
    exact = place(p, end)
    for name, run in runs.items():
        errors = [(run(LogSNR()(MR, n, start.item(), end.item())) - exact).abs().mean().item() for n in (80, 320)]
        orders[name] = math.log2(errors[0] / errors[1]) / 2
    assert 1.7 < orders["published"] < 2.4, orders
    assert orders["corrected"] > 2.7 and orders["ours"] > 2.7, orders
