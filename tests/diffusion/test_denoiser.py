"""Denoisers: conversions are total, wrappers do what they say, losses are smallest at the truth."""

import math

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    VP,
    AngularVelocity,
    Cast,
    Clip,
    Conditioned,
    Data,
    Debiased,
    Denoiser,
    DenoisingScoreMatching,
    Dynamic,
    EDMPreconditioning,
    Index,
    LikelihoodWeight,
    Linear,
    LogScale,
    Mixed,
    Noise,
    Place,
    Posterior,
    Preconditioned,
    Process,
    Residual,
    Reversion,
    Score,
    Table,
    Thresholded,
    UniformLogSNR,
    UniformTime,
    Velocity,
    gaussian_oracle,
    linear_betas,
    log_snr,
    low_discrepancy,
    noise_to_signal,
)
from dxdt.diffusion import MeanReverting as Restoring
from processes import CLASSIC, PROCESSES, MeanReverting, grid

X, HALF = torch.zeros(2, 3), torch.tensor(0.5)
EDM_WEIGHTS = EDMPreconditioning()
SMOOTH_MEAN = Restoring(50 / 255)
KINDS = [Noise(), Data(), Residual(), Score(), Velocity(), AngularVelocity()]


def truth_of(process: Process, mean: bool) -> Posterior:
    x0, eps, mu = torch.randn(3, 6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = grid(process, 6)
    mu = mu if mean else None
    return Posterior(process, t, process.perturb(x0, t, eps, mu), x0, eps, mu)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("mean", [False, True])
def test_every_way_of_answering_says_the_same(process: Process, mean: bool):
    truth = truth_of(process, mean)
    kinds = [*KINDS, Debiased()] if isinstance(getattr(process, "schedule", None), Reversion) else KINDS
    kinds = kinds if isinstance(process, Restoring) else KINDS
    for kind in kinds:
        output = kind.write(truth)
        found = Denoiser(lambda *_, output=output: output, process, kind)(truth.x, truth.t, truth.mu)
        for other in kinds:
            want = other.write(truth)
            scale = want.abs().amax((1, 2), keepdim=True)
            assert ((other.write(found) - want).abs() <= 1e-8 * scale).all(), (kind, other)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_ways_of_answering_are_what_they_are_called(process: Process):
    p = truth_of(process, True)
    at, rates, mu = process.moments(p.t, p.x), process.rates(p.t, p.x), p.mu
    assert torch.equal(p.residual, p.data - mu)
    assert torch.allclose(p.score, -p.noise / at.c)
    assert torch.allclose(p.velocity, rates.a * p.data + rates.b * mu + rates.c * p.noise)
    # On a circle the angular velocity is dx/dphi, phi = arctan(c / (L a)): velocity over phi'.
    if process.radius != 1 or isinstance(process, VP):
        turn = (at.a * rates.c - rates.a * at.c) / process.radius
        assert torch.allclose(p.angular_velocity, p.velocity / turn, rtol=1e-8, atol=1e-8)


def test_velocities_of_restoration_match_published_numbers():
    # L = 50/255, mu = .4, x = .25 at lam = -1.1; v = .3.
    t = SMOOTH_MEAN.time(torch.tensor(-1.1, dtype=torch.float64))
    x, mu, v = (torch.full((1, 1), s, dtype=torch.float64) for s in (0.25, 0.4, 0.3))
    assert SMOOTH_MEAN.a(t).item() == pytest.approx(0.065130259222, abs=1e-12)
    assert SMOOTH_MEAN.c(t).item() == pytest.approx(0.195662111885, abs=1e-12)
    found = AngularVelocity().read(v, Place.of(SMOOTH_MEAN, t, x, mu))
    assert found.data.item() == pytest.approx(0.090867429932, abs=1e-12)
    assert found.noise.item() == pytest.approx(-0.663726432911, abs=1e-12)
    # One exact step with x0 and eps held is a rotation.
    s = SMOOTH_MEAN.time(torch.tensor(0.3, dtype=torch.float64))
    assert SMOOTH_MEAN.a(s).item() == pytest.approx(0.255867549499, abs=1e-12)
    assert SMOOTH_MEAN.c(s).item() == pytest.approx(0.189551342750, abs=1e-12)
    step = SMOOTH_MEAN.perturb(found.data, s, found.noise, mu)
    assert step.item() == pytest.approx(0.195092770249, abs=1e-12)


def test_the_bias_of_the_maximum_likelihood_loss_is_undone():
    # Euler's reverse mean with eps_hat is the exact reverse mean with eps: the optimum of the loss.
    size, schedule = SMOOTH_MEAN.std, Reversion()
    t = torch.tensor([1.0, 10, 50, 90, 100], dtype=torch.float64)
    x, x0, mu = torch.randn(3, 5, 4, dtype=torch.float64)
    place = Place.of(SMOOTH_MEAN, t, x, mu)
    truth = place.from_data(x0)
    biased = Debiased().write(truth)
    p, sigma = schedule.increment(t)[:, None], SMOOTH_MEAN.c(t)[:, None]
    euler = x - (p * (mu - x) + 2 * size**2 * p * biased / sigma)
    exact = SMOOTH_MEAN.posterior(t - 1, t, x).mean(x, x0, mu)
    assert torch.allclose(euler, exact, rtol=1e-14, atol=1e-14)
    found = Debiased().read(biased, place)
    assert torch.allclose(found.noise, truth.noise, rtol=1e-13, atol=1e-14)
    # Unnoticed, it shifts x0 by this much per unit of x - mu.
    wrong = Noise().read(biased * (p / p.sinh()), place).data - x0
    shift = (wrong / (x - mu)).mean(1)
    assert [round(v, 3) for v in shift[[2, 3, 4]].tolist()] == [
        pytest.approx(0.032, abs=2e-3),
        pytest.approx(1.87, abs=2e-2),
        pytest.approx(5.39, abs=2e-2),
    ]


def test_the_network_is_told_what_the_clock_says():
    told: list[Tensor] = []

    def net(x: Tensor, clock: Tensor) -> Tensor:
        told.append(clock)
        return torch.zeros_like(x)

    x, t = torch.zeros(2, 3), torch.tensor([0.1, 0.7])
    sigma = VP().c(t.double()) / VP().a(t.double())
    wanted = {
        log_snr: -sigma.log(),
        noise_to_signal: sigma,
        Index(): 999 * t.double(),
        Index.levels(1000): 1000 * t.double() - 1,
        LogScale(): sigma.log() / 4,
        LogScale(1.0, 0.5): (sigma / 2).log(),
    }
    for clock, want in wanted.items():
        Denoiser(net, VP(), clock=clock)(x, t)
        assert told[-1].dtype == torch.float32
        assert torch.allclose(told[-1], want.float())
    Denoiser(net, VP(), clock=Index.levels(1000, whole=True))(x, t)
    assert told[-1].tolist() == [99, 699] and told[-1].dtype == torch.int64
    Denoiser(net, VP(), clock=Index())(x.bfloat16(), t)
    assert torch.allclose(told[-1], 999 * t)  # not rounded to half precision


def test_levels_of_a_table_and_of_its_clock_agree():
    table = Table.from_betas(linear_betas())
    index = torch.arange(1000)
    assert torch.equal(Index.levels(1000, whole=True)(VP(table), table.times(index)), index)


@pytest.mark.parametrize("wrap", [lambda net: Denoiser(net, VP()), lambda net: Preconditioned(net, VP(), EDM_WEIGHTS)])
def test_conditions_reach_the_network(wrap):
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, clock: Tensor, *mu: Tensor, **condition: Tensor) -> Tensor:
        seen.update(condition)
        return torch.zeros_like(x)

    x, t, labels = torch.zeros(2, 3), torch.tensor(0.5), torch.tensor([3, 7])
    denoiser = Conditioned(Thresholded(wrap(net)), labels=labels)
    denoiser(x, t)
    assert seen["labels"] is labels
    Conditioned(denoiser, labels=1 - labels, text=t)(x, t)
    assert torch.equal(seen["labels"], 1 - labels) and seen["text"] is t
    assert denoiser.process == VP()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_are_asked_in_their_own_dtype(dtype: torch.dtype):
    seen: list[torch.dtype] = []

    def net(x: Tensor, told: Tensor, mu: Tensor, labels: Tensor, text: Tensor) -> Tensor:
        seen.extend(v.dtype for v in (x, told, mu, labels, text))
        return x + mu

    x, mu = torch.randn(2, 2, 3, dtype=torch.float64)
    t, labels, text = torch.tensor(0.5, dtype=torch.float64), torch.tensor([1, 2]), torch.zeros(2, 4)
    found = Denoiser(Cast(net, dtype), SMOOTH_MEAN)(x, t, mu, labels=labels, text=text)
    assert seen == [dtype, torch.float32, dtype, torch.int64, dtype]
    assert found.noise.dtype == torch.float64
    assert torch.equal(found.noise, (x.to(dtype) + mu.to(dtype)).double())


