"""Sampling and likelihoods on targets whose answers are known exactly."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt import diffusion
from dxdt.diffeq import RK4, EulerMaruyama, Exponential
from dxdt.diffusion import (
    VP,
    Angle,
    Denoiser,
    Given,
    Karras,
    Landing,
    Levels,
    LogSNR,
    MixtureOracle,
    Prior,
    Process,
    SubVP,
    bits_per_dim,
    draw,
    gaussian_oracle,
    integrate,
    log_likelihood,
    prior_noise,
    reverse,
    sample,
)
from dxdt.nn import UNet
from dxdt.ops.autodiff import Hutchinson
from processes import CLASSIC, PROCESSES, MeanReverting

M = torch.tensor([0.5, -1.0, 0.0]).double()
S = torch.tensor([0.3, 0.8, 1.2]).double()


def moments(process: Process, t: float, mu: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of x_t for data N(M, S^2)."""
    s = torch.tensor(t, dtype=torch.float64)
    a, b, v = process.a(s), process.b(s), process.variance(s)
    return a * M + b * mu, a**2 * S**2 + v


@pytest.mark.parametrize("process", CLASSIC, ids=repr)
@pytest.mark.parametrize("mean", [False, True])
def test_the_flow_carries_gaussians_exactly(process: Process, mean: bool):
    mu = torch.tensor([[0.2, 0.1, -0.4]]).double().expand(8, 3) if mean else None
    shift = mu if mean else 0.0
    x1 = process.prior_std * torch.randn(8, 3, dtype=torch.float64)
    start = integrate(gaussian_oracle(process, M, S), x1, t0=0.01, rtol=1e-9, atol=1e-9, mu=mu).y1
    (m1, v1), (m0, v0) = moments(process, 1.0, shift), moments(process, 0.01, shift)
    assert torch.allclose(start, m0 + (v0 / v1).sqrt() * (x1 - m1), atol=1e-5)


def recursion(process: Process, tau: float, steps: int, t0: float) -> tuple[Tensor, Tensor]:
    """Exact mean and variance that Euler-Maruyama reaches, from the exact law at t1.

    The reverse drift is affine for Gaussian data, so two evaluations give it, and both moments
    of a step follow.
    """
    equation = reverse(gaussian_oracle(process, M, S), tau)
    mean, variance = moments(process, 1.0)
    grid = torch.linspace(1.0, t0, steps + 1, dtype=torch.float64)
    t, zero = grid[:-1], torch.zeros(steps, 3, dtype=torch.float64)
    base = equation.drift(t, zero)
    slope = equation.drift(t, zero + 1) - base
    g = equation.diffusion(t, zero)
    for k, h in enumerate(grid.diff()):
        mean = mean + h * (base[k] + slope[k] * mean)
        variance = (1 + h * slope[k]) ** 2 * variance + g[k] ** 2 * h.abs()
    return mean, variance


@pytest.mark.parametrize("process", [VP(), SubVP(), MeanReverting()], ids=repr)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_every_share_of_noise_has_the_marginals_of_the_diffusion(process: Process, tau: float):
    m0, v0 = moments(process, 0.05)
    errors: list[float] = []
    for steps in (200, 400, 800):
        mean, variance = recursion(process, tau, steps, 0.05)
        errors.append(max((mean - m0).abs().max().item(), (variance - v0).abs().max().item()))
    assert errors[2] < 0.03
    slopes = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert min(slopes) > 0.8, errors  # Euler's moments have error O(dt)


def test_solve_draws_what_the_recursion_says():
    n, steps = 20_000, 60
    m1, v1 = moments(VP(), 1.0)
    x1 = m1 + v1.sqrt() * prior_noise((n, 3), 1, dtype=torch.float64)
    oracle = gaussian_oracle(VP(), M, S)
    x = integrate(oracle, x1, steps=steps, tau=1.0, seed=3, t0=0.05, solver=EulerMaruyama()).y1
    mean, variance = recursion(VP(), 1.0, steps, 0.05)
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((x.var(0) - variance).abs() < 4 * variance * (2 / n) ** 0.5).all()


