"""Noise that varies along the way leaves the marginals alone, for every kind of solver."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffusion import (
    DDIM,
    EDM,
    VE,
    VP,
    Ancestral,
    LogSNR,
    MeanReverting,
    Process,
    Profile,
    ReverseDiffusion,
    Time,
    Varying,
    Window,
    draw,
    gaussian_oracle,
    reverse,
)
from impulses import M, S, exact, law


def bump(lam: Tensor) -> Tensor:
    return torch.exp(-0.5 * (lam / 2).clamp(-40, 40).square())


PROFILES = [Window(0.05, 3.0), Varying(bump)]


def error(solver: Any, process: Process, grid: Tensor, profile: Profile) -> float:
    mean, variance = law(solver, process, grid, 1.0, mean=process.centred, profile=profile)
    m, v = exact(process, grid[-1].item(), process.centred)
    return max((mean - m).abs().max().item(), (variance - v).abs().max().item())


@pytest.mark.parametrize("profile", PROFILES, ids=["window", "varying"])
@pytest.mark.parametrize("process", [VP(), VE(), MeanReverting()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (dxdt.Exponential(1), 1),
        (dxdt.Exponential(2), 2),
        (dxdt.Exponential(2, kind=dxdt.NoisePrediction()), 1),
        (DDIM(), 1),
        (Ancestral(), 1),
    ],
    ids=["data1", "data2", "noise2", "DDIM", "Ancestral"],
)
def test_marginals_stay_and_orders_hold(solver: Any, order: int, process: Process, profile: Profile):
    t1 = 0.9 * process.t1
    errors = [error(solver, process, LogSNR()(process, n, t1, 0.02 * process.t1), profile) for n in (40, 80, 160)]
    slope = math.log2(errors[0] / errors[2]) / 2
    assert errors[2] < (0.08 if order == 1 else 0.01), errors
    # Where an edge of the window falls inside a step the constant varies from grid to grid.
    assert slope > order - (0.5 if isinstance(profile, Window) else 0.25), errors


@pytest.mark.parametrize("solver", [dxdt.EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_methods_in_time_see_it_too(solver: Any):
    errors = [error(solver, VP(), Time()(VP(), n, 1.0, 0.05), Varying(bump)) for n in (100, 200, 400)]
    assert errors[2] < 0.03 and math.log2(errors[0] / errors[2]) / 2 > 0.8, errors


def test_no_noise_outside_a_window_and_all_of_it_inside():
    grid = LogSNR()(VP(), 20, 1.0, 0.01)
    oracle = gaussian_oracle(VP(), M, S)

    def drawn(profile: Profile | None, tau: float) -> Tensor:
        options = {"steps": 21, "grid": None, "dtype": torch.float64, "t0": 0.01, "seed": 3}
        return draw(oracle, (4, 3), tau=tau, profile=profile, solver=dxdt.Exponential(2), **options).x

    sigma = torch.exp(-VP().lam(grid))
    outside = Window(float(sigma[0]) * 2, float(sigma[0]) * 3)
    assert torch.allclose(drawn(outside, 1.0), drawn(None, 0.0), atol=1e-12)
    assert torch.allclose(drawn(Window(), 1.0), drawn(None, 1.0), atol=1e-12)
    assert not torch.allclose(drawn(Window(0.1, 1.0), 1.0), drawn(None, 0.0), atol=1e-2)


def test_means_are_exact():
    start, end = torch.tensor([-3.0, -1.0, -torch.inf, 2.0]).double(), torch.tensor([1.0, -1.0, 0.0, 9.0]).double()
    assert torch.allclose(Window(math.exp(-2), math.e).mean(start, end), torch.tensor([0.5, 1.0, 0.0, 0.0]).double())
    found = Varying(bump).mean(start[:1], end[:1])
    fine = bump(torch.linspace(-3, 1, 20001).double()).mean()
    assert abs(found.item() - fine.item()) < 1e-4


def test_what_cannot_work_says_so():
    with pytest.raises(ValueError, match="empty"):
        Window(2.0, 1.0)
    equation = reverse(gaussian_oracle(EDM(), M, S), 1.0, profile=Window(0.1, 1.0))
    with pytest.raises(ValueError, match="Increments"):
        grid = LogSNR()(EDM(), 5)
        options = {"controller": dxdt.Grid(grid.numpy()), "driver": dxdt.Brownian(0)}
        dxdt.solve(equation, torch.zeros(2, 3).double(), (80.0, 0.002), solver=dxdt.Exponential(2), **options)
