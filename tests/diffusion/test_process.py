"""Processes: what is derived from (a, b, c) against published closed forms, autograd and moment equations."""

import math

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    EDM,
    OUVE,
    VE,
    VP,
    BrownianBridge,
    Cosine,
    Denoising,
    Linear,
    OUBridge,
    Prior,
    Process,
    RectifiedFlow,
    Reversion,
    Smooth,
    SubVP,
    Table,
    linear_betas,
)
from dxdt.diffusion import MeanReverting as Restoring
from dxdt.diffusion.processes.process import along
from processes import PROCESSES, MeanReverting, grid

T = torch.linspace(1e-3, 0.99, 41, dtype=torch.float64)
X = torch.zeros(41, 1, dtype=torch.float64)
NAMES = ("a", "b", "c", "f", "u", "g2")
each = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@each
def test_lam_and_time_are_inverse_and_lam_falls(process: Process):
    t = process.t1 * torch.cat((torch.logspace(-6, -2, 9), torch.linspace(0.02, 1, 99))).double()
    lam = process.lam(t)
    assert torch.allclose(process.time(lam), t, rtol=1e-10, atol=0)
    assert (lam.diff() < 0).all()
    levels = torch.linspace(lam[5].item(), lam[-3].item(), 50, dtype=torch.float64)
    assert torch.allclose(process.lam(process.time(levels)), levels, rtol=0, atol=1e-10)


@each
def test_lam_is_the_log_of_a_over_c(process: Process):
    t = grid(process, 50)
    a, c = process.a(t), process.c(t)
    assert torch.allclose(process.lam(t), (a / c).log(), atol=1e-9)
    assert torch.allclose(process.variance(t), c**2, rtol=1e-14)
    assert torch.allclose(process.b(t), 1 - a if process.centred else process.b(t), atol=1e-14)
    if process.radius != 1 or isinstance(process, VP):
        assert torch.allclose(a**2 + (c / process.radius) ** 2, torch.ones_like(t), rtol=1e-14)


@each
def test_rates_are_the_derivatives(process: Process):
    # Off the nodes of a table, where its rates jump.
    t = (grid(process, 41) + 1.23456e-5 * process.t1).requires_grad_()
    rates = process.rates(t.detach(), X)
    for written, derived in zip(process.slopes(t.detach()), Process.slopes(process, t.detach()), strict=True):
        assert torch.allclose(written, derived, rtol=1e-9, atol=1e-13 * derived.abs().max().item())
    h = 1e-7 * process.t1
    for name in ("a", "b", "c"):
        form, rate = getattr(process, name), getattr(rates, name)[:, 0]
        value = form(t)
        grad = torch.zeros_like(t)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), t, allow_unused=True)
            grad = grad if found is None else found
        assert torch.allclose(rate, grad, rtol=1e-10, atol=1e-13 * rate.abs().max().item()), name
        s = t.detach()
        slope = (form(s + h) - form(s - h)) / (2 * h)
        assert torch.allclose(rate, slope, rtol=1e-5, atol=1e-7 * rate.abs().max().item()), name


@each
def test_moments_of_the_equation_obey_its_drift_and_diffusion(process: Process):
    # d(a)/dt = f a, d(b)/dt = f b + u, d(c^2)/dt = 2 f c^2 + g^2
    t = grid(process, 41)
    r = process.rates(t, X)
    f, u, g2 = r.f[:, 0], r.u[:, 0], r.g2[:, 0]
    a, b, v = process.a(t), process.b(t), process.variance(t)
    assert torch.allclose(f * a, r.a[:, 0], rtol=1e-12)
    assert torch.allclose(f * b + u, r.b[:, 0], rtol=1e-9, atol=1e-14)
    turn = 2 * process.c(t) * r.c[:, 0]
    assert torch.allclose(2 * f * v + g2, turn, rtol=1e-9, atol=1e-13 * turn.abs().max().item())
    assert (g2 >= 0).all()


