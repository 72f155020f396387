"""Objectives: the published formulas, and importance sampling that changes no mean."""

import math

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    EDM,
    VE,
    VP,
    DataWeight,
    Denoiser,
    DenoisingScoreMatching,
    DiscreteTimes,
    EDMLoss,
    EDMPreconditioning,
    HalfSum,
    LikelihoodWeight,
    LogNormalScale,
    MinSNR,
    Mixed,
    Preconditioned,
    Process,
    RectifiedFlow,
    Score,
    SubVP,
    Tabulated,
    UniformLogSNR,
    UniformTime,
    ddpm,
    maximum_likelihood,
    smld,
)

ONE_DIRECTION = [VP(), SubVP(), VE(), EDM()]
LAWS = [
    UniformTime(1e-3),
    UniformLogSNR(1e-3),
    Mixed(UniformTime(1e-3), UniformLogSNR(1e-3), 0.3),
    Tabulated(LikelihoodWeight(), 1e-3),
    Tabulated(MinSNR(), 1e-3, cells=7),
]


def grid(process: Process, n: int, low: float = 1e-3) -> Tensor:
    """Times that are dense where densities are large."""
    return UniformLogSNR(low).times(process, torch.linspace(0, 1, n, dtype=torch.float64))


@pytest.mark.parametrize("process", ONE_DIRECTION, ids=repr)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_times_follow_the_density(process: Process, law):
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    t = law.times(process, u)
    fine = grid(process, 200_001)
    middle = (fine[1:] + fine[:-1]) / 2
    cumulated = torch.cat((u.new_zeros(1), (law.density(process, middle) * fine.diff()).cumsum(0)))
    assert cumulated[-1].item() == pytest.approx(1.0, abs=2e-3)
    at = cumulated[torch.searchsorted(fine, t.sort().values).clamp(max=len(fine) - 1)]
    assert (at - u).abs().max() < 4e-3


@pytest.mark.parametrize("process", [VP(), VE(), EDM()], ids=repr)
def test_log_normal_levels_have_their_moments_and_density(process: Process):
    law = LogNormalScale(-1.2, 0.8, t0=1e-9)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    t = law.times(process, u)
    log_scale = -process.lam(t)
    assert log_scale.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert log_scale.std().item() == pytest.approx(0.8, abs=0.01)
    fine = grid(process, 20_001)
    mass = (law.density(process, (fine[1:] + fine[:-1]) / 2) * fine.diff()).sum()
    low, high = (-process.lam(fine[[0, -1]]) + 1.2) / 0.8
    inside = 0.5 * (torch.erf(high / math.sqrt(2)) - torch.erf(low / math.sqrt(2)))
    assert mass.item() == pytest.approx(inside.item(), abs=1e-4)