def test_wrappers_keep_the_parameters_of_what_they_wrap():
    net = torch.nn.Linear(3, 3)
    denoiser = Thresholded(Conditioned(Denoiser(lambda x, t: net(x), VP())))
    assert list(denoiser.parameters()) == []  # a function hides its module
    inner = Denoiser(torch.nn.Bilinear(3, 1, 3), VP())
    assert set(Thresholded(Conditioned(inner)).parameters()) == set(inner.parameters())


def test_thresholds_keep_data_in_range_and_noise_in_agreement():
    oracle = gaussian_oracle(SMOOTH_MEAN, torch.tensor([0.5, 3.0, -2.0]), torch.tensor(0.5))
    x, mu = torch.randn(2, 4, 3)
    t = torch.tensor([5.0, 20.0, 60.0, 90.0])
    plain = oracle(x, t, mu)
    for threshold, want in (
        (Clip(-1, 1), plain.data.clamp(-1, 1)),
        (Clip(0, 1), plain.data.clamp(0, 1)),
        (Clip(-99, 99), plain.data),
        (Dynamic(1.0), plain.data / plain.data.abs().amax(1, keepdim=True).clamp(min=1)),
        (Dynamic(1.0, bound=2.0), 2 * plain.data / plain.data.abs().amax(1, keepdim=True).clamp(min=2)),
        (Dynamic(0.995, bound=50.0), plain.data),
    ):
        found = Thresholded(oracle, threshold)(x, t, mu)
        assert torch.allclose(found.data, want, atol=1e-6)
        assert torch.allclose(SMOOTH_MEAN.perturb(found.data, t, found.noise, mu), x, atol=1e-5)