@each
def test_integrating_the_moment_equations_gives_a_b_c(process: Process):
    # RK4 on m_a' = f m_a, m_b' = f m_b + u, v' = 2 f v + g^2 in the clock lam, from the later end's data.
    lam = process.lam(grid(process, 2))
    levels = torch.linspace(lam[0].item(), lam[1].item(), 801, dtype=torch.float64)
    times = process.time(levels)
    halves = process.time(0.5 * (levels[1:] + levels[:-1]))
    every = torch.cat((times, halves))
    r = process.rates(every, every[:, None])
    # dt/dlam = -2 c^2 / g^2
    pace = -2 * process.variance(every) / r.g2[:, 0]
    f, u, g2 = (pace * row[:, 0] for row in (r.f, r.u, r.g2))
    h = levels[1] - levels[0]

    def slope(k: int, y: Tensor) -> Tensor:
        return torch.stack((f[k] * y[0], f[k] * y[1] + u[k], 2 * f[k] * y[2] + g2[k]))

    y = torch.stack((process.a(times[:1]), process.b(times[:1]), process.variance(times[:1])))[:, 0]
    for i in range(800):
        k1 = slope(i, y)
        k2 = slope(801 + i, y + 0.5 * h * k1)
        k3 = slope(801 + i, y + 0.5 * h * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(i + 1, y + h * k3))
    end = times[-1:]
    want = torch.stack((process.a(end), process.b(end), process.variance(end)))[:, 0]
    # The rates of a table jump at its levels, which costs Runge-Kutta its order.
    tolerance = 1e-3 if "Table" in repr(process) else 1e-6
    assert torch.allclose(y, want, rtol=tolerance, atol=tolerance * 1e-2)


@each
def test_rates_at_the_ends_are_limits(process: Process):
    ends = torch.tensor([0.0, process.t1]).double()
    at = process.rates(ends, X[:2])
    near = process.rates(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64) * process.t1, X[:2])
    far = process.rates(torch.tensor([1e-6, 1 - 1e-6], dtype=torch.float64) * process.t1, X[:2])
    for name in NAMES:
        limit, close = getattr(at, name), getattr(near, name)
        assert not limit.isnan().any(), name
        infinite = limit.isinf() | (limit.abs() > 1e12)
        assert (close[infinite].abs() > 5 * getattr(far, name)[infinite].abs()).all(), name
        assert torch.allclose(limit[~infinite], close[~infinite], rtol=1e-3, atol=1e-4), name


FORMS = ("a", "b", "c", "variance", "lam")


@each
def test_closed_forms_bear_the_transforms_of_torch_func(process: Process):
    t = grid(process, 5) + 1.23456e-5 * process.t1
    lam = process.lam(t)
    for name in FORMS:
        form = getattr(process, name)
        assert torch.allclose(torch.func.vmap(form)(t), form(t), rtol=1e-12)
    assert torch.allclose(torch.func.vmap(process.time)(lam), t, rtol=1e-10)
    g2 = torch.func.vmap(lambda s, y: process.rates(s, y).g2)(t, t[:, None])
    assert torch.allclose(g2, process.rates(t, t[:, None]).g2, rtol=1e-9)
    # dt/dlam = 1 / (dlam/dt), by reverse and by forward differentiation
    pace = torch.func.vmap(torch.func.grad(process.time))(lam)
    slope = torch.func.vmap(torch.func.grad(process.lam))(t)
    assert torch.allclose(pace * slope, torch.ones_like(t), rtol=1e-7)
    assert torch.allclose(torch.func.jvp(process.time, (lam,), (torch.ones_like(lam),))[1], pace, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES[6::4], ids=repr)
