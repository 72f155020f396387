"""Correctors: what they leave invariant, to which order; the published step sizes; isolation; bad input."""

import math

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffeq import AdamsBashforth, EulerMaruyama, Exponential, HalfStep, Heun, Inside, Solver, Tsit5
from dxdt.diffusion import (
    DDIM,
    EDM,
    VE,
    VP,
    Ancestral,
    AnnealedLangevin,
    Churn,
    Corrector,
    Denoiser,
    Identity,
    Langevin,
    LogSNR,
    PredictorCorrector,
    Process,
    RectifiedFlow,
    ReverseDiffusion,
    ReverseSDE,
    SubVP,
    Table,
    draw,
    gaussian_oracle,
    integrate,
    linear_betas,
    sample,
)
from dxdt.paths import Brownian, Increments
from grids import solve_on_grid
from impulses import M, S, exact, law
from processes import PROCESSES, ends

DOUBLE = torch.float64


def pc(predictor, snr: float = 0.16, steps: int = 1, first: bool = True) -> PredictorCorrector:
    return PredictorCorrector(predictor, AnnealedLangevin(snr, steps), first)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_annealed_langevin_leaves_every_marginal_invariant_to_its_order(process: Process):
    low, high = ends(process)
    middle = 0.5 * (low + high)
    grid = torch.tensor([middle, 0.9 * middle], dtype=DOUBLE)
    m, v = exact(process, middle, process.centred)
    r, c = process.a(grid[0]) / process.a(grid[1]), process.c(grid[0])
    errors: list[Tensor] = []
    for snr in (0.2, 0.1):
        mean, variance = law(pc(None, snr), process, grid, 0.0, 1, process.centred)
        e = 2 * r**2 * (snr * c) ** 2
        assert torch.allclose(mean, m, rtol=1e-12, atol=1e-13)
        assert torch.allclose(variance, v + e**2 / v, rtol=1e-12, atol=0)
        errors.append(variance - v)
    assert torch.allclose(errors[0], 16 * errors[1], rtol=1e-6, atol=1e-15)


# Every third of the many processes at once, all of them with -m slow.
MOST = [p if k < 6 or k % 3 == 0 else pytest.param(p, marks=pytest.mark.slow) for k, p in enumerate(PROCESSES)]


def grid_of(process: Process, steps: int) -> Tensor:
    low, high = ends(process)
    lam = process.lam(torch.tensor([high, low], dtype=DOUBLE))
    times = process.time(torch.linspace(lam[0].item(), lam[1].item(), steps + 1, dtype=DOUBLE))
    times[0], times[-1] = high, low
    return times


def error(solver, process: Process, steps: int, tau: float, streams: int) -> float:
    grid = grid_of(process, steps)
    m, v = law(solver, process, grid, tau, streams, process.centred)
    m0, v0 = exact(process, grid[-1].item(), process.centred)
    return max(((m - m0) / v0.sqrt()).abs().max().item(), ((v / v0).sqrt() - 1).abs().max().item())


@pytest.mark.parametrize("process", MOST, ids=repr)
@pytest.mark.parametrize(
    ("solver", "tau", "streams"),
    [(pc(ReverseDiffusion()), 1.0, 1), (pc(Ancestral(), 0.1, 2, first=False), 1.0, 2)],
    ids=["reverse diffusion", "ancestral"],
)
def test_correctors_bring_predictors_nearer_for_every_process(process: Process, solver, tau: float, streams: int):
    plain = error(solver.predictor, process, 40, tau, 0)
    assert error(solver, process, 40, tau, streams) < max(1.05 * plain, 0.03)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("first", [True, False])
