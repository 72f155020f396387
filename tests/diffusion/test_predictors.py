"""Predictors and churn: exact moments by impulses, the published updates to rounding, and bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffeq import AdamsBashforth, Euler, EulerMaruyama, HalfStep, Heun, Milstein
from dxdt.diffusion import (
    DDIM,
    EDM,
    VE,
    VP,
    Ancestral,
    Churn,
    Denoiser,
    Identity,
    MixtureOracle,
    Process,
    RectifiedFlow,
    ReverseDiffusion,
    ReverseSDE,
    SubVP,
    Table,
    gaussian_oracle,
    integrate,
    linear_betas,
    reverse,
    sample,
)
from dxdt.paths import Brownian, Increments
from grids import solve_on_grid
from impulses import MU, M, S, exact, law
from processes import PROCESSES, ends

DOUBLE = torch.float64
MIXTURE = (
    torch.tensor([0.3, 0.7]).double(),
    torch.tensor([[-1.0, 0.5, 2.0], [1.0, -0.5, 0.0]]).double(),
    torch.tensor([[0.3, 0.4, 0.2], [0.5, 0.3, 0.6]]).double(),
)


# Every third of the many processes at once, all of them with -m slow.
MOST = [p if k < 8 or k % 3 == 0 else pytest.param(p, marks=pytest.mark.slow) for k, p in enumerate(PROCESSES)]
WIDE = [
    p if k < 6 or isinstance(p, EDM) else pytest.param(p, marks=pytest.mark.slow)
    for k, p in enumerate(PROCESSES)
    if p.prior_std > 0
]


def uneven(process: Process, steps: int) -> Tensor:
    """A grid of equal steps in log(a / c)."""
    low, high = ends(process)
    ends_ = process.lam(torch.tensor([high, low], dtype=DOUBLE))
    times = process.time(torch.linspace(ends_[0].item(), ends_[1].item(), steps + 1, dtype=DOUBLE))
    times[0], times[-1] = high, low
    return times


def error(solver, process: Process, steps: int, tau: float, streams: int = 0) -> float:
    """Largest error of mean and of standard deviation, in units of the deviation."""
    grid = uneven(process, steps)
    mean = process.centred
    m, v = law(solver, process, grid, tau, streams, mean)
    m0, v0 = exact(process, grid[-1].item(), mean)
    return max(((m - m0) / v0.sqrt()).abs().max().item(), ((v / v0).sqrt() - 1).abs().max().item())


@pytest.mark.parametrize("process", MOST, ids=repr)
@pytest.mark.parametrize(
    ("solver", "tau", "bound"),
    [
        (DDIM(), 0.0, 0.07),
        (DDIM(0.5), 0.0, 0.12),
        (Ancestral(), 1.0, 0.15),
        (ReverseDiffusion(), 1.0, 0.4),
        (ReverseDiffusion(), 0.0, 2.5),
    ],
    ids=str,
)
def test_predictors_reach_the_marginals_with_order_one_for_every_process(process, solver, tau, bound):
    errors = [error(solver, process, steps, tau) for steps in (24, 48)]
    assert errors[1] < bound, errors
    assert errors[0] / errors[1] > 1.4, errors


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), RectifiedFlow(), EDM()], ids=repr)
@pytest.mark.parametrize("width", [0.5, 1.0])
def test_wider_ancestral_sampling_reaches_the_marginals(process: Process, width: float):
    errors = [error(Ancestral(width), process, steps, 1.0) for steps in (32, 64)]
    assert errors[0] / errors[1] > 1.6, errors


def chain(process: Process, betas_or_sigmas: Tensor, x: Tensor, step) -> Tensor:
    """Run score_sde's loop over its levels from the last down, with the noise of our driver."""
    oracle = gaussian_oracle(process, M, S)
    times = TIMES[type(process)](len(betas_or_sigmas))
    bound = Increments(5).bind(times[-1].item(), times[0].item(), 1, x.numel(), DOUBLE)
    for k, i in enumerate(range(len(betas_or_sigmas) - 1, 0, -1)):
        dt = np.array([times[i - 1].item() - times[i].item()])
        z = bound.increment(np.array([0.0]), dt, k).W.reshape(x.shape) / -(abs(dt[0]) ** 0.5)
        x = step(x, oracle(x, times[i]).score, i, -z)
    return x