def test_closed_forms_are_one_graph(process: Process):
    def forms(t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        rates, at = process.rates(t, x), process.moments(t, x)
        return rates.a, rates.g2, at.b, at.c, process.time(process.lam(t))

    t = grid(process, 5) + 1.23456e-5 * process.t1
    traced = torch.compile(forms, fullgraph=True, backend="eager")(t, t[:, None])
    for found, want in zip(traced, forms(t, t[:, None]), strict=True):
        assert torch.allclose(found, want, rtol=1e-12)


@pytest.mark.gpu
@each
def test_closed_forms_are_the_same_on_a_gpu(process: Process):
    t = grid(process, 9)
    for name in FORMS:
        form = getattr(process, name)
        assert torch.allclose(form(t.cuda()).cpu(), form(t), rtol=1e-12)
    assert torch.allclose(process.time(process.lam(t.cuda())).cpu(), t, rtol=1e-10)
    for lawful in (process.transition, process.posterior):
        near, far = vars(lawful(t[:-1], t[1:], t[1:])), vars(lawful(t[:-1].cuda(), t[1:].cuda(), t[1:].cuda()))
        assert all(torch.allclose(far[k].cpu(), near[k], rtol=1e-9, atol=1e-12) for k in near)


def closed(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    r = process.rates(t, t[:, None])
    return r.f[:, 0], r.g2[:, 0]


def test_vp_has_the_published_drift_and_diffusion():
    beta = 0.1 + 19.9 * T
    f, g2 = closed(VP(), T)
    assert torch.allclose(f, -beta / 2)
    assert torch.allclose(g2, beta)


def test_cosine_vp_has_the_published_signal():
    phi = 0.5 * math.pi * (T + 0.008) / 1.008
    assert torch.allclose(VP(Cosine()).a(T), phi.cos() / math.cos(0.5 * math.pi * 0.008 / 1.008), rtol=1e-13)


def test_subvp_has_the_published_diffusion():
    beta, total = 0.1 + 19.9 * T, 0.1 * T + 9.95 * T**2
    f, g2 = closed(SubVP(), T)
    assert torch.allclose(f, -beta / 2)
    assert torch.allclose(g2, beta * -torch.expm1(-2 * total))


def test_ve_and_edm_have_the_published_diffusion():
    f, g2 = closed(VE(), T)
    assert torch.equal(f, torch.zeros_like(f))
    assert torch.allclose(g2, (0.01 * 5000**T) ** 2 * 2 * math.log(5000))
    f, g2 = closed(EDM(), 80 * T)
    assert torch.equal(f, torch.zeros_like(f))
    assert torch.allclose(g2, 160 * T)


def test_mean_reversion_has_the_published_drift_and_diffusion():
    for process, theta in ((MeanReverting(), torch.full_like(T, 5.0)), (Restoring(0.4, Linear()), 0.1 + 19.9 * T)):
        r = process.rates(T, X)
        assert torch.allclose(r.u, -r.f)
        assert torch.allclose(r.f[:, 0], -theta)
        assert torch.allclose(r.g2[:, 0], 2 * 0.4**2 * theta)


def test_the_denoising_variant_has_the_published_flow():
    # Drift -(g^2/2) alpha^2 s with the g of mean reversion: an effective g^2 of alpha^2 g^2.
    schedule = Reversion(steps=1000, floor=0.04)
    t = grid(Denoising(), 41)
    plain = Restoring(70 / 255, schedule)
    alpha = plain.a(t)
    assert torch.allclose(closed(Denoising(), t)[1], alpha**2 * closed(plain, t)[1], rtol=1e-9)
    for noise in (5 / 255, 25 / 255, 50 / 255):
        start = Denoising().time(torch.tensor(-math.log(noise), dtype=torch.float64))
        assert Denoising().c(start).item() == pytest.approx(noise, rel=1e-12)
        total = schedule.integral(start) + 0.5 * math.log(1 - (noise * 255 / 70) ** 2)
        assert abs(total.item()) < 1e-12


def test_ouve_has_the_published_drift_and_diffusion():
    r = OUVE().rates(T, X)
    assert torch.allclose(r.f[:, 0], torch.full_like(T, -1.5))
    assert torch.allclose(r.u, -r.f)
    assert torch.allclose(r.g2[:, 0], (0.05 * 10**T) ** 2 * 2 * math.log(10))


def test_bridges_keep_the_noise_of_what_they_pin_and_end_in_the_mean():
    t = grid(OUBridge(), 41)
    pinned, plain = OUBridge(), Restoring(30 / 255)
    assert torch.allclose(closed(pinned, t)[1], closed(plain, t)[1], rtol=1e-9)
    assert torch.allclose(closed(BrownianBridge(0.5), T)[1], torch.full_like(T, 0.25))
    # As in the paper: a = exp(-Theta) sigma_{t:T}^2 / sigma_T^2, c^2 = sigma_t^2 sigma_{t:T}^2 / sigma_T^2.
    total, end = pinned.schedule.integral(t), pinned.schedule.integral(torch.tensor(100.0).double())

    def s2(span: Tensor) -> Tensor:
        return -((30 / 255) ** 2) * torch.expm1(-2 * span)

    assert torch.allclose(pinned.a(t), (-total).exp() * s2(end - total) / s2(end), rtol=1e-12)
    assert torch.allclose(pinned.variance(t), s2(total) * s2(end - total) / s2(end), rtol=1e-12)
    for process in PROCESSES:
        if process.prior_std == 0:
            last = torch.tensor(process.t1).double()
            mu = torch.randn(2, 3, dtype=torch.float64)
            assert process.c(last) == 0 and process.a(last) == 0
            assert torch.allclose(process.mean(torch.randn_like(mu), last, mu), mu, rtol=1e-15, atol=0)
            assert torch.equal(process.prior(mu).sample(torch.randn_like(mu)), mu)


@each
@pytest.mark.parametrize("lead", [(), (4,), (4, 3)])
def test_times_of_any_shape_meet_data_of_any_shape(process: Process, lead: tuple[int, ...]):
    t = process.t1 * (0.1 + 0.8 * torch.rand(lead, dtype=torch.float64))
    x0, eps = torch.randn(2, 4, 3, 2, 5)
    xt = process.perturb(x0, t, eps, mu=torch.ones_like(x0))
    assert xt.dtype == torch.float32
    at = t.reshape(*lead, *(1,) * (2 - len(lead))).expand(4, 3)
    for i, j in ((0, 0), (3, 2)):
        s = at[i, j]
        want = process.a(s) * x0[i, j] + process.b(s) + process.c(s) * eps[i, j]
        assert torch.allclose(xt[i, j], want.float(), rtol=1e-5, atol=1e-5)


@each
def test_float32_times_stay_float32(process: Process):
    t = grid(process, 9).float()
    lam = process.lam(t)
    assert {v.dtype for v in (process.a(t), process.b(t), process.c(t), lam, process.time(lam))} == {torch.float32}
    exact = process.moments(t.double(), X[:9]).c
    assert torch.allclose(process.moments(t, X[:9].float()).c, exact.float(), rtol=1e-7, atol=0)


@each
def test_the_prior_is_the_end_of_the_diffusion(process: Process):
    end = torch.tensor(process.t1, dtype=torch.float64)
    assert process.prior_std == pytest.approx(process.c(end).item(), rel=1e-2, abs=1e-12)
    mu = torch.randn(3, 2, 2, dtype=torch.float64)
    want = mu if process.centred else process.b(end) * mu
    assert torch.equal(process.prior(mu).mean, want)
    if process.prior_std > 0:
        x = process.prior(mu).sample(torch.randn(3, 2, 2, dtype=torch.float64))
        law = torch.distributions.Normal(want, process.prior_std)
        assert torch.allclose(process.prior(mu).log_prob(x), law.log_prob(x).sum((1, 2)))


def test_mean_reversion_starts_from_noise_around_the_mean():
    mu = torch.rand(2, 3)
    assert torch.equal(Restoring().prior(mu).mean, mu)
    assert Restoring().prior(mu).std == 50 / 255


MU = torch.zeros(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(2.0, 1.0), "increasing"),
        (lambda: Cosine(0.0), "offset"),
        (lambda: Cosine(end=1.5), "end"),
        (lambda: VE(0.0, 1.0), "increasing"),
        (lambda: EDM(1.0, 0.5), "increasing"),
        (lambda: Restoring(0.0), "std > 0"),
        (lambda: Denoising(-1.0), "std > 0"),
        (lambda: OUVE(low=1.0), "low < high"),
        (lambda: OUBridge(0.0), "std > 0"),
        (lambda: BrownianBridge(0.0), "std > 0"),
        (lambda: Reversion(steps=0), "steps"),
        (lambda: Reversion(floor=1.0), "floor"),
        (lambda: along(torch.zeros(3), torch.zeros(4, 2)), "leading axes"),
        (lambda: along(torch.zeros(4, 2, 1), torch.zeros(4, 2)), "leading axes"),
        (lambda: VP().perturb(torch.zeros(4, 2), torch.zeros(3), torch.zeros(4, 2)), "one time"),
        (
            lambda: Restoring().perturb(torch.zeros(4, 3), torch.tensor(1.0), torch.zeros(4, 3), MU),
            r"mu of shape \(3,\)",
        ),
        (lambda: VP().check(0.5, 1.5), r"1\.5 lies outside"),
        (lambda: Restoring().check(-1.0), "100"),
        (lambda: BrownianBridge().prior(MU[None]).log_prob(MU[None]), "no density"),
        (lambda: Prior(0.0, 0.0).log_prob(MU[None]), "no density"),
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


@pytest.mark.parametrize("kind", [VP, SubVP, Restoring, BrownianBridge, OUBridge], ids=lambda k: k.__name__)
def test_jumps_are_those_of_the_schedule(kind):
    betas = linear_betas()
    assert kind(schedule=Table.from_betas(betas)).jumps
    assert not kind(schedule=Table.from_betas(betas, Smooth())).jumps
    assert not kind(schedule=Linear()).jumps