def test_flows_with_correctors_reach_the_marginals(process: Process, first: bool):
    for predictor in (Heun(), Tsit5(), DDIM()):
        assert error(pc(predictor, 0.1, 1, first), process, 60, 0.0, 1) < 0.05
    for predictor in (DDIM(), ReverseDiffusion(), EulerMaruyama()):
        plain = error(predictor, process, 60, 0.0, 0)
        assert error(pc(predictor, 0.1, 1, first), process, 60, 0.0, 1) < 0.9 * plain


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=repr)
def test_the_corrector_alone_samples_if_it_moves_often(process: Process):
    # Without a predictor x is drawn to each marginal in turn; it must have time for that.
    low, high = ends(process)
    lam = process.lam(torch.tensor([high, low], dtype=DOUBLE))
    solver = PredictorCorrector(Identity(), AnnealedLangevin(0.2, 20))
    times = process.time(torch.linspace(lam[0].item(), lam[1].item(), 41, dtype=DOUBLE)).clamp(low, high)
    _, v = law(solver, process, times, 0.0, 20)
    v0 = exact(process, times[-2].item())[1]
    assert ((v / v0).sqrt() - 1).abs().max() < 0.25
    assert PredictorCorrector(None, AnnealedLangevin(0.2, 20)).inner == Identity()


def test_the_law_of_a_langevin_move_with_norms_of_samples():
    # For x ~ N(0, v I) the expectation is closed: v' / v = 1 + 8 alpha r^2/(D - 2) + 4 alpha^2 r^4 D/(D - 2).
    process, d, n, snr = VE(), 8, 60_000, 0.3
    grid = torch.tensor([0.6, 0.5], dtype=DOUBLE)
    oracle = gaussian_oracle(process, torch.zeros(d).double(), torch.ones(d).double())
    v = 1 + process.variance(grid[0])
    x = v.sqrt() * torch.randn(n, d, dtype=DOUBLE)
    solver = PredictorCorrector(None, Langevin(snr, expected=True))
    y = solve_on_grid(ReverseSDE(oracle), x, (0.6, 0.5), dt=0.1, solver=solver, driver=Increments(0)).y1
    want = 8 * snr**2 / (d - 2) + 4 * snr**4 * d / (d - 2)
    # The same x before and after: their difference fluctuates less than either.
    change = (y.square() - x.square()).mean(1) / v
    assert (change.mean() - want).abs() < 4 * change.std() / n**0.5
    assert y.mean(0).abs().max() < 4 * (v / n).sqrt() * 1.1


def score_sde_move(x: Tensor, score: Tensor, z: Tensor, snr: float, alpha: float, mean: bool) -> Tensor:
    top, low = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
    if mean:
        top, low = top.mean().expand(len(x)), low.mean().expand(len(x))
    e = (2 * alpha * (snr * top / low) ** 2).reshape(-1, *(1,) * (x.dim() - 1))
    return x + e * score + (2 * e).sqrt() * z


@pytest.mark.parametrize("mean", [False, True])
def test_langevin_steps_are_those_of_score_sde(mean: bool):
    betas = linear_betas(50, 0.1 / 50, 20.0 / 50)
    for process, t, s, alpha in (
        (VE(), 0.5, 0.48, 1.0),
        (VP(Table.from_betas(betas)), 0.8, 0.78, 1 - betas[39].item()),
        (SubVP(), 0.5, 0.45, None),  # has no alphas there
    ):
        grid = torch.tensor([t, s], dtype=DOUBLE)
        alpha = ((process.a(grid[0]) / process.a(grid[1])) ** 2).item() if alpha is None else alpha
        oracle = gaussian_oracle(process, M, S)
        x = torch.randn(4, 3, dtype=DOUBLE)
        solver = PredictorCorrector(None, Langevin(0.17, 2, batch_mean=mean))
        found = solve_on_grid(ReverseSDE(oracle), x, (t, s), dt=t - s, solver=solver, driver=Increments(8)).y1
        bound = Increments(8).bind(t, s, 1, 12, DOUBLE)
        for move in range(2):
            z = bound.normals(0, move, 12).reshape(4, 3)
            x = score_sde_move(x, oracle(x, grid[0]).score, z, 0.17, alpha, mean)
        assert torch.allclose(found, x, rtol=1e-10, atol=1e-12)