def test_samples_have_the_law_of_the_data():
    oracle = gaussian_oracle(VP(), M, S)
    n = 4000
    for options in ({}, {"steps": 500, "tau": 1.0, "denoise": False}):
        x = sample(oracle, (n, 3), dtype=torch.float64, seed=5, **options)
        assert ((x.mean(0) - M).abs() < 4 * S / n**0.5 + 5e-3).all()
        assert ((x.std(0) / S - 1).abs() < 4 / (2 * n) ** 0.5 + 2e-2).all()


def test_noise_does_not_depend_on_the_batch():
    oracle = gaussian_oracle(VP(), M.float(), S.float())
    assert torch.equal(prior_noise((7, 2, 3), 4)[:3], prior_noise((3, 2, 3), 4))
    for options in ({"steps": 20, "tau": 1.0}, {"steps": 10, "solver": RK4()}):
        many = sample(oracle, (7, 3), seed=4, t0=0.05, **options)
        few = sample(oracle, (3, 3), seed=4, t0=0.05, **options)
        assert torch.allclose(many[:3], few, atol=1e-5)
    assert not torch.equal(prior_noise((3, 4), 4), prior_noise((3, 4), 5))


def test_gradients_flow_through_sampling():
    x1 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    x0 = integrate(gaussian_oracle(VP(), M, S), x1, t0=0.05, rtol=1e-8, atol=1e-8).y1
    (found,) = torch.autograd.grad(x0.sum(), x1)
    exact = (moments(VP(), 0.05)[1] / moments(VP(), 1.0)[1]).sqrt()
    assert torch.allclose(found, exact.expand(2, 3), atol=1e-5)


def test_likelihood_of_gaussian_data_is_within_a_ten_thousandth_of_a_nat():
    s = torch.tensor([0.5, 0.9, 1.1]).double()
    oracle = gaussian_oracle(VP(), torch.zeros(3).double(), s)
    x = s * torch.randn(16, 3, dtype=torch.float64)
    truth = torch.distributions.Normal(0.0, s).log_prob(x).sum(1)
    found = log_likelihood(oracle, x, rtol=1e-7, atol=1e-7)
    assert (found.log_prob - truth).abs().max() < 1e-4
    assert found.standard_error.eq(0).all()


@pytest.mark.parametrize("process", CLASSIC[:-2], ids=repr)
def test_likelihood_is_exact_where_the_prior_is(process: Process):
    t0 = 1e-3
    m1, v1 = moments(process, 1.0)
    m0, v0 = moments(process, t0)
    x = m0 + v0.sqrt() * torch.randn(8, 3, dtype=torch.float64)
    found = log_likelihood(gaussian_oracle(process, M, S), x, t0=t0, rtol=1e-8, atol=1e-8)
    exact_end = torch.distributions.Normal(m1, v1.sqrt()).log_prob(found.latent).sum(1)
    change = found.log_prob - process.prior().log_prob(found.latent)
    truth = torch.distributions.Normal(m0, v0.sqrt()).log_prob(x).sum(1)
    assert torch.allclose(exact_end + change, truth, atol=1e-5)


def correlated() -> tuple[MixtureOracle, Tensor]:
    """A mixture whose flow has a full Jacobian, and draws from it."""
    oracle = MixtureOracle(
        VP(),
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[-0.8, -0.8], [0.8, 0.8]]).double(),
        torch.tensor([[0.3, 0.4], [0.5, 0.3]]).double(),
    )
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(2, (6,), generator=generator)
    z = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return oracle, oracle.means[k] + oracle.stds[k] * z


