"""Neural SDEs: their paths, their gradients, and the scores that fit them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import dxdt
from dxdt.models import NeuralSDE, energy_distance, energy_score
from dxdt.nn import MLPField


def fields(features=2):
    torch.manual_seed(0)
    return (MLPField(features, width=8, depth=1).double() for _ in range(2))


@pytest.mark.parametrize("calculus", [dxdt.Ito(), dxdt.Stratonovich()])
def test_rows_are_driven_apart_from_each_other(calculus):
    sde = NeuralSDE(*fields(), dt=0.1, calculus=calculus)
    y0 = torch.randn(5, 2, dtype=torch.float64)
    ts = torch.tensor([0.0, 0.15, 0.2, 1.0], dtype=torch.float64)
    paths = sde(y0, ts, seed=3)
    assert paths.shape == (4, 5, 2) and torch.equal(paths[0], y0)
    torch.testing.assert_close(sde(y0[:3], ts, seed=3), paths[:, :3], rtol=1e-12, atol=1e-12)
    assert not torch.equal(sde(y0, ts, seed=4)[1:], paths[1:])
    assert torch.equal(sde(y0, ts, seed=3), paths)
    # Steps end at the times, none is longer than dt: 2, 1 and 8 of them.
    assert int(sde.solution(y0, ts, seed=3).stats.steps.max()) == 11


def test_spans_of_rows_and_pairs():
    sde = NeuralSDE(*fields(), dt=0.1, path=dxdt.Brownian)
    y0 = torch.randn(3, 2, dtype=torch.float64)
    ends = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    whole = sde(y0, (torch.zeros(3, dtype=torch.float64), ends), seed=0)
    assert whole.shape == (3, 2) and torch.isfinite(whole).all()
    assert sde(y0, (0.0, 1.0), seed=0).shape == (3, 2)


def test_adaptive_and_reversible_options():
    options = {"calculus": dxdt.Stratonovich(), "solver": dxdt.ReversibleHeun(), "path": dxdt.Brownian}
    control = dxdt.PID(1e-2, 1e-2, p=0.1, i=0.3)
    y0 = torch.randn(3, 2, dtype=torch.float64)
    found = []
    for gradient in (dxdt.Direct(), dxdt.Reversible()):
        sde = NeuralSDE(*fields(), dt=0.1, controller=control, gradient=gradient, **options)
        sde(y0, (0.0, 1.0), seed=1).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in sde.parameters()]))
    assert torch.allclose(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda y: NeuralSDE(*fields(), dt=0.0), ValueError, "longest step"),
        (lambda y: NeuralSDE(*fields(), dt=0.1)(y, torch.zeros(1), seed=0), ValueError, "NeuralSDE: times of shape"),
        (lambda y: NeuralSDE(*fields(), dt=0.1)(y, [0.0], seed=0), ValueError, "NeuralSDE: 1 times"),
        (lambda y: NeuralSDE(*fields(), dt=0.1, slover=1), TypeError, "did you mean solver"),
        (lambda y: NeuralSDE(*fields(), dt=0.1)(y, torch.tensor([0.0, 1.0, 1.0, 0.5]), seed=0), ValueError, "times"),
        (lambda y: NeuralSDE(*fields(), dt=0.1, solver=dxdt.Tsit5())(y, (0.0, 1.0), seed=0), ValueError, "noise"),
        (lambda y: energy_score(torch.zeros(1, 4, 2), torch.zeros(4, 2)), ValueError, "two samples"),
        (lambda y: energy_score(torch.zeros(3, 4, 2), torch.zeros(5, 2)), ValueError, "shape"),
        (lambda y: energy_distance(torch.zeros(3, 2), torch.zeros(3, 1)), ValueError, "one length"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3, 2, dtype=torch.float64))


def test_energy_distance_of_gaussians():
    """E|X - Y| of N(0, 1) and N(1, 1) is known, so is the distance; and it is unbiased at equality."""
    x, y = torch.randn(4000, 1, dtype=torch.float64), 1 + torch.randn(4000, 1, dtype=torch.float64)
    # E|Z| for Z ~ N(m, 2) with m = 1, and with m = 0.
    apart = 2 / math.sqrt(math.pi) * math.exp(-1 / 4) + math.erf(0.5)
    assert abs(energy_distance(x, y) - (2 * apart - 4 / math.sqrt(math.pi))) < 0.05
    null = [float(energy_distance(*torch.randn(2, 60, 3))) for _ in range(60)]
    assert abs(np.mean(null)) < 4 * np.std(null) / math.sqrt(len(null))


def test_energy_score_is_least_at_the_law_of_the_values():
    """Its gradient fits mean and spread of a Gaussian, and stays finite where samples coincide."""
    truth = 0.5 + 0.3 * torch.randn(4000, 1)
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(1.0), net.bias.fill_(0.0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(300):
        loss = energy_score(net(torch.randn(4, 4000, 1)), truth).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(net.bias.item() - 0.5) < 0.03 and abs(abs(net.weight.item()) - 0.3) < 0.03
    still = torch.zeros(3, 2, 2, requires_grad=True)
    energy_score(still, torch.zeros(2, 2)).sum().backward()
    assert torch.isfinite(still.grad).all()