def test_the_order_of_corrector_and_predictor_is_a_choice():
    oracle, grid = gaussian_oracle(VP(), M, S), torch.tensor([0.8, 0.7, 0.6], dtype=DOUBLE)
    x = torch.randn(3, 3, dtype=DOUBLE)
    r2 = (VP().a(grid[:-1]) / VP().a(grid[1:])).square()
    bound = Increments(4).bind(0.8, 0.6, 1, 9, DOUBLE)

    def correct(x: Tensor, k: int, t: Tensor) -> Tensor:
        e = 2 * r2[k] * (0.1 * VP().c(t)) ** 2
        return x + e * oracle(x, t).score + (2 * e).sqrt() * bound.normals(k, 0, 9).reshape(3, 3)

    def predict(x: Tensor, k: int) -> Tensor:
        known = oracle(x, grid[k])
        return VP().perturb(known.data, grid[k + 1], known.noise)

    for first in (True, False):
        y = x
        for k in range(2):
            y = predict(correct(y, k, grid[k]), k) if first else correct(predict(y, k), k, grid[k + 1])
        solver = pc(DDIM(), 0.1, 1, first)
        found = solve_on_grid(ReverseSDE(oracle), x, grid, solver=solver, driver=Increments(4)).y1
        assert torch.allclose(found, y, rtol=1e-11, atol=1e-12)


def tame(x: Tensor, clock: Tensor) -> Tensor:
    return 0.5 * x + 0.25 * x * x / (1 + x * x)


SOLVERS = [
    (PredictorCorrector(ReverseDiffusion(), Langevin(0.1, 2)), 1.0, 3),
    (PredictorCorrector(Ancestral(), Langevin(0.1, expected=True), first=False), 1.0, 2),
    (PredictorCorrector(Heun(), AnnealedLangevin(0.1)), 0.0, 3),
    (PredictorCorrector(EulerMaruyama(), AnnealedLangevin(0.1)), 0.5, 2),
    (PredictorCorrector(None, AnnealedLangevin(0.1, 3)), 0.0, 3),
]
each = pytest.mark.parametrize(("solver", "tau", "calls"), SOLVERS, ids=range(len(SOLVERS)))


@each
def test_evaluations_are_counted_truly_which_they_are_not_in_score_sde(solver, tau: float, calls: int):
    seen: list[int] = []

    def net(x: Tensor, clock: Tensor) -> Tensor:
        seen.append(len(x))
        return tame(x, clock)

    found = integrate(Denoiser(net, SubVP()), torch.randn(4, 3), steps=10, tau=tau, solver=solver)
    assert found.stats.evaluations == len(seen) == 10 * calls == 10 * solver.facts.stages


@each
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("driver", [Increments(3), Brownian(3)], ids=lambda d: type(d).__name__)
def test_samples_do_not_depend_on_the_batch_by_the_bit(solver, tau: float, calls: int, per_sample: bool, driver):
    denoiser = Denoiser(tame, VP())
    x = torch.randn(7, 2, 37)
    options = {"steps": 4, "tau": tau, "solver": solver, "per_sample": per_sample, "driver": driver}
    many = integrate(denoiser, x, **options).y1
    for few in (1, 3):
        assert torch.equal(many[:few], integrate(denoiser, x[:few], **options).y1)


def test_means_over_the_batch_tie_samples_together():
    denoiser, x = Denoiser(tame, VP()), torch.randn(4, 3)
    options = {"steps": 4, "tau": 1.0, "solver": PredictorCorrector(Ancestral(), Langevin(0.1, batch_mean=True))}
    assert not torch.equal(integrate(denoiser, x, **options).y1[:2], integrate(denoiser, x[:2], **options).y1)


