"""Laws between two times: composition, Bayes, and processes that are one another in disguise."""

import math

import pytest
import torch

from dxdt.diffusion import (
    EDM,
    VE,
    VP,
    BrownianBridge,
    Linear,
    MeanReverting,
    OUBridge,
    Process,
    Reversion,
    Scaled,
    SubVP,
    Table,
    linear_betas,
)
from processes import PROCESSES, ends, grid

each = pytest.mark.parametrize("process", PROCESSES, ids=repr)
X = torch.zeros(1, dtype=torch.float64)


@each
def test_transitions_compose(process: Process):
    # Chapman-Kolmogorov: x_t | x_s after x_u | x_t is x_u | x_s.
    t = grid(process, 9)
    for i, j, k in ((0, 1, 2), (0, 4, 8), (3, 4, 8), (5, 5, 6), (2, 7, 7)):
        first, second = process.transition(t[i], t[j], X), process.transition(t[j], t[k], X)
        both = process.transition(t[i], t[k], X)
        assert torch.allclose(second.r * first.r, both.r, rtol=1e-12)
        assert torch.allclose(second.r * first.m + second.m, both.m, rtol=1e-12, atol=1e-14)
        variance = (second.r * first.std).square() + second.std.square()
        assert torch.allclose(variance, both.std.square(), rtol=1e-11)


@each
def test_the_transition_from_the_data_is_the_marginal(process: Process):
    zero = torch.zeros((), dtype=torch.float64)
    t = grid(process, 9)
    got = process.transition(zero.expand(9), t, t)
    a0, b0, v0 = process.a(zero), process.b(zero), process.variance(zero)
    assert torch.allclose(got.r * a0, process.a(t), rtol=1e-12)
    assert torch.allclose(got.r * b0 + got.m, process.b(t), atol=1e-14)
    assert torch.allclose(got.r.square() * v0 + got.std.square(), process.variance(t), rtol=1e-12)


@each
def test_transitions_solve_the_equation_for_small_steps(process: Process):
    t = grid(process, 9)[2:-2] + 1.23e-5 * process.t1
    h = 1e-6 * process.t1
    got, r = process.transition(t, t + h, t), process.rates(t, t[:, None])
    assert torch.allclose(got.r, 1 + h * r.f[:, 0], rtol=1e-7)
    assert torch.allclose(got.m, h * r.u[:, 0], rtol=1e-3, atol=1e-14)
    assert torch.allclose(got.std.square(), h * r.g2[:, 0], rtol=1e-3)


@each
def test_the_posterior_is_bayes(process: Process):
    # Joint law of (x_s, x_t) given x_0 by the transition, and by the posterior with the marginal of x_t.
    t = grid(process, 9)
    zero = torch.zeros((), dtype=torch.float64)
    for i, j in ((0, 1), (0, 8), (3, 4), (6, 6), (7, 8)):
        s, u = t[i], t[j]
        forward, back = process.transition(s, u, X), process.posterior(s, u, X)
        vs, vu = process.variance(s), process.variance(u)
        assert torch.allclose(back.k * vu, forward.r * vs, rtol=1e-12)  # covariance
        assert torch.allclose(back.k.square() * vu + back.std.square(), vs, rtol=1e-11)  # variance of x_s
        assert torch.allclose(back.k * process.a(u) + back.d, process.a(s), rtol=1e-12)  # weight of x_0
        assert torch.allclose(back.k * process.b(u) + back.m, process.b(s), rtol=1e-12, atol=1e-14)
    # Pinned at the datum, and not pinned at all.
    late = process.posterior(zero, t[4], X)
    if process.variance(zero) == 0:
        assert late.k == 0 and late.std == 0 and late.d == 1
    same = process.posterior(t[3], t[3], X)
    assert same.k == 1 and same.d == 0 and same.m == 0 and same.std == 0


@each
def test_ends_of_the_schedule_have_laws(process: Process):
    zero, last = (torch.tensor(s, dtype=torch.float64) for s in (0.0, process.t1))
    middle = 0.5 * last
    for record in (
        process.transition(zero, last, X),
        process.transition(middle, last, X),
        process.posterior(zero, last, X),
        process.posterior(middle, last, X),
        process.transition(last, last, X),
        process.posterior(zero, zero, X),
    ):
        assert all(torch.isfinite(v).all() for v in vars(record).values()), record
    if process.prior_std == 0:
        # The end of a bridge says nothing: the first step back is a draw from the marginal.
        first = process.posterior(middle, last, X)
        assert first.k == 0 and first.std == process.c(middle)
        assert first.d == process.a(middle) and first.m == process.b(middle)


def test_laws_meet_data_of_any_shape_and_draw():
    process = OUBridge(0.3, Linear())
    s, t = torch.tensor([0.2, 0.4, 0.5]), torch.tensor([0.3, 0.4, 0.9])
    x0, mu, noise = torch.randn(3, 3, 2, 5)
    xs = process.perturb(x0, s, noise, mu)
    got = process.transition(s, t, xs)
    assert got.r.shape == (3, 1, 1) and got.r.dtype == torch.float32
    assert torch.equal(got.sample(xs, noise, mu), got.r * xs + got.m * mu + got.std * noise)
    assert torch.equal(got.sample(xs, noise, mu)[1], xs[1])
    back = process.posterior(s, t, xs)
    assert torch.equal(back.sample(xs, x0, noise, mu), back.k * xs + back.d * x0 + back.m * mu + back.std * noise)
    assert torch.allclose(back.mean(xs, x0), back.k * xs + back.d * x0)