TIMES = {
    VP: lambda n: (torch.arange(n, dtype=DOUBLE) + 1) / n,
    VE: lambda n: torch.linspace(0, 1, n, dtype=DOUBLE),
}


def ours(process: Process, solver, x: Tensor, n: int, tau: float = 1.0) -> Tensor:
    times = TIMES[type(process)](n).flip(0)
    equation = ReverseSDE(gaussian_oracle(process, M, S), tau)
    return solve_on_grid(equation, x, times, solver=solver, driver=Increments(5)).y1


@pytest.mark.parametrize("flow", [False, True])
def test_reverse_diffusion_is_that_of_score_sde(flow: bool):
    x, n, tau = torch.randn(4, 3, dtype=DOUBLE), 50, 0.0 if flow else 1.0
    half = 0.5 if flow else 1.0
    sigma = torch.linspace(math.log(0.01), math.log(50.0), n, dtype=DOUBLE).exp()

    def exploding(x, score, i, z):
        g2 = sigma[i] ** 2 - sigma[i - 1] ** 2
        return x + half * g2 * score + (0 if flow else g2.sqrt() * z)

    want = chain(VE(), sigma, 50 * x, exploding)
    assert torch.allclose(ours(VE(), ReverseDiffusion(), 50 * x, n, tau), want, rtol=1e-12, atol=1e-12)
    beta = linear_betas(n, 0.1 / n, 20.0 / n)

    def preserving(x, score, i, z):
        f = ((1 - beta[i]).sqrt() - 1) * x
        return x - f + half * beta[i] * score + (0 if flow else beta[i].sqrt() * z)

    process = VP(Table.from_betas(beta))
    want = chain(process, beta, x, preserving)
    assert torch.allclose(ours(process, ReverseDiffusion(), x, n, tau), want, rtol=1e-11, atol=1e-12)


def test_ancestral_sampling_is_that_of_score_sde():
    x, n = torch.randn(4, 3, dtype=DOUBLE), 50
    sigma = torch.linspace(math.log(0.01), math.log(50.0), n, dtype=DOUBLE).exp()

    def exploding(x, score, i, z):
        g2 = sigma[i] ** 2 - sigma[i - 1] ** 2
        return x + g2 * score + (sigma[i - 1] ** 2 * g2 / sigma[i] ** 2).sqrt() * z

    want = chain(VE(), sigma, 50 * x, exploding)
    assert torch.allclose(ours(VE(), Ancestral(), 50 * x, n), want, rtol=1e-12, atol=1e-12)
    beta = linear_betas(n, 0.1 / n, 20.0 / n)

    def preserving(x, score, i, z):
        return (x + beta[i] * score) / (1 - beta[i]).sqrt() + beta[i].sqrt() * z

    process = VP(Table.from_betas(beta))
    want = chain(process, beta, x, preserving)
    assert torch.allclose(ours(process, Ancestral(width=1.0), x, n), want, rtol=1e-11, atol=1e-12)


def mixture(process: Process) -> MixtureOracle:
    return MixtureOracle(process, *MIXTURE)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("mean", [False, True])
def test_ddim_is_the_posterior_of_the_strided_chain_and_the_rotation(process: Process, mean: bool):
    grid = uneven(process, 6)
    x = process.prior_std * torch.randn(5, 3, dtype=DOUBLE)
    mu = MU.expand(5, 3) if mean else None
    oracle = mixture(process)
    equation = ReverseSDE(oracle, 1.0, mu)
    full = solve_on_grid(equation, x, grid, solver=DDIM(), driver=Increments(2)).y1
    same = solve_on_grid(equation, x, grid, solver=Ancestral(), driver=Increments(2)).y1
    assert torch.equal(full, same)
    bound = Increments(2).bind(0.0, 1.0, 1, 15, DOUBLE)
    want, turned = x, x
    for k in range(6):
        t, s = grid[k], grid[k + 1]
        pinned = process.posterior(s, t, x)
        z = bound.increment(np.zeros(1), np.ones(1), k).W.reshape(5, 3)
        want = pinned.sample(want, oracle(want, t, mu).data, -z, mu)
        # The exponential integrator of order one: noise and data stay what they are.
        known = oracle(turned, t, mu)
        turned = process.perturb(known.data, s, known.noise, mu)
    assert torch.allclose(full, want, rtol=1e-10, atol=1e-12)
    flow = solve_on_grid(reverse(oracle, 0.0, mu), x, grid, solver=DDIM()).y1
    assert torch.allclose(flow, turned, rtol=1e-12, atol=1e-12)
    assert torch.equal(flow, solve_on_grid(reverse(oracle, 0.0, mu), x, grid, solver=DDIM(0.0)).y1)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), RectifiedFlow()], ids=repr)