def test_likelihood_of_a_mixture_exact_and_by_probes_and_per_sample():
    oracle, x = correlated()
    options = {"t0": 1e-4, "rtol": 1e-7, "atol": 1e-7}
    truth = oracle.log_prob(x, torch.tensor(1e-4).double())
    exact = log_likelihood(oracle, x, **options)
    assert (exact.log_prob - truth).abs().max() < 2e-3  # what the prior leaves out
    own = log_likelihood(oracle, x, per_sample=True, **options)
    assert torch.allclose(own.log_prob, exact.log_prob, atol=1e-5)
    probes = log_likelihood(oracle, x, divergence=Hutchinson(200, seed=1), **options)
    assert ((probes.log_prob - exact.log_prob).abs() < 4 * probes.standard_error + 1e-5).all()
    one = log_likelihood(oracle, x, divergence=Hutchinson(1), **options)
    assert one.standard_error.isnan().all()


def test_likelihood_of_images_does_not_mix_them():
    torch.manual_seed(0)
    net = UNet(1, channels=4, multipliers=(1, 2), blocks=1, attention=(1,)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    denoiser = Denoiser(net, VP()).requires_grad_(False)
    x = 0.3 * torch.randn(3, 1, 4, 4, dtype=torch.float64)
    options: dict[str, Any] = {"t0": 0.1, "rtol": 1e-4, "atol": 1e-4, "divergence": diffusion.Exact()}
    together = log_likelihood(denoiser, x, **options).log_prob
    alone = torch.cat([log_likelihood(denoiser, row[None], **options).log_prob for row in x])
    assert torch.allclose(together, alone, atol=1e-2)


def test_bits_per_dim_count_levels():
    # Data uniform over four levels are uniform on the interval; a Gaussian model of them has a
    # known density, so its bits are known.
    levels = Levels(count=4, low=-1.0, high=1.0)
    images = torch.arange(4.0).repeat(200)[:, None].expand(800, 3)
    s = torch.tensor([0.6, 0.6, 0.6]).double()
    oracle = gaussian_oracle(VP(), torch.zeros(3).double(), s)
    options = {"dtype": torch.float64, "t0": 1e-3, "rtol": 1e-4, "atol": 1e-4}
    found = bits_per_dim(oracle, images, levels=levels, repeats=2, batch=450, **options)
    # E over the cell of -log2 N(x; 0, s) - log2(width), mean of x^2 over [-1, 1] is 1/3
    nats = 0.5 * math.log(2 * math.pi * 0.36) + (1 / 3) / (2 * 0.36) - math.log(0.5)
    assert found.mean == pytest.approx(nats / math.log(2), abs=0.03)
    assert found.each.shape == (800,)
    again = bits_per_dim(oracle, images, levels=levels, repeats=2, batch=800, **options)
    assert again.mean == pytest.approx(found.mean, abs=1e-3)


@pytest.mark.parametrize("count", [2, 17, 256, 65536])
def test_levels_come_back(count: int):
    levels = Levels(count, low=-1.0, high=1.0)
    v = torch.arange(0, count, max(1, count // 100), dtype=torch.float64)
    for u in (1e-6, 0.5, 1 - 1e-6):
        x = levels.dequantise(v, torch.full_like(v, u))
        assert x.min() >= -1 and x.max() < 1
        assert torch.equal(levels.quantise(x), v)
    assert levels.quantise(torch.tensor([-9.0, 9.0])).tolist() == [0, count - 1]


def test_a_wider_prior_can_be_named():
    oracle, x = correlated()
    options = {"t0": 1e-2, "rtol": 1e-4, "atol": 1e-4}
    plain = log_likelihood(oracle, x, **options)
    wide = log_likelihood(oracle, x, prior=Prior(0.0, 2.0), **options)
    shift = Prior(0.0, 2.0).log_prob(plain.latent) - Prior(0.0, 1.0).log_prob(plain.latent)
    assert torch.allclose(wide.log_prob - plain.log_prob, shift)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_every_process_is_sampled_in_few_steps(process: Process, tau: float):
    n = 2000
    mu = 0.3 * torch.ones(1, 3, dtype=torch.float64) if process.prior_std == 0 or process.centred else None
    oracle = gaussian_oracle(process, M, S)
    found = draw(oracle, (n, 3), steps=40, tau=tau, seed=2, dtype=torch.float64, mu=mu)
    # What the prior leaves out is part of the process, not of the sampler.
    end = torch.tensor(process.t1, dtype=torch.float64)
    left = 0.03 + (0 if process.prior_std == 0 else 2 * process.lam(end).exp())
    assert ((found.x.mean(0) - M).abs() < 4 * S / n**0.5 + left * (M.abs() + S)).all()
    assert ((found.x.std(0) / S - 1).abs() < 4 / (2 * n) ** 0.5 + 0.1 + left).all()
    assert found.evaluations == 40


def test_steps_count_what_moves_a_sample():
    for steps in (1, 2, 7):
        for denoise in (True, False):
            found = draw(ORACLE, (2, 3), steps=steps, denoise=denoise, dtype=torch.float64, t0=0.01)
            assert found.evaluations == steps
    kept = draw(ORACLE, (2, 3), steps=7, trajectory=True, dtype=torch.float64, t0=VP().t0)
    assert kept.path is not None and kept.times is not None
    assert kept.path.shape == (7, 2, 3) and kept.times.shape == (7, 2)
    assert kept.times[0, 0] == 1 and kept.times[-1, 0] == VP().t0
    few = draw(ORACLE, (2, 3), steps=7, trajectory=True, dtype=torch.float64)
    assert few.times is not None and few.times[-1, 0] == Angle().before_data(VP(), 7) > VP().t0
    landed = draw(ORACLE, (2, 3), steps=8, grid=Landing(LogSNR()), denoise=False, dtype=torch.float64)
    assert torch.allclose(landed.x, draw(ORACLE, (2, 3), steps=8, grid=LogSNR(), dtype=torch.float64).x, atol=1e-12)
    with pytest.raises(ValueError, match="trajectory"):
        sample(ORACLE, (2, 3), steps=4, trajectory=True)


def test_a_sample_that_fails_harms_no_other():
    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((torch.arange(len(x)) == 1)[:, None], torch.nan, 0.9 * x)

    denoiser = Denoiser(net, VP())
    for options in ({"steps": 6}, {"steps": 6, "tau": 1.0}, {}):
        with pytest.warns(RuntimeWarning, match="1 of 4 samples failed"):
            found = draw(denoiser, (4, 3), seed=1, **options)
        assert torch.isfinite(found.x).all(1).tolist() == [True, False, True, True]
        alone = draw(Denoiser(lambda x, t: 0.9 * x, VP()), (4, 3), seed=1, **options)
        assert torch.equal(found.x[[0, 2, 3]], alone.x[[0, 2, 3]]) or not options


def test_samples_start_where_they_are():
    t1 = torch.tensor([1.0, 0.6, 0.3, 0.05], dtype=torch.float64)
    x = torch.stack([moments(VP(), t.item())[0] + moments(VP(), t.item())[1].sqrt() for t in t1])
    m0, v0 = moments(VP(), 0.01)
    for options in ({"rtol": 1e-8, "atol": 1e-8}, {"steps": 80, "solver": Exponential(order=3)}):
        found = integrate(ORACLE, x, t1=t1, t0=0.01, **options).y1
        assert torch.allclose(found, (m0 + v0.sqrt()).expand(4, 3), atol=1e-5)


def test_temperature_narrows_the_prior():
    cold, warm = (sample(ORACLE, (500, 3), steps=20, temperature=k, dtype=torch.float64) for k in (0.5, 1.0))
    assert torch.allclose(cold.std(0) / warm.std(0), torch.full((3,), 0.5, dtype=torch.float64), atol=1e-3)


ORACLE = gaussian_oracle(VP(), M, S)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reverse(ORACLE, tau=1.5), "tau=1.5"),
        (lambda: sample(ORACLE, (4, 3), steps=0), "steps=0"),
        (lambda: sample(ORACLE, (4, 3), tau=1.0), "steps=500"),
        (lambda: sample(ORACLE, (4, 3), t0=0.0), "t0=0 "),
        (lambda: sample(ORACLE, (4,)), "batch"),
        (lambda: sample(ORACLE, (4, 3), grid=Karras()), "steps=500"),
        (lambda: sample(ORACLE, (4, 3), temperature=0.0), "temperature"),
        (lambda: sample(ORACLE, (4, 3), steps=4, mu=torch.zeros(5, 3)), "mu of shape"),
        (lambda: integrate(ORACLE, M[None], steps=4, t1=1.5), "not inside"),
        (lambda: integrate(ORACLE, M[None], grid=Given([2.0, 0.5])), "not inside"),
        (lambda: sample(ORACLE, (0, 3)), "batch"),
        (lambda: bits_per_dim(ORACLE, torch.zeros(0, 3)), "0 images"),
        (lambda: bits_per_dim(ORACLE, torch.full((1, 3), 0.5)), "integers 0 to 255"),
        (lambda: bits_per_dim(ORACLE, torch.full((1, 3), 300.0)), "integers 0 to 255"),
        (lambda: Levels(0), "0 levels"),
        (lambda: Levels(2, 1.0, 1.0), "no width"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


NET = torch.nn.Linear(2, 2)
NORMAL = diffusion.gaussian_oracle(diffusion.VP(), mean=torch.zeros(2), std=torch.tensor(0.5))
WRONG = {
    "a word for a solver": (dict(solver="ddim"), TypeError, r"solver is the word 'ddim'.*dxdt\.diffusion\.DDIM\(\)"),
    "torchdiffeq's word": (dict(solver="dopri5"), TypeError, r"dxdt\.Dopri5\(\)"),
    "an unknown word": (dict(solver="dpm++"), TypeError, r"such|as dxdt\.Exponential\(\)"),
    "a class": (dict(solver=dxdt.Heun), TypeError, r"the class Heun.*Heun\(\)"),
    "a word for a grid": (dict(grid="karras"), TypeError, r"grid is the word 'karras'.*dxdt\.diffusion\.Karras\(\)"),
    "a tensor for a grid": (dict(grid=torch.linspace(1, 0, 5)), TypeError, "grid is a Tensor"),
    "a number for a shape": (dict(shape=2), TypeError, r"shape=2 is no shape; give \(batch"),
    "no data shape": (dict(shape=(2,)), ValueError, "none of a batch"),
    "parts of samples": (dict(shape=(2, 1.5)), ValueError, "none of a batch"),
    "parts of steps": (dict(steps=5.5), TypeError, "steps=5.5 is no whole number"),
    "no steps": (dict(steps=0), ValueError, "steps=0 goes nowhere"),
    "a plain network": (dict(denoiser=NET), TypeError, r"a plain network is no denoiser.*diffusion\.Denoiser\(network"),
    "a function": (dict(denoiser=lambda x, t: x), TypeError, "a function is no denoiser"),
    "an option of none": (dict(stepz=5), TypeError, "sample has no option stepz: did you mean steps?"),
    "an option of others": (dict(num_steps=5), TypeError, "sample has no option num_steps: it is called steps here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_sentence_before_any_work(name):
    changed, error, words = WRONG[name]
    call = {"denoiser": NORMAL, "shape": (3, 2), "steps": 4} | changed
    with pytest.raises(error, match=words) as told:
        diffusion.sample(**call)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("solver", "noisy"),
    [
        (dxdt.EulerMaruyama(), True),
        (dxdt.StochasticHeun(), True),
        (diffusion.Ancestral(), True),
        (diffusion.ReverseDiffusion(), True),
        (dxdt.Heun(), False),
        (diffusion.DDIM(), False),
        (dxdt.Exponential(), False),
        (diffusion.Churn(dxdt.Heun()), False),
    ],
    ids=repr,
)
def test_a_stochastic_solver_means_noise_unless_told_otherwise(solver, noisy):
    def draw(**options):
        if isinstance(solver, dxdt.StochasticHeun):
            options["driver"] = dxdt.Brownian(seed=5)
        return diffusion.sample(NORMAL, (4, 2), steps=8, solver=solver, seed=5, **options)

    assert torch.equal(draw(), draw(tau=1.0 if noisy else 0.0))
    if noisy:
        assert not torch.equal(draw(), draw(tau=0.0))
