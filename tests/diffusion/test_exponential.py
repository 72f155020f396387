"""Exponential integrators as samplers, on targets whose answers are known exactly."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt import DataPrediction, Exponential, InRatio, Inside, InTime, NoisePrediction
from dxdt.diffusion import (
    EDM,
    OUVE,
    VE,
    VP,
    BrownianBridge,
    Data,
    Denoiser,
    LogSNR,
    MixtureOracle,
    OUBridge,
    Posterior,
    Process,
    RectifiedFlow,
    SubVP,
    Time,
    gaussian_oracle,
    reverse,
)
from dxdt.paths.driver import Increment
from grids import solve_on_grid
from processes import CLASSIC, PROCESSES, ends

D, N = DataPrediction(), NoisePrediction()
M = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
S = torch.tensor([0.3, 0.8, 1.2], dtype=torch.float64)
MU = torch.tensor([[0.2, 0.1, -0.4]], dtype=torch.float64)

MULTISTEP = [Exponential(order, kind) for order in (1, 2, 3, 4) for kind in (D, N)]
SINGLE = [Exponential(order, kind, Inside()) for order in (2, 3) for kind in (D, N)]
CORRECTED = [
    Exponential(order, kind, corrector=dxdt.Corrector(again))
    for order in (2, 3, 4)
    for kind in (D, N)
    for again in (False, True)
    if order < 4 or kind == N  # the error of the other changes its sign on the way
]
DEIS = [Exponential(order, N, nodes) for order in (2, 3) for nodes in (InTime(), InRatio())]
OTHERS = [
    Exponential(2, D, second=dxdt.B2()),
    Exponential(2, N, second=dxdt.B1()),
    Exponential(2, N, Inside(), second=dxdt.B2()),
    Exponential(3, D, corrector=dxdt.Corrector(), second=dxdt.B2()),
    Exponential(3, D, InTime()),
    Exponential(3, D, Inside(0.5)),
]

SAMPLERS = [
    Exponential(3),
    Exponential(2, N),
    Exponential(3, corrector=dxdt.Corrector()),
    Exponential(3, corrector=dxdt.Corrector(True)),
    Exponential(2, D, Inside()),
]


def mean_of(process: Process) -> Tensor | None:
    """A mean for processes that have one."""
    t = torch.tensor(0.5 * process.t1, dtype=torch.float64)
    return MU if process.b(t) != 0 else None


def law(process: Process, t: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of x_t for data N(M, S^2)."""
    a, b, v = process.a(t), process.b(t), process.variance(t)
    shift = 0.0 if mu is None else b * mu
    return a * M + shift, a**2 * S**2 + v


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(errors[k] / errors[k + 1]) for k in range(len(errors) - 1)]


def gaussian_error(process: Process, solver: Exponential, steps: int) -> float:
    """Largest error of the flow that carries a Gaussian."""
    low, high = ends(process)
    times = LogSNR()(process, steps, high, low)
    mu = mean_of(process)
    (m1, v1), (m0, v0) = law(process, times[0], mu), law(process, times[-1], mu)
    start = m1 + 1.3 * v1.sqrt() * torch.ones(1, 3, dtype=torch.float64)
    y = solve_on_grid(reverse(gaussian_oracle(process, M, S), 0.0, mu), start, times, solver=solver).y1
    return (y - (m0 + 1.3 * v0.sqrt())).abs().max().item()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_orders_on_a_gaussian_for_every_process(process: Process):
    for solver in (Exponential(1), Exponential(2, N), Exponential(3)):
        errors = [gaussian_error(process, solver, steps) for steps in (40, 80)]
        assert slopes(errors)[-1] > solver.facts.order - 0.2, (solver, errors)


@pytest.mark.parametrize("solver", MULTISTEP + SINGLE + CORRECTED + DEIS + OTHERS, ids=str)
def test_orders_of_the_family_on_a_gaussian(solver: Exponential):
    errors = [gaussian_error(VP(), solver, steps) for steps in (40, 160)]
    assert slopes(errors)[-1] / 2 > solver.facts.order - 0.3, errors


W = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS, WIDTHS = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ((0.1, 0.75, 1.1), (0.08, 0.05, 0.15)))


def cdf(process: Process, x: Tensor, t: Tensor) -> Tensor:
    """Exact distribution function of x_t for the mixture, one dimension."""
    a, v = process.a(t), process.variance(t)
    z = (x - a * MEANS.T) / (a**2 * WIDTHS.T**2 + v).sqrt()
    return (W * torch.special.ndtr(z)).sum(1, keepdim=True)


def quantile(process: Process, share: Tensor, t: Tensor) -> Tensor:
    """Its inverse, by bisection."""
    low, high = (torch.full_like(share, x) for x in (-600.0, 600.0))
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = cdf(process, middle, t) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


@cache
def carried(process: Process) -> tuple[Tensor, Tensor]:
    """Points and where the flow carries them, which keeps quantiles."""
    low, high = ends(process)
    share = torch.tensor([[0.1], [0.29], [0.35], [0.6], [0.9]], dtype=torch.float64)
    first, last = (quantile(process, share, torch.tensor(t, dtype=torch.float64)) for t in (high, low))
    return first, last


HIGH = [Exponential(3), Exponential(4, N), Exponential(3, N, Inside()), Exponential(3, corrector=dxdt.Corrector())]


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), RectifiedFlow()], ids=repr)
def test_orders_on_a_mixture(process: Process):
    """Order 3 measures 3 and order 4 measures 4, where public samplers measure 2."""
    first, last = carried(process)
    low, high = ends(process)
    equation = reverse(MixtureOracle(process, W, MEANS, WIDTHS))
    for solver in HIGH:
        errors: list[float] = []
        for steps in (80, 320):
            y = solve_on_grid(equation, first, LogSNR()(process, steps, high, low), solver=solver).y1
            errors.append((y - last).abs().mean().item())
        assert slopes(errors)[-1] / 2 > solver.facts.order - 0.35, (solver, errors)


def test_a_rising_start_costs_the_order_that_it_costs_elsewhere():
    low, high = ends(VP())
    errors: dict[Any, list[float]] = {}
    for start in (dxdt.Rising(), dxdt.Preserving()):
        for steps in (160, 320):
            times = LogSNR()(VP(), steps, high, low)
            # From where the mixture shows, so that the beginning matters.
            times = times[times < 0.6]
            share = cdf(VP(), quantile(VP(), torch.tensor([[0.3]], dtype=torch.float64), times[0]), times[0])
            begin, end = (quantile(VP(), share, times[k]) for k in (0, -1))
            y = solve_on_grid(
                reverse(MixtureOracle(VP(), W, MEANS, WIDTHS)), begin, times, solver=Exponential(4, start=start)
            ).y1
            errors.setdefault(start, []).append((y - end).abs().max().item())
    assert errors[dxdt.Preserving()][1] < 0.5 * errors[dxdt.Rising()][1]