def test_a_single_datum_is_reached_in_any_number_of_steps(process: Process):
    grid = uneven(process, 3)
    oracle = gaussian_oracle(process, M, torch.zeros(3).double())
    x = exact(process, grid[0].item())[0] + process.c(grid[0]) * torch.randn(2, 3, dtype=DOUBLE)
    end = solve_on_grid(reverse(oracle), x, grid, solver=DDIM()).y1
    m, c = process.a(grid[-1]) * M, process.c(grid[-1])
    eps = (x - process.a(grid[0]) * M) / process.c(grid[0])
    assert torch.allclose(end, m + c * eps, rtol=1e-9, atol=1e-12)


def test_churn_is_algorithm_two():
    process, n = EDM(), 12
    rho = 7
    i = torch.arange(n, dtype=DOUBLE)
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    oracle = gaussian_oracle(process, M, S)
    x = 80 * torch.randn(4, 3, dtype=DOUBLE)
    solver = Churn.over(Heun(), n, churn=3.0, low=0.05, high=50.0, noise=1.007)
    assert solver.gamma == pytest.approx(0.25)
    found = solve_on_grid(ReverseSDE(oracle, 0.0), x, sigma, solver=solver, driver=Increments(9))
    bound = Increments(9).bind(80.0, 0.002, 1, 12, DOUBLE)
    for k in range(n - 1):
        s, end = sigma[k], sigma[k + 1]
        gamma = 0.25 if 0.05 <= s <= 50 else 0.0
        hat = s + gamma * s
        x = x + (hat**2 - s**2).sqrt() * 1.007 * bound.normals(k, 0, 12).reshape(4, 3)
        d = (x - oracle(x, hat).data) / hat
        euler = x + (end - hat) * d
        x = x + (end - hat) * 0.5 * (d + (euler - oracle(euler, end).data) / end)
    assert torch.allclose(found.y1, x, rtol=1e-11, atol=1e-11)
    assert found.stats.evaluations == 2 * (n - 1)


@pytest.mark.parametrize("process", WIDE, ids=repr)
def test_churn_keeps_the_marginals_of_every_process(process: Process):
    errors = [error(Churn(Heun(), gamma=10 / steps), process, steps, 0.0, streams=1) for steps in (32, 64)]
    assert errors[1] < 0.05, errors
    if process in (VP(), SubVP(), RectifiedFlow(), EDM()):  # at a constant amount of fresh noise, with Heun's order
        assert errors[0] / errors[1] > 3.0, errors


def test_churn_raises_noise_where_it_is_asked_to():
    oracle, grid = gaussian_oracle(EDM(), M, S), torch.tensor([10.0, 5.0, 1.0]).double()
    x = 10 * torch.randn(2, 3, dtype=DOUBLE)
    plain = solve_on_grid(reverse(oracle), x, grid, solver=Heun()).y1
    for low, high in ((20.0, 30.0), (0.0, 1.0)):
        solver = Churn(Heun(), 0.1, low, high)
        options = {"solver": solver, "controller": dxdt.Grid(grid), "driver": Increments(0)}
        assert torch.equal(solve_on_grid(ReverseSDE(oracle, 0.0), x, grid, **options).y1, plain)
    # The prior's noise is the most a network knows.
    plain = solve_on_grid(reverse(oracle), x, (80.0, 5.0), dt=75.0, solver=Heun()).y1
    options = {"dt": 75.0, "solver": Churn(Heun()), "driver": Increments(0)}
    assert torch.equal(solve_on_grid(ReverseSDE(oracle), x, (80.0, 5.0), **options).y1, plain)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), RectifiedFlow()], ids=repr)