def test_discrete_vp_has_the_published_posterior():
    betas = linear_betas()
    products = (1 - betas).cumprod(0)
    table = Table.from_betas(betas)
    t = table.times(torch.arange(1000))
    step = VP(table).transition(t[:-1], t[1:], t[1:])
    assert torch.allclose(step.r.square(), 1 - betas[1:], rtol=1e-12)
    assert torch.allclose(step.std.square(), betas[1:], rtol=1e-10)
    back = VP(table).posterior(t[:-1], t[1:], t[1:])
    left = 1 - products
    assert torch.allclose(back.std.square(), left[:-1] / left[1:] * betas[1:], rtol=1e-9)
    assert torch.allclose(back.d, products[:-1].sqrt() * betas[1:] / left[1:], rtol=1e-9)
    assert torch.allclose(back.k, (1 - betas[1:]).sqrt() * left[:-1] / left[1:], rtol=1e-9)


def test_one_step_of_restoration_has_the_published_reverse():
    # Luo et al.: with A = exp(-theta dt), B = alpha_t, C = alpha_{t-1}.
    schedule, size = Reversion(), 50 / 255
    process = MeanReverting(size, schedule)
    t = torch.arange(2, 101, dtype=torch.float64)
    p = schedule.increment(t)
    A, B, C = (-p).exp(), process.a(t), process.a(t - 1)
    back = process.posterior(t - 1, t, t)
    assert torch.allclose(back.k, A * (1 - C**2) / (1 - B**2), rtol=1e-9)
    assert torch.allclose(back.d, C * (1 - A**2) / (1 - B**2), rtol=1e-9)
    assert torch.allclose(back.m, 1 - back.k - back.d, atol=1e-14)
    assert torch.allclose(back.std, size * ((1 - A**2) * (1 - C**2) / (1 - B**2)).sqrt(), rtol=1e-9)


@pytest.mark.parametrize("size", [10 / 255, 50 / 255, 1.0, 3.0])
def test_mean_reversion_is_vp_in_disguise(size: float):
    # y = (x - mu) / L is VP with B = 2 Theta: same a, c / L, rates, and lam shifted by log L.
    schedule = Reversion()
    process, vp = MeanReverting(size, schedule), VP(Scaled(schedule, 2.0))
    t = torch.linspace(0.5, 100, 60, dtype=torch.float64)
    assert (process.a(t) - vp.a(t)).abs().max() <= 1e-14
    assert (process.c(t) / size - vp.c(t)).abs().max() <= 1e-14
    assert (process.lam(t) + math.log(size) - vp.lam(t)).abs().max() <= 1e-14
    x0, eps, mu = torch.randn(3, 60, 4, dtype=torch.float64)
    y = (process.perturb(x0, t, eps, mu) - mu) / size
    want = vp.perturb((x0 - mu) / size, t, eps)
    assert torch.allclose(y, want, rtol=0, atol=1e-14 * (1 + want.abs().max().item() / size))
    one, other = process.rates(t, x0), vp.rates(t, x0)
    assert torch.allclose(one.f, other.f, rtol=1e-14, atol=0)
    assert torch.allclose(one.g2 / size**2, other.g2, rtol=1e-14, atol=0)


def test_linear_in_log_signal_is_edm_in_disguise():
    # x / a of any process without a mean is a process of growing noise at level c / a.
    for process in (VP(), SubVP(), VE()):
        t = grid(process, 30)
        level = process.c(t) / process.a(t)
        assert torch.allclose(EDM().lam(level), process.lam(t), rtol=1e-12)


def test_a_bridge_is_what_it_pins_given_its_end():
    # Doob: the law of the bridge at t is the posterior of the free process given x_0 and x_{t1} = mu.
    schedule = Linear(0.5, 8.0)
    free, pinned = MeanReverting(0.3, schedule), OUBridge(0.3, schedule)
    t, last = torch.linspace(0.05, 0.95, 9, dtype=torch.float64), torch.ones(9, dtype=torch.float64)
    law = free.posterior(t, last, t)
    assert torch.allclose(law.d, pinned.a(t), rtol=1e-12)
    assert torch.allclose(law.k + law.m, pinned.b(t), rtol=1e-12)
    assert torch.allclose(law.std, pinned.c(t), rtol=1e-12)
    # Slow reversion: a bridge of Brownian motion.
    slow = OUBridge(1.0, Scaled(Linear(), 1e-6))
    brown = BrownianBridge(math.sqrt(2e-6 * 10.05), Linear())
    assert torch.allclose(slow.a(t), brown.a(t), rtol=1e-4)
    assert torch.allclose(slow.c(t), brown.c(t), rtol=1e-4)


def test_ends_keep_lam_finite():
    for process in PROCESSES:
        lam = process.lam(torch.tensor(ends(process), dtype=torch.float64))
        assert torch.isfinite(lam).all() and lam[0] > lam[1] + 1