class Wrong(torch.nn.Module):
    """A denoiser's network with one parameter, far from any truth."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return (self.p * x + clock.reshape(-1, *[1] * (x.ndim - 1)) / 9).tanh()


PROPOSALS = [UniformLogSNR(1e-3), Tabulated(LikelihoodWeight(), 1e-3, cells=50), UniformTime(1e-3)]


@pytest.mark.parametrize("process", ONE_DIRECTION, ids=repr)
@pytest.mark.parametrize("weight", [LikelihoodWeight(), DataWeight(), MinSNR()], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("proposal", PROPOSALS, ids=lambda p: type(p).__name__)
def test_a_proposal_changes_neither_the_loss_nor_its_gradient(process: Process, weight, proposal):
    # Means over times by quadrature: u on a grid, the same datum and noise for every time.
    denoiser = Denoiser(Wrong(), process)
    x0, eps = torch.tensor([[0.4, -0.2]]).double(), torch.tensor([[0.3, -1.1]]).double()
    n = 200_000
    found = []
    for objective in (
        DenoisingScoreMatching(UniformTime(1e-3), weight, UniformLogSNR(1e-3)),
        DenoisingScoreMatching(UniformTime(1e-3), weight, proposal),
    ):
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        t = objective.times(process, u)
        mean = objective.at(denoiser, x0.expand(n, 2), t, eps.expand(n, 2)).mean()
        found.append((mean.detach(), torch.autograd.grad(mean, denoiser.parameters())[0]))
    for want, got in zip(*found, strict=True):
        assert got.item() == pytest.approx(want.item(), rel=3e-3)


@pytest.mark.parametrize("process", ONE_DIRECTION, ids=repr)
def test_the_bound_with_importance_sampling_has_a_constant_weight(process: Process):
    objective = maximum_likelihood(1e-3)
    t = grid(process, 101)
    weights = objective.weights(process, t)
    first, last = process.lam(torch.tensor([1e-3, process.t1], dtype=torch.float64)).tolist()
    assert torch.allclose(weights, torch.full_like(t, 2 * (first - last) / (process.t1 - 1e-3)), rtol=1e-9)
    plain = DenoisingScoreMatching(UniformTime(1e-3), LikelihoodWeight())
    rates, moments = process.rates(t, t), process.moments(t, t)
    assert torch.allclose(plain.weights(process, t), rates.g2 / moments.c.square(), rtol=1e-6)


def test_importance_sampling_lowers_the_variance_of_the_likelihood_weighting():
    denoiser = Denoiser(lambda x, _: 0.5 * x, VP())
    x0 = torch.randn(20_000, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    plain = DenoisingScoreMatching(UniformTime(), LikelihoodWeight(), reduction=HalfSum())
    spread = [o(denoiser, x0, generator).std().item() for o in (plain, maximum_likelihood())]
    assert spread[1] < 0.1 * spread[0]


def test_smld_is_half_the_sum_of_the_scaled_score_error():
    process = VE(0.01, 50.0)
    count = 20
    sigmas = torch.logspace(math.log10(0.01), math.log10(50.0), count, dtype=torch.float64)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    objective = smld(count)
    t = objective.times(process, u)
    assert torch.allclose(process.c(t), sigmas)
    x0, z = torch.randn(2, count, 3, 2, dtype=torch.float64)
    net = lambda x, _: -0.1 * x  # noqa: E731
    noise = sigmas[:, None, None] * z
    target = -noise / sigmas[:, None, None].square()
    error = (net(x0 + noise, None) - target).square() * sigmas[:, None, None].square()
    found = objective.at(Denoiser(net, process, Score()), x0, t, z)
    assert torch.allclose(found, 0.5 * error.sum((1, 2)))


def test_ddpm_is_the_mean_error_of_the_noise_at_its_steps():
    objective = ddpm(8)
    t = objective.times(VP(), (torch.arange(8, dtype=torch.float64) + 0.5) / 8)
    assert torch.allclose(t, torch.arange(1, 9).double() / 8)
    x0, z = torch.randn(2, 8, 5, dtype=torch.float64)
    a, c = VP().a(t)[:, None], VP().c(t)[:, None]
    net = lambda x, _: 0.3 * x  # noqa: E731
    want = (net(a * x0 + c * z, None) - z).square().mean(1)
    assert torch.allclose(objective.at(Denoiser(net, VP()), x0, t, z), want)


def test_the_edm_loss_is_the_weighted_error_of_the_preconditioned_network():
    process, d = EDM(), 0.5
    net = lambda x, noise: 0.2 * x + noise[:, None]  # noqa: E731
    x0, n = torch.randn(2, 6, 4, dtype=torch.float64)
    objective = EDMLoss(data_std=d)
    t = objective.times(process, torch.linspace(0.01, 0.99, 6, dtype=torch.float64))
    s = t[:, None]
    x = x0 + s * n
    skip, out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    answer = skip * x + out * net(x / (s**2 + d**2).sqrt(), s[:, 0].log() / 4)
    want = ((s**2 + d**2) / (s * d) ** 2 * (answer - x0).square()).mean(1)
    denoiser = Preconditioned(net, process, EDMPreconditioning())
    assert torch.allclose(objective.at(denoiser, x0, t, n), want)
    # the same weight on the error of the noise
    other = DenoisingScoreMatching(LogNormalScale(), DataWeight(d))
    assert torch.allclose(other.at(denoiser, x0, t, n), want, rtol=1e-6)


def test_bad_laws_are_refused():
    with pytest.raises(ValueError, match="open interval"):
        UniformLogSNR().times(RectifiedFlow(), torch.tensor([0.5]).double())
    assert UniformLogSNR(1e-3, 0.999).times(RectifiedFlow(), torch.tensor([0.5]).double()).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no grid"):
        DiscreteTimes(0)
    with pytest.raises(ValueError, match="not positive"):
        Tabulated(lambda _, t: t - 0.5).times(VP(), torch.tensor([0.5]).double())


def test_labels_reach_the_network():
    def net(x: Tensor, clock: Tensor, *, labels: Tensor) -> Tensor:
        return labels[:, None].to(x) * torch.ones_like(x)

    x0 = torch.zeros(3, 2).double()
    t = torch.full((3,), 0.5).double()
    for objective in (DenoisingScoreMatching(), EDMLoss()):
        loss = objective.at(Denoiser(net, VP()), x0, t, 2 * torch.ones_like(x0), labels=torch.tensor([0, 1, 2]))
        assert loss[2] < 1e-9 < loss[1] < loss[0]