def test_euler_maruyama_follows_the_flow_which_crashes_in_score_sde(process: Process):
    oracle = gaussian_oracle(process, M, S)
    x = process.prior_std * torch.randn(3, 3, dtype=DOUBLE)
    options = {"steps": 40, "t0": 0.01, "tau": 0.0}
    flow = integrate(oracle, x, solver=Euler(), **options)
    found = integrate(oracle, x, solver=EulerMaruyama(), **options)
    assert torch.allclose(found.y1, flow.y1, rtol=1e-12, atol=1e-12)
    assert found.stats.evaluations == flow.stats.evaluations == 40
    assert torch.allclose(integrate(oracle, x, solver=Milstein(), **options).y1, flow.y1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "tau", "calls"),
    [(Ancestral(), 1.0, 10), (DDIM(), 0.0, 10), (ReverseDiffusion(), 1.0, 10), (Churn(Heun(), 0.1), 0.0, 20)],
    ids=str,
)
def test_evaluations_are_counted_truly(solver, tau: float, calls: int):
    seen: list[int] = []

    def net(x: Tensor, clock: Tensor) -> Tensor:
        seen.append(len(x))
        return 0.5 * x

    found = integrate(Denoiser(net, VP()), torch.randn(4, 3), steps=10, tau=tau, solver=solver)
    assert found.stats.evaluations == len(seen) == calls


SAMPLERS = [
    (Ancestral(), 1.0),
    (Ancestral(1.0), 1.0),
    (DDIM(0.3), 0.0),
    (ReverseDiffusion(), 1.0),
    (Churn(Heun()), 0.0),
]


def tame(x: Tensor, clock: Tensor) -> Tensor:
    """A network whose arithmetic is the same for every batch size."""
    return 0.5 * x + 0.25 * x * x / (1 + x * x)