@each
def test_a_nan_of_the_network_harms_one_sample_and_is_reported(solver, tau: float, calls: int):
    def broken(x: Tensor, clock: Tensor) -> Tensor:
        bad = torch.arange(len(x)) == 1
        return torch.where(bad[:, None] & (clock > 0).reshape(-1, 1), torch.nan, tame(x, clock))

    x = torch.randn(4, 3)
    options = {"steps": 6, "tau": tau, "solver": solver, "per_sample": True}
    with pytest.warns(RuntimeWarning, match="1 of 4 samples failed; sample 1"):
        found = integrate(Denoiser(broken, VP()), x, **options)
    clean = integrate(Denoiser(tame, VP()), x, **options).y1
    assert [s.ok for s in found.status] == [True, False, True, True]
    assert torch.equal(found.y1[[0, 2, 3]], clean[[0, 2, 3]])


@each
def test_gradients_recompute_the_same_noise(solver, tau: float, calls: int):
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(3, 3, dtype=DOUBLE, requires_grad=True)
    options = {"steps": 5, "tau": tau, "solver": solver, "t0": 0.05}
    found = [
        torch.autograd.grad(integrate(oracle, x, gradient=rule, **options).y1.square().sum(), x)[0]
        for rule in (dxdt.Direct(), dxdt.Checkpointed(slots=2))
    ]
    assert torch.allclose(*found, rtol=1e-12, atol=1e-14)


def test_a_score_of_zero_moves_nothing():
    oracle = gaussian_oracle(VE(), M, S)
    x = M.expand(2, 3)  # the mode
    solver = PredictorCorrector(None, Langevin(0.16))
    found = solve_on_grid(ReverseSDE(oracle), x, torch.tensor([0.5, 0.4, 0.3]), solver=solver, driver=Increments(0))
    assert torch.equal(found.y1, x)


@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 4, 4), (1, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("corrector", [Langevin(0.1), AnnealedLangevin(0.1)], ids=str)
def test_shapes_and_dtypes_are_kept(corrector: Corrector, shape: tuple[int, ...], dtype: torch.dtype):
    solver = PredictorCorrector(ReverseDiffusion(), corrector)
    x = sample(Denoiser(tame, SubVP()), shape, steps=3, tau=1.0, solver=solver, dtype=dtype)
    assert x.shape == shape and x.dtype == dtype and x.isfinite().all()


ORACLE = gaussian_oracle(VP(), M, S)
X = torch.zeros(2, 3).double()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Langevin(snr=0.0), "snr > 0"),
        (lambda: AnnealedLangevin(snr=math.nan), "snr > 0"),
        (lambda: Langevin(steps=0), "at least 1 step"),
        (lambda: PredictorCorrector(Heun(), Heun()), "give Langevin"),
        (lambda: PredictorCorrector(AdamsBashforth(), Langevin()), "one-step method"),
        (lambda: integrate(ORACLE, X, steps=5, tau=1.0, solver=pc(Heun())), "predictor for noise"),
        (lambda: integrate(ORACLE, X, solver=pc(Heun())), "give dt|known steps"),
        (
            lambda: solve_on_grid(
                dxdt.SDE(lambda t, y: y, lambda t, y: y), X, (1, 0), dt=0.1, solver=pc(None), driver=Increments(0)
            ),
            "dxdt.diffusion.reverse|Additive",
        ),
        (lambda: solve_on_grid(ReverseSDE(ORACLE), X, (1.0, 0.5), dt=0.1, solver=pc(Heun())), "driver"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_exponential_integrators_serve_inside(tau: float):
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 1.2]).double()
    pair = Exponential(2, nodes=Inside())
    around: list[Solver] = [PredictorCorrector(pair, AnnealedLangevin(0.05))]
    if tau == 0:
        around.append(Churn(pair, 0.3))
    for solver in around:
        options = {"grid": LogSNR(), "driver": Brownian(1), "dtype": torch.float64}
        x = draw(gaussian_oracle(VP(), mean, std), (2000, 2), steps=30, tau=tau, solver=solver, **options).x
        assert ((x.mean(0) - mean).abs() < 4 * std / 2000**0.5 + 0.02).all()
        assert ((x.std(0) / std - 1).abs() < 0.1).all()
    with pytest.raises(ValueError, match="estimates its error by itself"):
        HalfStep(pair)
