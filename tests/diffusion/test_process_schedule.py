"""Schedules: tables of published models to their digits, closed forms, and inverses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dxdt.diffusion import (
    VP,
    Constant,
    ConstantCurve,
    Cosine,
    CosineCurve,
    Linear,
    LinearCurve,
    LogAlpha,
    LogSigma,
    MeanReverting,
    Reversion,
    Scaled,
    Smooth,
    Table,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    zero_terminal_snr,
)

# Restoration by mean reversion, cosine curve, T = 100, eps = 0.005, L = 50/255:
# t, theta, alpha, sigma, lambda as released code computes them.
GOLDEN = [
    (1, 0.00169, 0.99982, 0.00368, 5.604),
    (5, 0.01065, 0.99703, 0.01510, 4.190),
    (10, 0.03209, 0.98536, 0.03342, 3.384),
    (20, 0.10690, 0.91623, 0.07856, 2.456),
    (30, 0.21812, 0.77128, 0.12480, 1.821),
    (50, 0.50616, 0.36082, 0.18287, 0.680),
    (70, 0.79194, 0.09113, 0.19526, -0.762),
    (90, 0.97202, 0.01403, 0.19606, -2.637),
    (100, 0.99977, 0.00500, 0.19608, -3.669),
]


def theta_table(curve: object, steps: int) -> Tensor:
    """Rates built as the released code builds them, from T + 3 points of the curve."""
    if isinstance(curve, CosineCurve):
        x = torch.arange(steps + 3, dtype=torch.float64) / (steps + 2)
        bar = ((x + 0.008) / 1.008 * math.pi / 2).cos().square()
        return 1 - (bar / bar[0])[1:-1]
    if isinstance(curve, LinearCurve):
        scale = 1000 / (steps + 1)
        return torch.linspace(scale * 1e-4, scale * 0.02, steps + 1, dtype=torch.float64)
    return torch.ones(steps + 1, dtype=torch.float64)


CURVES = [CosineCurve(), LinearCurve(), ConstantCurve()]


@pytest.mark.parametrize("curve", CURVES, ids=repr)
@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("from_zero", [True, False])
def test_closed_forms_are_the_tables(curve, steps: int, from_zero: bool):
    schedule = Reversion(curve, steps, 0.005, from_zero)
    theta = theta_table(curve, steps)
    total = theta.cumsum(0) - (theta[0] if from_zero else 0)
    dt = -math.log(0.005) / total[-1].item()
    t = torch.arange(steps + 1, dtype=torch.float64)
    assert schedule.dt == pytest.approx(dt, rel=1e-13)
    assert torch.allclose(schedule.integral(t) / dt, total, rtol=1e-14, atol=1e-13)
    assert torch.allclose(schedule.increment(t), dt * theta, rtol=1e-12, atol=1e-16)
    assert torch.allclose(schedule.increment(t[1:]), schedule.integral(t).diff(), rtol=1e-10, atol=1e-15)
    assert torch.allclose(schedule.inverse(schedule.integral(t)), t, rtol=1e-12, atol=1e-12)


def test_the_cosine_table_has_its_published_digits():
    schedule, process = Reversion(), MeanReverting(50 / 255)
    assert CosineCurve().total(torch.tensor(100.0).double(), 100).item() == pytest.approx(50.899448, abs=5e-7)
    assert schedule.dt == pytest.approx(0.10409381, abs=5e-9)
    assert Reversion(from_zero=False).dt == pytest.approx(0.10409255, abs=5e-9)
    for t, theta, alpha, sigma, lam in GOLDEN:
        at = torch.tensor(float(t), dtype=torch.float64)
        assert schedule.increment(at).item() / schedule.dt == pytest.approx(theta, abs=5.1e-6)
        assert process.a(at).item() == pytest.approx(alpha, abs=5.1e-6)
        assert process.c(at).item() == pytest.approx(sigma, abs=5.1e-6)
        assert process.lam(at).item() == pytest.approx(lam, abs=5.1e-4)


@pytest.mark.parametrize(
    ("curve", "first"), [(CosineCurve(), 6.111), (LinearCurve(), 5.061), (ConstantCurve(), 2.730)], ids=repr
)
def test_the_fork_leaves_some_noise_at_zero(curve, first: float):
    zero = torch.zeros((), dtype=torch.float64)
    fork = MeanReverting(50 / 255, Reversion(curve, from_zero=False))
    assert fork.lam(zero).item() == pytest.approx(first, abs=5.1e-4)
    assert MeanReverting(50 / 255, Reversion(curve)).lam(zero).isinf()
    # What lies before the table's start is its start.
    assert fork.time(torch.tensor([50.0]).double()).item() == pytest.approx(0.0, abs=1e-12)


def test_the_fork_has_its_published_first_level():
    zero = torch.zeros((), dtype=torch.float64)
    fork = MeanReverting(50 / 255, Reversion(from_zero=False))
    assert fork.a(zero).item() == pytest.approx(0.99994, abs=5.1e-6)
    assert fork.c(zero).item() == pytest.approx(0.00222, abs=5.1e-6)
    assert Reversion(steps=1000).dt == pytest.approx(0.0105036, abs=5.1e-8)
    one = torch.ones((), dtype=torch.float64)
    assert MeanReverting(50 / 255, Reversion(steps=1000)).lam(one).item() == pytest.approx(8.234, abs=5.1e-4)


def test_the_inverse_of_a_curve_has_its_derivative():
    schedule = Reversion()
    total = torch.linspace(0.01, 5.0, 30, dtype=torch.float64, requires_grad=True)
    t = schedule.inverse(total)
    (found,) = torch.autograd.grad(t.sum(), total)
    s = t.detach().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.integral(s).sum(), s)
    assert torch.allclose(found, 1 / slope, rtol=1e-9)


ALPHAS = (1 - linear_betas()).cumprod(0)
TABLES = {
    "linear": ALPHAS,
    "scaled": (1 - scaled_linear_betas()).cumprod(0),
    "cosine": (1 - cosine_betas()).cumprod(0),
    "short": (1 - cosine_betas(10)).cumprod(0),
    "one": torch.tensor([0.5]),
    "zero end": zero_terminal_snr(ALPHAS),
    "one, all noise": torch.tensor([0.0]),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("interpolation", [LogAlpha(), LogSigma(), Smooth()], ids=repr)
def test_tables_are_exact_at_their_levels(name: str, interpolation):
    products = TABLES[name].double()
    table = Table.from_alphas_cumprod(products, interpolation)
    process = VP(table)
    index = torch.arange(len(products))
    t = table.times(index)
    assert t[-1] == 1
    assert torch.allclose(process.a(t).square(), products, rtol=1e-12, atol=1e-30)
    assert torch.allclose(process.variance(t), 1 - products, rtol=1e-12, atol=1e-16)
    assert torch.allclose(table.index(t), index.double(), atol=1e-9)
    assert torch.allclose(process.time(process.lam(t)), t, rtol=1e-12)
    between = torch.rand(200, dtype=torch.float64)
    assert torch.allclose(process.time(process.lam(between)), between, rtol=1e-10)
    assert process.a(torch.zeros(()).double()) == 1


def test_tables_are_values():
    one, same = (Table.from_betas(linear_betas()) for _ in range(2))
    assert one == same and hash(VP(one)) == hash(VP(same)) and VP(one) == VP(same)
    assert one != Table.from_betas(scaled_linear_betas()) != Table.from_betas(scaled_linear_betas(), LogSigma())
    assert repr(one) == "Table(1000 levels, LogAlpha())"


def test_between_levels_the_named_function_is_straight():
    index = torch.tensor([[10.0, 10.5, 11.0], [700.0, 700.5, 701.0]]).double()
    for interpolation, function in ((LogAlpha(), lambda p, t: p.a(t).log()), (LogSigma(), lambda p, t: p.lam(t))):
        table = Table.from_alphas_cumprod(ALPHAS, interpolation)
        value = function(VP(table), table.times(index))
        assert torch.allclose(value[:, 1], value[:, ::2].mean(1), rtol=1e-12)


def test_a_spline_between_levels_is_smooth_and_finds_cubics():
    t = torch.linspace(0, 1, 21, dtype=torch.float64)[1:]

    def curve(t: Tensor) -> Tensor:
        return 0.3 * t + 4 * t**2 - t**3

    table = Table(curve(t), Smooth())
    between = torch.rand(100, dtype=torch.float64)
    assert torch.allclose(table.integral(between), curve(between), rtol=1e-12, atol=1e-14)
    assert torch.allclose(table.rate(between), 0.3 + 8 * between - 3 * between**2, rtol=1e-10)
    linear = Table.from_betas(linear_betas(), Smooth())
    nodes = torch.arange(1, 1000, dtype=torch.float64) / 1000
    assert torch.allclose(linear.rate(nodes - 1e-9), linear.rate(nodes + 1e-9), rtol=1e-6)


def test_the_linear_table_is_the_continuous_process_nearly():
    # The largest difference of lam is 0.047, at the first level; 0.0033 in the middle.
    table = Table.from_betas(linear_betas())
    t = table.times(torch.arange(1000))
    difference = (VP(table).lam(t) - VP().lam(t)).abs()
    assert difference.max().item() == pytest.approx(0.047, abs=5e-4)
    assert difference[500].item() == pytest.approx(0.0033, abs=5e-5)


def test_published_ranges_of_sigma():
    table = VP(Table.from_betas(linear_betas()))
    ends = (-table.lam(torch.tensor([1e-3, 1.0]).double())).exp()
    assert ends[0].item() == pytest.approx(0.01000, abs=5e-6)
    assert ends[1].item() == pytest.approx(157.41, abs=5e-3)
    last = (-VP().lam(torch.ones(()).double())).exp().item()
    assert last == pytest.approx(152.17, abs=5e-3)
    # The published smallest level of the continuous process, 9.77e-4, is what float32 leaves of 1.0005e-3.
    t = torch.tensor(1e-5)
    float32 = ((9.95 * t**2 + 0.1 * t).exp() - 1).sqrt().item()
    assert float32 == pytest.approx(9.77e-4, abs=5e-7)
    assert (-VP().lam(t.double())).exp().item() == pytest.approx(1.0005e-3, abs=5e-8)


def test_a_table_that_ends_in_noise_keeps_its_first_level():
    ends = zero_terminal_snr(ALPHAS)[[0, -1]]
    assert ends.tolist() == [pytest.approx(ALPHAS[0].item(), rel=1e-12), 0.0]
    process = VP(Table.from_alphas_cumprod(zero_terminal_snr(ALPHAS)))
    last = torch.ones(1).double()
    rates = process.rates(last, last[:, None])
    # a falls to zero on a line, so that the flow a' x0 + c' eps is finite there.
    before = process.a(torch.tensor(0.999, dtype=torch.float64))
    assert rates.a.item() == pytest.approx(-1000 * before.item(), rel=1e-9)
    assert abs(rates.c.item()) < 1e-9


def test_betas_match_published_definitions():
    assert cosine_betas()[-1] == 0.999
    assert scaled_linear_betas()[[0, -1]].tolist() == [pytest.approx(0.00085), pytest.approx(0.012)]
    # The discrete cosine curve is the continuous one at its levels, but for the cap.
    table = VP(Table.from_betas(cosine_betas()))
    t = torch.arange(1, 990, dtype=torch.float64) / 1000
    assert torch.allclose(table.a(t), VP(Cosine()).a(t), rtol=1e-10)


@pytest.mark.parametrize("schedule", [Linear(), Constant(2.0, 3.0), Cosine(), Scaled(Linear(), 0.3)], ids=repr)
def test_inverses_of_schedules(schedule):
    t = schedule.t1 * torch.logspace(-9, 0, 50, dtype=torch.float64)
    assert torch.allclose(schedule.inverse(schedule.integral(t)), t, rtol=1e-12)
    assert schedule.integral(torch.zeros(()).double()) == 0
    assert 0 < schedule.t0 < schedule.t1


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=6))
def test_what_is_no_table_is_refused(products: list[float]):
    good = all(a > b for a, b in zip([1.0, *products], products, strict=False)) and min(products) >= 0
    # The last but none before it may be zero; that follows from falling.
    if good:
        assert Table.from_alphas_cumprod(torch.tensor(products, dtype=torch.float64)).levels == len(products)
    else:
        with pytest.raises(ValueError, match="no schedule") as caught:
            Table.from_alphas_cumprod(torch.tensor(products, dtype=torch.float64))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Table.from_betas(torch.zeros(0)), r"shape \(0,\)"),
        (lambda: Table.from_betas(torch.full((2, 2), 0.1)), r"shape \(2, 2\)"),
        (lambda: Table.from_betas(torch.tensor([0.1, -0.1])), "no schedule"),
        (lambda: Table.from_betas(torch.tensor([0.1, 1.0, 0.1])), "no schedule"),
        (lambda: Table.from_betas(torch.tensor([0.1, 1.1])), "no schedule"),
        (lambda: Table.from_betas(linear_betas()).times(torch.tensor([0, 1000])), "0 to 999"),
        (lambda: Table.from_betas(linear_betas()).times(torch.tensor(-1)), "-1"),
        (lambda: Table.from_alphas_cumprod(torch.tensor([0.99, 0.2, 0.19, 0.01]), Smooth()), "too uneven"),
        (lambda: Constant(0.0), "above zero"),
        (lambda: LinearCurve(0.0), "low"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_those_of_diffusers(name: str, zero: bool):
    schedulers = pytest.importorskip("diffusers.schedulers")
    ends = {} if name == "linear" else {"beta_start": 0.00085, "beta_end": 0.012}
    theirs = schedulers.DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=zero, **ends)
    ours = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "squaredcos_cap_v2": cosine_betas}[name]()
    products = (1 - ours).cumprod(0)
    products = zero_terminal_snr(products) if zero else products
    # Theirs are made in float32.
    assert torch.allclose(products, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)
    table = Table.from_alphas_cumprod(products)
    assert torch.allclose(VP(table).a(table.times(torch.arange(1000))).square(), products, rtol=1e-12, atol=1e-30)