@pytest.mark.parametrize(("solver", "tau"), SAMPLERS, ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("driver", [Increments(3), Brownian(3)], ids=lambda d: type(d).__name__)
def test_samples_do_not_depend_on_the_batch_by_the_bit(solver, tau: float, per_sample: bool, driver):
    denoiser = Denoiser(tame, VP())
    x = torch.randn(7, 2, 3)
    options = {"steps": 8, "tau": tau, "solver": solver, "per_sample": per_sample, "driver": driver}
    many = integrate(denoiser, x, **options).y1
    for few in (1, 3):
        assert torch.equal(many[:few], integrate(denoiser, x[:few], **options).y1)
    other = integrate(denoiser, x, **(options | {"driver": Increments(4)})).y1
    assert not torch.equal(many, other)


@pytest.mark.parametrize(("solver", "tau"), SAMPLERS, ids=str)
def test_a_nan_of_the_network_harms_one_sample_and_is_reported(solver, tau: float):
    def broken(x: Tensor, clock: Tensor) -> Tensor:
        bad = torch.arange(len(x)) == 1
        return torch.where(bad[:, None] & (clock > 0).reshape(-1, 1), torch.nan, tame(x, clock))

    x = torch.randn(4, 3)
    options = {"steps": 8, "tau": tau, "solver": solver, "per_sample": True}
    with pytest.warns(RuntimeWarning, match="1 of 4 samples failed; sample 1"):
        found = integrate(Denoiser(broken, VP()), x, **options)
    clean = integrate(Denoiser(tame, VP()), x, **options).y1
    assert [s.ok for s in found.status] == [True, False, True, True]
    assert torch.equal(found.y1[[0, 2, 3]], clean[[0, 2, 3]])
    with pytest.raises(dxdt.SolveError, match="not finite"):
        integrate(Denoiser(broken, VP()), x, **(options | {"per_sample": False}))


@pytest.mark.parametrize(("solver", "tau"), [*SAMPLERS, (DDIM(), 0.0)], ids=str)
@pytest.mark.parametrize("gradient", [dxdt.Checkpointed(), dxdt.Checkpointed(slots=3)], ids=str)
def test_gradients_recompute_the_same_noise(solver, tau: float, gradient):
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(3, 3, dtype=DOUBLE, requires_grad=True)
    options = {"steps": 6, "tau": tau, "solver": solver, "t0": 0.05}
    found = [
        torch.autograd.grad(integrate(oracle, x, gradient=rule, **options).y1.square().sum(), x)[0]
        for rule in (dxdt.Direct(), gradient)
    ]
    assert torch.allclose(*found, rtol=1e-12, atol=1e-14)


def test_each_sample_may_have_times_of_its_own():
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(3, 3, dtype=DOUBLE)
    starts = torch.tensor([1.0, 0.5, 0.8]).double()
    for solver in (Ancestral(), ReverseDiffusion(), Churn(Heun(), 0.2)):
        tau = 0.0 if solver.facts.stochastic else 1.0
        equation = ReverseSDE(oracle, tau)
        span = {"dt": 0.05, "solver": solver, "driver": Increments(1), "per_sample": True}
        found = solve_on_grid(equation, x, (starts, 0.1), **span).y1
        for k in range(3):  # rows of a path are named by their place
            alone = solve_on_grid(equation, x[: k + 1], (starts[k].item(), 0.1), **span).y1
            assert torch.allclose(found[k], alone[k], rtol=1e-12, atol=1e-12)


def test_step_doubling_adapts_a_predictor():
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(2, 3, dtype=DOUBLE)
    found = solve_on_grid(reverse(oracle), x, (1.0, 0.01), solver=HalfStep(DDIM()), controller=dxdt.PID(1e-4, 1e-4))
    (m1, v1), (m0, v0) = exact(VP(), 1.0), exact(VP(), 0.01)
    assert (found.y1 - m0 - (v0 / v1).sqrt() * (x - m1)).abs().max() < 0.02


ORACLE = gaussian_oracle(VP(), M, S)
X = torch.zeros(2, 3).double()
NAME = "dxdt.diffusion.reverse"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DDIM(1.5), "share of noise"),
        (lambda: DDIM(float("nan")), "share of noise"),
        (lambda: Ancestral(-0.1), "width=-0.1"),
        (lambda: Churn(Heun(), gamma=0.0), "gamma > 0"),
        (lambda: Churn(Heun(), gamma=math.nan), "gamma > 0"),
        (lambda: Churn(Heun(), low=2.0, high=1.0), "low <= high"),
        (lambda: Churn(Heun(), noise=0.0), "noise > 0"),
        (lambda: Churn(AdamsBashforth()), "one-step method"),
        (lambda: integrate(ORACLE, X, steps=5, tau=1.0, solver=DDIM(0.5)), "leave one of the two"),
        (lambda: integrate(ORACLE, X, steps=5, tau=1.0, solver=Churn(Heun())), "give tau=0"),
        (lambda: integrate(ORACLE, X, solver=DDIM()), "give dt"),
        (lambda: integrate(ORACLE, X, solver=Churn(Heun())), "give dt|known steps"),
        (lambda: integrate(ORACLE, X, steps=0, solver=DDIM()), "steps=0"),
        (lambda: solve_on_grid(dxdt.ODE(lambda t, y: y), X, (1.0, 0.0), dt=0.1, solver=DDIM()), NAME),
        (lambda: solve_on_grid(dxdt.ODE(lambda t, y: y), X, (1.0, 0.0), dt=0.1, solver=ReverseDiffusion()), NAME),
        (
            lambda: integrate(gaussian_oracle(RectifiedFlow(), M, S), X, steps=5, tau=1.0, solver=ReverseDiffusion()),
            "begin a little later",
        ),
        (lambda: HalfStep(Churn(Heun())), "one-step method"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(0.5), ReverseDiffusion(), Churn(Heun()), Identity()], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 4, 4), (1, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_dtypes_are_kept(solver, shape: tuple[int, ...], dtype: torch.dtype):
    tau = 1.0 if isinstance(solver, Ancestral | ReverseDiffusion) else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(Denoiser(tame, VP()), shape, steps=3, tau=tau, solver=solver, dtype=dtype)
    assert x.shape == shape and x.dtype == dtype and x.isfinite().all()
