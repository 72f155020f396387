"""Moving averages: each against its definition, and any width afterwards from snapshots of two."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from dxdt.lab.training.averaging import Fixed, HalfLife, PowerFunction, WarmUp, exponent
from dxdt.lab.training.ema import Averages, Snapshot, coefficients, reconstruct


class Net(nn.Module):
    """A weight, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(2))


def course(n: int) -> np.ndarray:
    k = np.arange(1, n + 1)[:, None]
    return np.concatenate([np.sin(k / (0.2 * n)), (k / n) ** 2, np.log1p(k / (0.02 * n))], 1)


def follow(schedule, n: int, batch: int = 4) -> Averages:
    net = Net()
    averages = Averages(net, schedule)
    for step, value in enumerate(course(n), 1):
        net.weight.data = torch.from_numpy(value)
        averages.update(net, step, batch)
    return averages


def densities(schedule, n: int) -> list[np.ndarray]:
    """The weight of every step in the average, by definition: (1 - beta_k) prod_(j > k) beta_j."""
    out = []
    for betas in zip(*[schedule.decays(step, 4) for step in range(1, n + 1)], strict=True):
        beta = np.array(betas)
        later = np.concatenate((np.cumprod(beta[::-1])[::-1][1:], [1.0]))
        out.append((1 - beta) * later)
    return out


@pytest.mark.parametrize(
    "schedule", [Fixed(0.9), WarmUp(0.95), HalfLife(200, 0.1), PowerFunction((0.05, 0.2))], ids=repr
)
def test_an_average_is_the_weighted_sum_of_the_weights(schedule):
    averages = follow(schedule, 60)
    for tensors, density in zip(averages.tensors, densities(schedule, 60), strict=True):
        assert np.allclose(tensors["weight"].numpy(), density @ course(60), atol=1e-12)


def test_decays_are_the_published_ones():
    assert Fixed(0.99).decays(7, 3) == (0.99,)
    assert WarmUp(0.9).decays(1, 3) == (2 / 11,)
    assert WarmUp(0.9).decays(1000, 3) == (0.9,)
    assert HalfLife(1000, 0).decays(1, 100)[0] ** 10 == pytest.approx(0.5)
    assert HalfLife(1e9, 0.05).decays(100, 64)[0] == pytest.approx(0.5 ** (1 / 5))
    gamma = exponent(0.1)
    assert PowerFunction((0.1,)).decays(5, 1)[0] == pytest.approx((1 - 1 / 5) ** (gamma + 1))
    assert PowerFunction((0.1,)).decays(1, 1) == (0.0,)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.1, 0.25, 12**-0.5])
def test_the_density_of_a_width_has_that_width(width: float):
    g = exponent(width)
    first, second = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert math.sqrt(second - first**2) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0.0, 0.3, -1.0])
def test_a_width_that_no_density_has_is_refused(width: float):
    with pytest.raises(ValueError, match="relative standard deviation"):
        exponent(width)


def snapshots(n: int, every: int) -> list[Snapshot]:
    schedule = PowerFunction((0.05, 0.10))
    net, found = Net(), []
    averages = Averages(net, schedule)
    for step, value in enumerate(course(n), 1):
        net.weight.data = torch.from_numpy(value)
        averages.update(net, step, 1)
        if step % every == 0:
            pairs = zip(schedule.widths, averages.tensors, strict=True)
            found += [Snapshot(w, step, copy.deepcopy(t)) for w, t in pairs]
    return found


def test_any_width_can_be_had_afterwards():
    n = 4000
    found = snapshots(n, 32)
    for width in (0.04, 0.07, 0.15):
        want = densities(PowerFunction((width,)), n)[0] @ course(n)
        assert np.abs(reconstruct(found, width)["weight"].numpy() - want).max() < 1e-6
    early = densities(PowerFunction((0.07,)), 2000)[0] @ course(n)[:2000]
    assert np.abs(reconstruct(found, 0.07, 2000)["weight"].numpy() - early).max() < 1e-5
    with pytest.raises(ValueError, match="up to step 4000"):
        reconstruct(found, 0.07, 5000)
    with pytest.raises(ValueError, match="0 up to step 0"):
        coefficients([], 0.07, 10)


def test_a_width_that_was_kept_is_its_own_reconstruction():
    found = snapshots(200, 50)
    assert torch.allclose(reconstruct(found, 0.10)["weight"], found[-1].tensors["weight"], atol=1e-12)


def test_buffers_are_copied_not_averaged():
    net = Net()
    averages = Averages(net, Fixed(0.5))
    net.count += 3
    net.seen += 0.25
    net.weight.data += 1
    averages.update(net, 1, 1)
    filled = averages.fill(Net(), net)
    assert filled.count == 3
    assert torch.equal(filled.seen, net.seen)
    assert torch.equal(filled.weight, torch.full((3,), 0.5, dtype=torch.float64))
    averages.restore(0, {"weight": torch.ones(3)})
    assert torch.equal(averages.tensors[0]["weight"], torch.ones(3, dtype=torch.float64))
