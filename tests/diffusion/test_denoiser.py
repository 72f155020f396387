"""Denoisers: conversions are total, oracles are exact, losses are smallest at the truth."""

import math

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    VP,
    AngularVelocity,
    Data,
    Denoiser,
    DenoisingScoreMatching,
    Index,
    LikelihoodWeight,
    Mixed,
    MixtureOracle,
    Noise,
    Posterior,
    Process,
    Score,
    UniformLogSNR,
    UniformTime,
    Velocity,
    gaussian_oracle,
    low_discrepancy,
)
from processes import CLASSIC, MeanReverting

ANSWERS = {
    Noise(): lambda p: p.noise,
    Data(): lambda p: p.data,
    Score(): lambda p: p.score,
    Velocity(): lambda p: p.velocity,
    AngularVelocity(): lambda p: p.angular_velocity,
}


@pytest.mark.parametrize("process", CLASSIC, ids=repr)
@pytest.mark.parametrize("kind", ANSWERS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("mean", [False, True])
def test_every_way_of_answering_says_the_same(process: Process, kind, mean: bool):
    x0, eps, mu = torch.randn(3, 6, 2, 3, dtype=torch.float64)
    mu = mu if mean else None
    t = torch.linspace(0.01, 0.95, 6, dtype=torch.float64)
    x = process.perturb(x0, t, eps, mu)
    truth = Posterior(process, t, x, x0, eps, mu)
    output = ANSWERS[kind](truth)
    found = Denoiser(lambda *_: output, process, kind)(x, t, mu)
    for answer in ANSWERS.values():
        assert torch.allclose(answer(found), answer(truth), rtol=1e-6, atol=1e-6)


def mixture(process: Process) -> MixtureOracle:
    return MixtureOracle(
        process,
        torch.tensor([0.2, 0.5, 0.3]).double(),
        torch.tensor([[-1.0, 0.5], [0.3, 0.2], [1.0, -0.8]]).double(),
        torch.tensor([[0.2, 0.4], [0.3, 0.1], [0.5, 0.5]]).double(),
    )


@pytest.mark.parametrize("process", CLASSIC, ids=repr)
@pytest.mark.parametrize("mean", [False, True])
def test_the_oracles_score_is_the_gradient_of_its_density(process: Process, mean: bool):
    oracle = mixture(process)
    t = torch.linspace(0.02, 0.9, 5, dtype=torch.float64)
    x, mu = torch.randn(2, 5, 2, dtype=torch.float64)
    mu = mu if mean else None
    y = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_prob(y, t, mu).sum(), y)
    found = oracle(x, t, mu)
    assert torch.allclose(found.score, score, rtol=1e-8, atol=1e-8)
    # data and noise are two views of one answer
    rebuilt = process.perturb(found.data, t, found.noise, mu)
    assert torch.allclose(rebuilt, x, atol=1e-10)


def test_the_oracles_density_is_normalised():
    oracle = mixture(VP())
    axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for t in (1e-5, 0.3, 1.0):
        p = oracle.log_prob(grid, torch.tensor(t)).exp().sum() * (axis[1] - axis[0]) ** 2
        assert p.item() == pytest.approx(1.0, abs=1e-6)


def test_the_network_is_told_what_the_clock_says():
    told: list[Tensor] = []

    def net(x: Tensor, clock: Tensor) -> Tensor:
        told.append(clock)
        return torch.zeros_like(x)

    x, t = torch.zeros(2, 3), torch.tensor([0.1, 0.7])
    Denoiser(net, VP())(x, t)
    Denoiser(net, VP(), clock=Index())(x, t)
    assert torch.allclose(told[0], VP().lam(t.double()).float())
    assert torch.allclose(told[1], 999 * t)


def test_a_wrong_shape_from_the_network_is_refused():
    denoiser = Denoiser(lambda x, t: x[:, :1], VP())
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 3\)"):
        denoiser(torch.zeros(2, 3), torch.tensor(0.5))


def test_low_discrepancy_times_fill_every_cell_once():
    u = low_discrepancy(64, torch.Generator().manual_seed(0))
    assert torch.equal((u * 64).floor().sort().values, torch.arange(64.0).double())


def test_laws_of_time_keep_their_ends_and_their_clocks():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for law in (
        UniformTime(1e-4),
        UniformLogSNR(1e-4),
        Mixed(UniformTime(1e-4), UniformLogSNR(1e-4)),
    ):
        t = law.times(VP(), u)
        assert t.min().item() == pytest.approx(1e-4, rel=1e-6)
        assert t.max().item() == pytest.approx(1.0, rel=1e-9)
    lam = VP().lam(UniformLogSNR(1e-4).times(VP(), u))
    assert torch.allclose(lam.diff(), lam.diff().mean().expand(1000), rtol=1e-6)


@pytest.mark.parametrize("process", CLASSIC, ids=repr)
def test_the_loss_is_smallest_at_the_oracle(process: Process):
    m, s = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 0.8]).double()
    generator = torch.Generator().manual_seed(0)
    x0 = m + s * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    eps = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    t = 0.01 + 0.98 * low_discrepancy(4000, generator)
    objective = DenoisingScoreMatching()
    best = objective.at(gaussian_oracle(process, m, s), x0, t, eps).mean()
    for wrong in (gaussian_oracle(process, m + 0.3, s), gaussian_oracle(process, m, 1.5 * s)):
        assert best < objective.at(wrong, x0, t, eps).mean()


def test_a_denoiser_that_knows_the_datum_has_no_loss():
    x0 = torch.randn(1, 3, dtype=torch.float64).expand(8, 3)
    oracle = gaussian_oracle(MeanReverting(), x0[0], torch.tensor(1e-9).double())
    mu = torch.randn(8, 3, dtype=torch.float64)
    loss = DenoisingScoreMatching()(oracle, x0, torch.Generator().manual_seed(0), mu)
    assert loss.max() < 1e-12


def test_likelihood_weighting_is_uniform_log_snr_up_to_a_constant():
    # With w = g^2 / c^2 and t uniform, dt w = -2 dlam: both estimate the same integral.
    m, s = torch.zeros(2).double(), torch.tensor([0.3, 0.8]).double()
    oracle = gaussian_oracle(VP(), m, s)
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    x0 = s * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    weighted = DenoisingScoreMatching(UniformTime(0.01), LikelihoodWeight())
    uniform = DenoisingScoreMatching(UniformLogSNR(0.01))
    ends = VP().lam(torch.tensor([0.01, 1.0]).double())
    span = 2 * (ends[0] - ends[1]) / 0.99
    a = weighted(oracle, x0, generator)
    b = span * uniform(oracle, x0, generator)
    error = math.hypot((a.std() / n**0.5).item(), (b.std() / n**0.5).item())
    assert abs(a.mean() - b.mean()) < 4 * error
