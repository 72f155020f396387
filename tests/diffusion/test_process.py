"""Processes: what is derived from (a, b, c) against published closed forms and autograd."""

import math

import pytest
import torch

from dxdt.diffusion import VE, VP, Linear, Process, RectifiedFlow, SubVP
from dxdt.diffusion.process import along
from processes import PROCESSES, MeanReverting

T = torch.linspace(1e-3, 0.99, 41, dtype=torch.float64)
X = torch.zeros(41, 1, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_lam_and_time_are_inverse_and_lam_falls(process: Process):
    lam = process.lam(T)
    assert torch.allclose(process.time(lam), T, rtol=1e-12, atol=1e-14)
    assert (lam.diff() < 0).all()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_rates_are_the_derivatives(process: Process):
    t = T.clone().requires_grad_()
    rates = process.rates(T, X)
    a, b, c = process.a(t), process.b(t), process.c(t)
    for value, rate in ((a, rates.a), (b, rates.b), (c, rates.c)):
        grad = torch.zeros_like(t)
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), t, allow_unused=True, retain_graph=True)
            grad = torch.zeros_like(t) if grad is None else grad
        assert torch.allclose(rate[:, 0], grad, rtol=1e-10)
    # The moments of dx = (f x + u mu) dt + g dW obey these.
    f, u, g2 = rates.f[:, 0], rates.u[:, 0], rates.g2[:, 0]
    a, b, v = process.a(T), process.b(T), process.variance(T)
    assert torch.allclose(f * a, rates.a[:, 0])
    assert torch.allclose(f * b + u, rates.b[:, 0])
    assert torch.allclose(2 * f * v + g2, 2 * process.c(T) * rates.c[:, 0], rtol=1e-9)
    assert (g2 >= 0).all()


def test_vp_has_the_published_drift_and_diffusion():
    beta = 0.1 + 19.9 * T
    rates = VP().rates(T, X)
    assert torch.allclose(rates.f[:, 0], -beta / 2)
    assert torch.allclose(rates.g2[:, 0], beta)


def test_subvp_has_the_published_diffusion():
    beta, total = 0.1 + 19.9 * T, 0.1 * T + 9.95 * T**2
    rates = SubVP().rates(T, X)
    assert torch.allclose(rates.f[:, 0], -beta / 2)
    assert torch.allclose(rates.g2[:, 0], beta * -torch.expm1(-2 * total))


def test_ve_has_the_published_diffusion():
    sigma = 0.01 * 5000**T
    rates = VE().rates(T, X)
    assert torch.equal(rates.f, torch.zeros_like(rates.f))
    assert torch.allclose(rates.g2[:, 0], sigma**2 * 2 * math.log(5000))


def test_mean_reversion_draws_to_the_mean():
    rates = MeanReverting().rates(T, X)
    assert torch.allclose(rates.u, -rates.f)
    assert torch.allclose(rates.f, torch.full_like(rates.f, -5.0))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("lead", [(), (4,), (4, 3)])
def test_times_of_any_shape_meet_data_of_any_shape(process: Process, lead: tuple[int, ...]):
    t = 0.1 + 0.8 * torch.rand(lead, dtype=torch.float64)
    x0, eps = torch.randn(2, 4, 3, 2, 5)
    xt = process.perturb(x0, t, eps, mu=torch.ones_like(x0))
    assert xt.dtype == torch.float32
    grid = t.reshape(*lead, *(1,) * (2 - len(lead))).expand(4, 3)
    for i, j in ((0, 0), (3, 2)):
        s = grid[i, j]
        want = process.a(s) * x0[i, j] + process.b(s) + process.c(s) * eps[i, j]
        assert torch.allclose(xt[i, j], want.float(), rtol=1e-5, atol=1e-5)


def test_the_prior_is_the_end_of_the_diffusion():
    for process in PROCESSES:
        end = torch.tensor(process.t1, dtype=torch.float64)
        assert process.prior_std == pytest.approx(process.c(end).item(), rel=1e-2)
        z = torch.randn(3, 2, 2, dtype=torch.float64)
        x = process.prior().sample(z)
        law = torch.distributions.Normal(0.0, torch.tensor(process.prior_std).double())
        assert torch.allclose(process.prior().log_prob(x), law.log_prob(x).sum((1, 2)))
    assert torch.allclose(MeanReverting().prior(torch.ones(2)).mean, torch.ones(2), atol=0.01)


def test_float32_times_lose_nothing_but_their_own_rounding():
    t = T.float()
    exact = VP().moments(t.double(), X).c
    assert torch.allclose(VP().moments(t, X.float()).c, exact.float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(2.0, 1.0), "increasing"),
        (lambda: VE(0.0, 1.0), "increasing"),
        (lambda: along(torch.zeros(3), torch.zeros(4, 2)), "leading axes"),
        (lambda: along(torch.zeros(4, 2, 1), torch.zeros(4, 2)), "leading axes"),
        (lambda: VP().perturb(torch.zeros(4, 2), torch.zeros(3), torch.zeros(4, 2)), "one time"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_rectified_flow_is_straight():
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.tensor(0.25)
    assert torch.allclose(RectifiedFlow().perturb(x0, t, eps), x0 + 0.25 * (eps - x0))