def test_dynamic_thresholds_cut_at_the_quantile():
    data = torch.arange(-100, 101.0)[None].repeat(2, 1) * torch.tensor([[1.0], [0.001]])
    found = Dynamic(0.9)(data)
    s = data[0].abs().quantile(0.9)
    assert torch.allclose(found[0], data[0].clamp(-s, s) / s)
    assert torch.equal(found[1], data[1])  # within the bound already
    assert Dynamic(0.9)(data.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Denoiser(lambda x, t: x[:, :1], VP())(X, HALF), r"\(2, 1\).*\(2, 3\)"),
        (lambda: Preconditioned(lambda x, t: x[:, :1], VP(), EDM_WEIGHTS)(X, HALF), r"Preconditioned.*\(2, 1\)"),
        (lambda: Denoiser(lambda x, t, mu: x, SMOOTH_MEAN)(X, HALF, X[0]), r"mu of shape \(3,\)"),
        (lambda: Denoiser(lambda x, t, mu: x, SMOOTH_MEAN)(X, HALF, X[:, :2]), r"mu of shape \(2, 2\)"),
        (lambda: gaussian_oracle(SMOOTH_MEAN, X[0], X[0] + 1)(X, HALF, X[0]), r"mu of shape \(3,\)"),
        (lambda: Denoiser(lambda x, t: x, VP())(X, torch.ones(3)), "one time, or one for each"),
        (lambda: Denoiser(lambda x, t: x, VP(), Debiased())(X, HALF), "training table"),
        (lambda: Denoiser(lambda x, t: x, Restoring(0.5, Linear()), Debiased())(X, HALF), "training table"),
        (lambda: Clip(1.0, 1.0), "low < high"),
        (lambda: Dynamic(0.0), "quantile"),
        (lambda: LogScale(unit=0.0), "unit > 0"),
        (lambda: EDMPreconditioning(0.0), "std > 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


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
