"""The product space: the same law for every process, and the identities of its levels."""

import math

import pytest
import torch

from dxdt.diffusion import EDM, VE, VP, Denoiser, MixtureOracle
from dxdt.diffusion.chains import (
    DataPosterior,
    DensityPosterior,
    DiscreteLevels,
    LevelState,
    LevelTable,
    LogNormalLevels,
    LogUniform,
    PowerLaw,
    ProductSpace,
    ResidualPosterior,
    ScorePosterior,
    level_slope,
    level_test,
)
from dxdt.diffusion.denoisers.round_mixture import RoundMixture
from dxdt.mcmc import Draws
from dxdt.ops.autodiff import Exact
from mixtures import F64, cube, ring
from processes import PROCESSES, ends

MEANS = 3 * torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
WEIGHTS, STDS = torch.arange(1, 6, dtype=F64) / 15, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=F64)


def places(count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(count, 3, dtype=F64, generator=g)
    return x, (4 * torch.rand(count, dtype=F64, generator=g) - 2).exp()


def exact(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """log p_sigma(x) of the mixture, written out."""
    v = STDS.square() + level[:, None].square()
    square = (x[:, None] - MEANS).square().sum(2)
    return (WEIGHTS.log() - 1.5 * (2 * math.pi * v).log() - 0.5 * square / v).logsumexp(1)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_chains_see_one_law_whatever_the_process(process):
    """Score, denoiser and density depend on the process through the levels that it has, and not otherwise."""
    x, level = places()
    low, high = ((-process.lam(torch.tensor(t, dtype=F64))).exp().item() for t in ends(process))
    level = level.clamp(1.001 * min(low, high), 0.999 * high)
    mu = torch.randn(len(x), 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    reverts = float(process.b(torch.tensor(0.5 * process.t1, dtype=F64)).abs()) > 0
    oracle = MixtureOracle(process, WEIGHTS, MEANS, STDS[:, None])
    space = ProductSpace(oracle, LogUniform(low, high), mu=mu if reverts else None)
    torch.testing.assert_close(space.log_prob(x, level), exact(x, level), rtol=1e-6, atol=1e-6)
    at = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(exact(at, level).sum(), at)
    torch.testing.assert_close(space.score(x, level), score, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(space.denoise(x, level), x + level[:, None].square() * score, rtol=1e-5, atol=1e-6)


def test_the_round_mixture_is_the_mixture():
    process = VP()
    a, b = MixtureOracle(process, WEIGHTS, MEANS, STDS[:, None]), RoundMixture(process, WEIGHTS, MEANS, STDS)
    x, t = places(9)[0], torch.linspace(0.01, 1, 9, dtype=F64)
    for time in (t, torch.tensor(0.3, dtype=F64)):
        torch.testing.assert_close(a(x, time).data, b(x, time).data)
        torch.testing.assert_close(a(x, time).noise, b(x, time).noise)
        torch.testing.assert_close(a.log_prob(x, time), b.log_prob(x, time))
    levels = torch.tensor([0.1, 1.0, 7.0], dtype=F64)
    torch.testing.assert_close(b.log_probs(x, levels)[:, 1], exact(x, torch.ones(9, dtype=F64)))
    # Draws of x_0 given x_t have its mean.
    n = 20_000
    g = torch.Generator().manual_seed(3)
    u, z = torch.rand(n, dtype=F64, generator=g), torch.randn(n, 3, dtype=F64, generator=g)
    at = torch.tensor(0.6, dtype=F64)
    drawn = b.draw(x[:1].expand(n, 3), at, u, z)
    expected, error = b(x[:1], at).data[0], drawn.std(0) / math.sqrt(n)
    assert bool(((drawn.mean(0) - expected).abs() < 4 * error).all())


@pytest.mark.parametrize("process", [EDM(0.01, 50.0), VP(), VE()], ids=repr)
def test_the_slope_of_the_level_follows_from_the_score(process):
    """d log p / d log sigma = sigma^2 (div s + |s|^2) = E|x - x_0|^2 / sigma^2 - D, to 1e-6."""
    x, level = places()
    level = level.clamp(0.02, 40)
    space = ProductSpace(MixtureOracle(process, WEIGHTS, MEANS, STDS[:, None]))
    slope = level_slope(space, x, level, Exact())
    e = 1e-4
    found = (exact(x, level * math.exp(e)) - exact(x, level * math.exp(-e))) / (2 * e)
    assert float((slope - found).abs().max()) < 1e-6 * float(found.abs().max())
    # Posterior moments of |x - x_0|^2, written out for the mixture.
    v = STDS.square() + level[:, None].square()
    square = (x[:, None] - MEANS).square().sum(2)
    share = (WEIGHTS.log() - 1.5 * v.log() - 0.5 * square / v).softmax(1)
    keep = level[:, None].square() / v
    mean = (share * (keep.square() * square + 3 * STDS.square() * keep)).sum(1)
    torch.testing.assert_close(slope, mean / level.square() - 3, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prior", [LogUniform(0.02, 9.0), PowerLaw(2.0, 0.02, 9.0), LogNormalLevels(-1, 1, 0.02, 9.0)])
def test_priors_are_laws(prior):
    u = torch.linspace(0.001, 0.999, 999, dtype=F64)
    level = prior.icdf(u)
    torch.testing.assert_close(prior.cdf(level), u)
    at = prior.nodes(20_001)
    mass = torch.trapezoid(prior.log_prob(at).exp(), at.log())
    assert float(mass) == pytest.approx(1, abs=1e-6)
    e = 1e-6
    slope = (prior.cdf(level * math.exp(e)) - prior.cdf(level * math.exp(-e))) / (2 * e)
    torch.testing.assert_close(slope, prior.log_prob(level).exp(), rtol=1e-4, atol=1e-6)


def test_discrete_levels_are_a_law():
    prior = DiscreteLevels((0.1, 0.5, 2.0), (1.0, 2.0, 1.0))
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=F64)
    level = prior.icdf(u)
    assert [float((level == v).double().mean()) for v in prior.values] == [0.25, 0.5, 0.25]
    torch.testing.assert_close(prior.cdf(prior.levels), torch.tensor([0.25, 0.75, 1.0], dtype=F64))
    torch.testing.assert_close(prior.log_prob(prior.levels).exp(), torch.tensor([0.25, 0.5, 0.25], dtype=F64))
    assert level_test(level, prior).distance < 1e-3
    assert level_test(level, DiscreteLevels((0.1, 0.5, 2.0))).distance > 0.07
    assert DiscreteLevels.geometric(0.01, 50.0, 1000).values[-1] == pytest.approx(50.0)


def test_draws_of_a_table_have_its_law():
    """Linear log densities are drawn exactly, between the nodes too."""
    nodes = torch.tensor([1.0, 2.0, 6.0], dtype=F64)
    table = LevelTable(nodes, torch.tensor([[0.0, 1.0, -2.0]], dtype=F64).expand(2000, 3))
    u = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    level = table.draw(u).level
    fine = torch.linspace(0, math.log(6), 20_001, dtype=F64)
    corners = torch.tensor([0.0, math.log(2), math.log(6)], dtype=F64)
    k = (torch.searchsorted(corners, fine, right=True) - 1).clamp(0, 1)
    values = torch.tensor([0.0, 1.0, -2.0], dtype=F64)
    density = (values[k] + (fine - corners[k]) / (corners[k + 1] - corners[k]) * (values[k + 1] - values[k])).exp()
    mass = torch.cumulative_trapezoid(density, fine)
    place = torch.searchsorted(fine[1:].contiguous(), level.log()).clamp(max=len(mass) - 1)
    torch.testing.assert_close(mass[place] / mass[-1], u, atol=2e-3, rtol=0)
    assert float(table.mode().level[0]) == 2.0
    steep = LevelTable(nodes, torch.tensor([[-3000.0, 0.0, -4000.0]], dtype=F64).expand(5, 3))
    torch.testing.assert_close(steep.draw(u[::400]).level, torch.full((5,), 2.0, dtype=F64), rtol=0.01, atol=0)


POSTERIORS = {
    2: (ring(radius=3.0), 0.05),
    64: (cube(64, 0.05), 0.02),
}


@pytest.mark.parametrize("size", POSTERIORS)
def test_levels_from_the_score_are_those_from_the_density(size):
    """Mean of log sigma given x within a tenth of its deviation, by one probe; the residual where D is large."""
    oracle, _ = POSTERIORS[size]
    space = ProductSpace(oracle)
    g = torch.Generator().manual_seed(6)
    level = (0.05 * (100 ** torch.rand(60, dtype=F64, generator=g))).clamp(max=5)
    x = oracle.sample(60, g) + level[:, None] * torch.randn(60, size, dtype=F64, generator=g)
    state = LevelState(x, torch.full_like(level, 5.0))
    draws = Draws.of(0, x)
    mean, std = DensityPosterior(2000).table(space, state, draws).mean_and_std()
    found, spread = ScorePosterior(64, 32).table(space, state, draws).mean_and_std()
    assert float((found - mean).abs().median()) < 0.1 * float(std.median())
    assert float((spread / std - 1).abs().median()) < 0.1
    precise = ScorePosterior(256, 0, 0).table(space, state, draws)
    assert float((precise.mean_and_std()[0] - mean).abs().max()) < 0.15 * float(std.median())
    mode = DensityPosterior(2000).mode(space, state, draws).level.log()
    told = ResidualPosterior(60, 0).mode(space, state, draws)
    assert told.evaluations == 60 * (1 + size)
    error = (told.level.log() - mode).abs().median()
    plain = (ResidualPosterior(60, None).mode(space, state, draws).level.log() - mode).abs().median()
    assert float(error) < 0.01 and float(error) < float(plain)
    if size == 64:
        assert float(plain) < 0.03


def test_the_level_given_the_data_is_a_chi_law():
    g = torch.Generator().manual_seed(0)
    x0, z = torch.randn(1, 10, dtype=F64, generator=g), torch.randn(1, 10, dtype=F64, generator=g)
    n = 4000
    space = ProductSpace(cube(10, 0.1))
    state = LevelState((x0 + 0.7 * z).expand(n, -1), torch.ones(n, dtype=F64))
    for power, prior in ((1.0, LogUniform(0.5, 2.0)), (3.0, PowerLaw(3.0, 0.5, 2.0))):
        space = ProductSpace(cube(10, 0.1), prior)
        level = DataPosterior(x0.expand(n, -1), power).draw(space, state, Draws.of(0, state.x)).level
        nodes = prior.nodes(4001)
        square = (0.7 * z).square().sum()
        log_prob = -10 * nodes.log() - 0.5 * square / nodes.square() + prior.log_prob(nodes)
        mean, std = LevelTable(nodes, log_prob[None]).mean_and_std()
        assert float(level.log().mean()) == pytest.approx(float(mean), abs=4 * float(std) / math.sqrt(n))
        assert float(level.log().std()) == pytest.approx(float(std), rel=0.05)


def _net(x, told):
    return x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ProductSpace(lambda x: x), TypeError, "no process and no score"),
        (lambda: ProductSpace(Denoiser(_net, EDM()), density=True), ValueError, "knows no log density"),
        (lambda: ProductSpace(ring(), LogUniform(0.1, 500.0)), ValueError, "choose a prior inside"),
        (lambda: ProductSpace(ring()).start(torch.zeros(3, 2), 0.0), ValueError, "not inside the prior's"),
        (lambda: ProductSpace(ring()).start(torch.zeros(3, 2), -1.0), ValueError, "not inside the prior's"),
        (lambda: ProductSpace(ring()).start(torch.zeros(0, 2), 1.0), ValueError, "no chains"),
        (lambda: LogUniform(0.0, 1.0), ValueError, "not positive and increasing"),
        (lambda: PowerLaw(1.0, 0.1, 1.0), ValueError, "take LogUniform"),
        (lambda: LogNormalLevels(std=0.0), ValueError, "not positive"),
        (lambda: DiscreteLevels((1.0, 0.5)), ValueError, "not positive and rising"),
        (lambda: DiscreteLevels((0.5, 1.0), (1.0,)), ValueError, "1 weights for 2 levels"),
        (lambda: DensityPosterior(1), ValueError, "no table"),
        (lambda: ScorePosterior(1), ValueError, "no table"),
        (lambda: ResidualPosterior(0), ValueError, "find nothing"),
        (lambda: RoundMixture(EDM(), WEIGHTS, MEANS, STDS[:3]), ValueError, "do not belong together"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