class Impulses:
    """A driver whose row k + 1 sees a unit normal in step k alone, and whose first row sees none."""

    adaptive, levy = False, None

    def bind(self, t0: Any, t1: Any, rows: int, size: int, dtype: Any, device: Any) -> Any:
        self.size = size
        return self

    def increment(self, t: Any, dt: Any, step: Any = 0) -> Any:
        w = torch.zeros(self.size // 3, 3, dtype=torch.float64)
        w[int(step) + 2] = 1.0
        return Increment(dt, w.reshape(1, -1), None)


def moments(process: Process, tau: float, solver: Exponential, steps: int) -> tuple[float, float]:
    """Errors of mean and variance at the end: every solver is affine in the start and in each normal."""
    low, high = ends(process)
    times, mu = LogSNR()(process, steps, high, low), mean_of(process)
    (m1, v1), (m0, v0) = law(process, times[0], mu), law(process, times[-1], mu)
    start = m1.expand(steps + 2, 3).clone()
    start[1] += v1.squeeze().sqrt()
    equation = reverse(gaussian_oracle(process, M, S), tau, None if mu is None else mu.expand(steps + 2, 3))
    y = solve_on_grid(equation, start, times, solver=solver, driver=Impulses()).y1
    return (y[0] - m0).abs().max().item(), ((y[1:] - y[0]).square().sum(0) - v0).abs().max().item()


@pytest.mark.parametrize("process", [VP(), VE(), OUVE(), OUBridge(), CLASSIC[-1]], ids=repr)
@pytest.mark.parametrize("tau", [0.5**0.5, 1.0])
def test_mean_and_variance_of_the_stochastic_samplers(process: Process, tau: float):
    """By exact recursion: the mean to rounding in the data's form, the variance by order one and two."""
    for order in (1, 2):
        errors = [moments(process, tau, Exponential(order), steps) for steps in (40, 80)]
        assert max(e[0] for e in errors) < 1e-12 * max(1.0, process.prior_std)
        assert slopes([e[1] for e in errors])[0] > order - 0.2, errors
    errors = [moments(process, tau, Exponential(2, N), steps)[1] for steps in (80, 160)]
    assert slopes(errors)[0] > 1.7, errors


@pytest.mark.parametrize("kind", [D, N], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_strong_order_one_on_one_path(kind: Any, order: int):
    """The same Brownian path at N, 2N and 4N steps."""
    equation = reverse(gaussian_oracle(VP(), M, S), 1.0)
    start = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [
        solve_on_grid(
            equation,
            start,
            LogSNR()(VP(), steps, 1.0, 0.01),
            solver=Exponential(order, kind),
            driver=dxdt.Brownian(5),
        ).y1
        for steps in (80, 160, 480)
    ]
    errors = [(y - found[-1]).square().mean().sqrt().item() for y in found[:2]]
    assert 0.8 < slopes(errors)[0] < 1.5, errors


def test_pairs_with_noise_refine_one_path():
    equation = reverse(gaussian_oracle(VP(), M, S), 1.0)
    start = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = dict(solver=Exponential(2, D, Inside()), driver=dxdt.Brownian(5))
    exact = solve_on_grid(equation, start, LogSNR()(VP(), 200, 1.0, 0.01), **options).y1
    y = solve_on_grid(equation, start, (1.0, 0.01), controller=dxdt.PID(1e-2, 1e-2), dt=0.01, **options).y1
    assert (y - exact).square().mean().sqrt() < 0.1
    with pytest.raises(ValueError, match="Increments"):
        solve_on_grid(
            equation, start, (1.0, 0.5), dt=0.5, solver=Exponential(2, D, Inside()), driver=dxdt.Increments(0)
        )


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("per_sample", [False, True])
def test_pairs_adapt_their_steps(order: int, per_sample: bool):
    low, high = ends(VP())
    first, last = carried(VP())
    equation = reverse(MixtureOracle(VP(), W, MEANS, WIDTHS))
    for tolerance in (1e-3, 1e-4):
        solution = solve_on_grid(
            equation,
            first,
            (high, low),
            solver=Exponential(order, D, Inside()),
            controller=dxdt.PID(tolerance, tolerance),
            per_sample=per_sample,
        )
        assert (solution.y1 - last).abs().max() < 20 * tolerance


def test_order_one_is_one_step_in_every_form():
    """Data, noise and the rotation by the angle of a and c, for a^2 + c^2 = 1."""
    equation = reverse(gaussian_oracle(VP(), M, S))
    x = torch.randn(4, 3, dtype=torch.float64)
    a, b = (solve_on_grid(equation, x, (0.8, 0.4), dt=0.4, solver=Exponential(1, kind)).y1 for kind in (D, N))
    s, t = (torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.4))
    angle = torch.atan2(VP().c(s), VP().a(s)) - torch.atan2(VP().c(t), VP().a(t))
    v = equation.remainder(s, x).angular_velocity
    assert torch.allclose(a, b, atol=1e-13)
    assert torch.allclose(a, angle.cos() * x - angle.sin() * v, atol=1e-13)


@dataclass(frozen=True)
class Frozen:
    """A denoiser that always answers one x_0."""

    process: Process
    x0: Tensor

    def __call__(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        at = self.process.moments(t, x)
        xi = x if mu is None else x - at.b * mu
        return Posterior(self.process, t, x, self.x0, (xi - at.a * self.x0) / at.c, mu)


@pytest.mark.parametrize("solver", [*MULTISTEP[::2], *SINGLE[::2], *CORRECTED[::4]], ids=str)
def test_many_steps_to_one_answer_are_one_step(solver: Exponential):
    process = CLASSIC[-1]
    mu = MU.expand(2, 3)
    equation = reverse(Frozen(process, torch.ones(2, 3, dtype=torch.float64)), 0.0, mu)
    x = torch.randn(2, 3, dtype=torch.float64)
    once = solve_on_grid(equation, x, (0.9, 0.1), dt=0.8, solver=Exponential(1)).y1
    often = solve_on_grid(equation, x, [0.9, 0.7, 0.4, 0.3, 0.15, 0.1], solver=solver).y1
    assert torch.allclose(once, often, atol=1e-13)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(
    "solver", [Exponential(1), Exponential(2, N), Exponential(3), Exponential(3, N, Inside())], ids=str
)
def test_infinite_signal_to_noise_at_either_end(solver: Exponential, tau: float):
    """From a = 0 to c = 0: the last step lands on the answer, and nothing is NaN."""
    process = RectifiedFlow()
    oracle = gaussian_oracle(process, M, S)
    x = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = Time()(process, 60, 1.0, 0.0)
    y = solve_on_grid(reverse(oracle, tau), x, times, solver=solver, driver=dxdt.Brownian(2)).y1
    assert torch.isfinite(y).all()
    if tau == 0:
        assert (y - (M + S * x)).abs().max() < (0.5 if solver.facts.order == 1 else 0.15)
    else:
        assert (y.mean(0) - M).abs().max() < 0.2 and (y.std(0) / S - 1).abs().max() < 0.2
    one = solve_on_grid(reverse(oracle, tau), x, (1.0, 0.0), dt=1.0, solver=solver, driver=dxdt.Brownian(2)).y1
    assert torch.allclose(one, M.expand_as(one))


@pytest.mark.parametrize("order", [2, 3])
def test_pairs_keep_their_order_from_where_nothing_is_known(order: int):
    """From a = 0 the step is classical in a / c."""
    process = RectifiedFlow()
    oracle, x = gaussian_oracle(process, M, S), torch.ones(1, 3, dtype=torch.float64)
    errors: list[float] = []
    for t in (0.9, 0.95):
        m, v = law(process, torch.tensor(t, dtype=torch.float64), None)
        y = solve_on_grid(reverse(oracle), x, (1.0, t), dt=1.0 - t, solver=Exponential(order, D, Inside())).y1
        errors.append((y - (m + v.sqrt() * x)).abs().max().item())
    assert slopes(errors)[0] > order + 0.8, errors


@pytest.mark.parametrize("process", [OUBridge(), BrownianBridge(0.5)], ids=repr)
def test_bridges_leave_their_end_with_noise_only(process: Process):
    mu = MU.expand(4000, 3)
    exact = gaussian_oracle(process, M, S)

    def oracle(x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        """At the end itself, where x says nothing, the answer is the mean."""
        return exact(x, t, mu) if t < process.t1 else Posterior(process, t, x, M.expand_as(x), 0 * x, mu)

    oracle.process = process  # pyright: ignore[reportFunctionMemberAccess]
    times = Time()(process, 50, process.t1, 0.02 * process.t1)
    y = solve_on_grid(reverse(oracle, 1.0, mu), mu, times, solver=Exponential(2), driver=dxdt.Increments(3)).y1
    m, v = law(process, times[-1], MU)
    assert ((y.mean(0) - m) / v.sqrt()).abs().max() < 0.08
    assert (y.var(0) / v - 1).abs().max() < 0.12
    with pytest.raises(ValueError, match="is a point"):
        solve_on_grid(reverse(oracle, 0.0, mu), mu, times, solver=Exponential(2))


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(
    "solver", [Exponential(3), Exponential(2, N), Exponential(3, corrector=dxdt.Corrector())], ids=str
)
def test_samples_start_at_times_of_their_own(solver: Exponential, tau: float):
    starts = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    times = LogSNR()(VP(), 12, starts)
    equation = reverse(gaussian_oracle(VP(), M, S), tau)
    x = torch.randn(3, 3, dtype=torch.float64)
    options: dict[str, Any] = dict(solver=solver, driver=dxdt.Increments(1), per_sample=True)
    span: dict[str, Any] = dict(t=(times[0], times[-1]), controller=dxdt.Grid(times))
    whole = solve_on_grid(equation, x, **span, **options).y1
    assert torch.isfinite(whole).all()
    column = dxdt.Grid(times[:, :1].expand(-1, 3))
    alone = solve_on_grid(equation, x, (times[0, 0].item(), times[-1, 0].item()), controller=column, **options).y1
    assert torch.allclose(whole[0], alone[0], atol=1e-13)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_noise_does_not_depend_on_the_batch(tau: float):
    equation = reverse(gaussian_oracle(VP(), M, S), tau)
    x = torch.randn(8, 3, dtype=torch.float64)
    for per_sample in (False, True):
        for driver in (dxdt.Increments(4), dxdt.Brownian(4)):
            a, b = (
                solve_on_grid(
                    equation,
                    x[:k],
                    Time()(VP(), 5),
                    solver=Exponential(2),
                    driver=driver,
                    per_sample=per_sample,
                ).y1
                for k in (8, 3)
            )
            assert torch.equal(a[:3], b)


@pytest.mark.parametrize("solver", SAMPLERS, ids=str)
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_gradients_through_a_sampler_agree(solver: Exponential, tau: float):
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    denoiser = Denoiser(lambda x, t: net(x + t[:, None]), VP(), Data())
    found: list[Any] = []
    for gradient in (dxdt.Direct(), dxdt.Checkpointed(), dxdt.Checkpointed(slots=3)):
        x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        y = solve_on_grid(
            reverse(denoiser, tau),
            x,
            Time()(VP(), 10),
            solver=solver,
            gradient=gradient,
            driver=dxdt.Brownian(0),
            params=list(net.parameters()),
        ).y1
        found.append(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_gradients_with_respect_to_the_ends():
    def end(t1: Tensor, t0: Tensor) -> Tensor:
        grid = dxdt.Grid(torch.stack([t1, t1 * 0 + 0.7, t1 * 0 + 0.5, t0]).detach())
        return solve_on_grid(
            reverse(gaussian_oracle(VP(), M, S)),
            torch.ones(1, 3).double(),
            (t1, t0),
            controller=grid,
            solver=Exponential(3),
        ).y1

    ends_ = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (0.9, 0.3)]
    assert torch.autograd.gradcheck(end, ends_, eps=1e-5)


@pytest.mark.parametrize("solver", SAMPLERS, ids=str)
def test_values_between_steps(solver: Exponential):
    low, high = ends(VP())
    equation = reverse(gaussian_oracle(VP(), M, S))
    (m1, v1) = law(VP(), torch.tensor(high).double(), None)
    x = m1 + v1.sqrt() * torch.ones(1, 3, dtype=torch.float64)
    wanted = torch.tensor([0.83, 0.41, 0.1], dtype=torch.float64)
    solution = solve_on_grid(equation, x, LogSNR()(VP(), 100, high, low), solver=solver, save=wanted)
    for t, y in zip(wanted, solution.ys, strict=True):
        m, v = law(VP(), t, None)
        assert (y - m - v.sqrt()).abs().max() < 5e-3


@pytest.mark.parametrize(("solver", "extra"), [(Exponential(2), 0), (Exponential(3), 2), (Exponential(4), 6)], ids=str)
def test_evaluations_are_counted(solver: Exponential, extra: int):
    """A step costs one; the beginning of order k costs k - 1 steps of a pair of order k - 1."""
    equation = reverse(gaussian_oracle(VP(), M, S))
    x = torch.randn(2, 3, dtype=torch.float64)
    for start, more in ((dxdt.Preserving(), extra), (dxdt.Rising(), 0)):
        method = Exponential(solver.facts.order, start=start)
        assert solve_on_grid(equation, x, Time()(VP(), 20), solver=method).stats.evaluations == 20 + more


@pytest.mark.parametrize("solver", SAMPLERS, ids=str)
def test_a_grid_that_is_not_known_before_gives_the_same(solver: Exponential):
    """Steps that a clip may cut keep their gaps as they go."""
    equation = reverse(gaussian_oracle(VP(), M, S))
    x = torch.randn(2, 3, dtype=torch.float64)
    times = Time()(VP(), 9)
    known = solve_on_grid(equation, x, times, solver=solver).y1
    clipped = dxdt.Clip(dxdt.Grid(times), jumps=[0.51])
    cut = solve_on_grid(equation, x, (1.0, times[-1].item()), controller=clipped, solver=solver)
    assert torch.allclose(cut.y1, known, atol=0.1)
    same = dxdt.Clip(dxdt.Grid(times), jumps=[2.0])
    assert torch.allclose(solve_on_grid(equation, x, (1.0, times[-1].item()), controller=same, solver=solver).y1, known)


def test_the_last_steps_can_be_of_lower_order():
    equation = reverse(gaussian_oracle(VP(), M, S))
    x, times = torch.randn(2, 3, dtype=torch.float64), Time()(VP(), 8)
    low, high = (Exponential(2, lower_final=flag) for flag in (True, False))
    before = solve_on_grid(equation, x, times[:-1], solver=high).y1
    last = solve_on_grid(equation, before, (times[-2], times[-1]), dt=1.0, solver=Exponential(1)).y1
    assert torch.allclose(solve_on_grid(equation, x, times, solver=low).y1, last)


def test_what_cannot_work_is_refused_with_the_remedy():
    equation, noisy = (reverse(gaussian_oracle(VP(), M, S), tau) for tau in (0.0, 1.0))
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match="affine part"):
        solve_on_grid(dxdt.ODE(lambda t, y: -y), x, (1.0, 0.1), dt=0.1, solver=Exponential())
    with pytest.raises(ValueError, match="error estimate"):
        solve_on_grid(equation, x, (1.0, 0.1), controller=dxdt.PID(), solver=Exponential(2))
    with pytest.raises(ValueError, match="no driver"):
        solve_on_grid(noisy, x, (1.0, 0.1), dt=0.1, solver=Exponential(2))
    with pytest.raises(ValueError, match="give Backsolve"):
        solve_on_grid(
            equation, x.requires_grad_(), (1.0, 0.1), dt=0.1, solver=Exponential(2), gradient=dxdt.Backsolve()
        )
    bad: dict[str, Any]
    for bad in (dict(order=5), dict(order=0), dict(order=1, nodes=Inside()), dict(order=1, corrector=dxdt.Corrector())):
        with pytest.raises(ValueError, match="give an order"):
            Exponential(**bad)
    with pytest.raises(ValueError, match="earlier answers"):
        Exponential(3, nodes=Inside(), corrector=dxdt.Corrector())
    with pytest.raises(ValueError, match="choose 0 < r"):
        Inside(1.5)
