"""Moves leave the product space as it is, and DLG's defects are where theory puts them."""

import math

import pytest
import torch

from dxdt import Exponential, Heun
from dxdt.diffusion import VP, Ancestral
from dxdt.diffusion.chains import (
    DensityPosterior,
    DiffusiveGibbs,
    Flow,
    FromPrior,
    LevelGibbs,
    LevelState,
    LevelWalk,
    LogUniform,
    ProductSpace,
    Renoise,
    ResidualPosterior,
    Reversal,
    ScorePosterior,
    SwapLevels,
    ToLevel,
    UpDown,
    WithinLevel,
    dlg,
    dlg_exact,
    edm_churn,
    kar1,
    level_drift,
    level_test,
    predictor_corrector,
    restart,
    walk_jump,
)
from dxdt.mcmc import HMC, MALA, Draws, Energy, LineIntegral, Mixture, Repeat, Sequence, UnadjustedLangevin, march
from mixtures import F64, cube, ring, variation, widths

CHAINS = 2500
RING = ring()
SPACE = ProductSpace(RING, LogUniform(0.01, 20.0), density=True)
POSTERIOR = DensityPosterior(100)


def stationary(space: ProductSpace, chains: int = CHAINS, seed: int = 0) -> LevelState:
    """Independent draws from p(x, sigma)."""
    g = torch.Generator().manual_seed(seed)
    level = space.prior.icdf(torch.rand(chains, generator=g, dtype=F64))
    x0 = space.denoiser.sample(chains, g)
    return LevelState(x0 + level[:, None] * torch.randn(x0.shape, generator=g, dtype=F64), level)


def after(kernel, space: ProductSpace, state: LevelState, steps: int, seed: int = 1) -> LevelState:
    *_, (state, _) = march(kernel, space, state, Draws.of(seed, state.x), steps)
    return state


def conditional_test(space: ProductSpace, state: LevelState) -> float:
    """p of a test that |x - nearest centre|^2 / (s^2 + sigma^2) is as exact draws have it, below and above level 1."""
    least = 1.0
    exact = stationary(space, 20_000, seed=9)
    for rows in (lambda s: s.level < 0.5, lambda s: s.level > 0.5):
        scores = []
        for s in (state, exact):
            known = space.denoiser.log_prob(s.x, space.denoiser.process.time(-s.level.log()))
            scores.append(known[rows(s)] + s.level[rows(s)].log() * s.x.shape[1])
        a, b = (v.sort().values for v in scores)
        both = torch.cat((a, b))
        gap = (
            torch.searchsorted(a, both, right=True) / len(a) - torch.searchsorted(b, both, right=True) / len(b)
        ).abs()
        n = len(a) * len(b) / (len(a) + len(b))
        x = math.sqrt(n) * float(gap.max())
        least = min(
            least, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 50)) if x > 0.3 else 1
        )
    return least


EXACT = {
    "MALA and level": (Sequence((WithinLevel(MALA(1.0)), LevelGibbs(POSTERIOR))), 15),
    "MALA by the score and level": (Sequence((WithinLevel(MALA(0.5, LineIntegral(1))), LevelGibbs(POSTERIOR))), 15),
    "HMC and level": (Sequence((WithinLevel(HMC(0.5, 3)), LevelGibbs(POSTERIOR))), 15),
    "MALA and level from the score": (Sequence((WithinLevel(MALA(1.0)), LevelGibbs(ScorePosterior(64, 0)))), 3),
    "underdamped, adjusted": (Sequence((walk_jump(0.5, 1.0, Energy()), LevelGibbs(POSTERIOR))), 15),
    "flow to the prior": (ToLevel(FromPrior(), Flow(24)), 12),
    "flow along a walk": (ToLevel(LevelWalk(0.04), Flow(1)), 20),
    "adaptive flow": (ToLevel(FromPrior(), Flow(None, rtol=1e-3, atol=1e-3)), 1),
    "noise up, flow down": (ToLevel(LevelWalk(0.04), UpDown(Renoise(), Flow(2))), 20),
    "noise up, reversal down": (ToLevel(LevelWalk(0.04), UpDown(Renoise(), Reversal(3, Ancestral()))), 12),
    "noise up, exponential down": (ToLevel(FromPrior(), UpDown(Renoise(), Flow(12, Exponential(order=2)))), 6),
    "swap by the density": (SwapLevels(4), 20),
    "swap by the flow": (SwapLevels(4, Flow(24)), 4),
    "mixture": (Mixture((WithinLevel(MALA(1.0)), LevelGibbs(POSTERIOR), ToLevel(LevelWalk(0.04), Flow(2)))), 30),
}


LONG = ("MALA by the score and level", "HMC and level", "underdamped, adjusted", "adaptive flow", "swap by the flow")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in EXACT])
def test_exact_kernels_leave_the_product_space_as_it_is(name):
    """From exact draws on: levels keep their prior, x its law given the level, modes their weights and widths."""
    kernel, steps = EXACT[name]
    start = stationary(SPACE)
    end = after(kernel, SPACE, start, steps)
    assert level_test(end.level, SPACE.prior).p > 1e-3
    assert conditional_test(SPACE, end) > 1e-3
    x, x0 = (kar1(30)(SPACE, s.x, s.level)[0] for s in (end, start))
    assert variation(RING, x) < 0.04  # 0.016 is the mean for as many exact draws
    assert widths(RING, x) == pytest.approx(widths(RING, x0), rel=0.05)
    moved = (end.x != start.x).any(1)
    assert moved.double().mean() > 0.2


def test_successive_conditionals_have_the_joint_law():
    """Geweke's test: functions of (x, sigma) along chains of both conditionals have the means of independent draws."""
    kernel = Sequence((WithinLevel(MALA(1.0)), LevelGibbs(POSTERIOR)))
    state, independent = stationary(SPACE, 2000), stationary(SPACE, 60_000, seed=5)
    functions = (
        lambda s: s.level.log(),
        lambda s: s.level.log().square(),
        lambda s: s.x[:, 0].tanh() * s.level.log(),
        lambda s: (s.x.norm(dim=1) / (1 + s.level)).tanh(),
        lambda s: (RING.nearest(s.x) == 7).double() * (s.level < 1),
    )
    totals = [torch.zeros(2000, dtype=F64) for _ in functions]
    for new, _ in march(kernel, SPACE, state, Draws.of(3, state.x), 20):
        for total, f in zip(totals, functions, strict=True):
            total += f(new) / 20
    for total, f in zip(totals, functions, strict=True):
        exact = f(independent).double()
        error = math.sqrt(float(total.var()) / 2000 + float(exact.var()) / 60_000)
        assert abs(float(total.mean() - exact.mean())) < 4 * error


def test_levels_show_the_bias_of_a_langevin_step():
    """Kolmogorov distances of spec 2.3: 0.2 and 0.4 for absolute steps of 0.1 and 0.5, within noise for 0.1 sigma^2."""
    for step, relative, low, high in ((0.1, True, 0, 0.045), (0.1, False, 0.15, 0.25), (0.5, False, 0.37, 0.47)):
        kernel = Sequence((WithinLevel(UnadjustedLangevin(step), relative), LevelGibbs(POSTERIOR)))
        end = after(kernel, SPACE, stationary(SPACE, 1200), 40)
        assert low < level_test(end.level, SPACE.prior).distance < high


def test_the_most_probable_level_collapses_in_the_plane_and_a_draw_does_not():
    kernel = Sequence((WithinLevel(MALA(1.0)), LevelGibbs(POSTERIOR, draw=False)))
    end = after(kernel, SPACE, stationary(SPACE, 1000), 40)
    assert level_test(end.level, SPACE.prior).distance > 0.9
    assert float(end.level.median()) < 0.02
    assert widths(RING, kar1(30)(SPACE, end.x, end.level)[0]) < 0.8
    drawn = after(dlg_exact(1.0, POSTERIOR, Energy()), SPACE, stationary(SPACE, 1000), 40)
    assert level_test(drawn.level, SPACE.prior).p > 1e-3


def test_dlg_drifts_as_the_law_says():
    """sigma_n^4 = sigma_0^4 + n h^2 / 2 within 3 % at n = 100 and D = 1,024, never below sqrt(h)."""
    oracle = cube(1024, 0.02, even=True, seed=1)
    space = ProductSpace(oracle)
    g = torch.Generator().manual_seed(0)
    x = oracle.sample(24, g) + 0.5 * torch.randn(24, 1024, dtype=F64, generator=g)
    state, h = space.start(x, 0.5), 0.5
    levels = [s.level.mean() for s, _ in march(dlg(h, DensityPosterior(1000)), space, state, Draws.of(1, x), 100)]
    assert float(levels[0]) == pytest.approx(math.sqrt(0.25 + h**2 / (4 * 0.25)), rel=0.02)
    assert float(levels[-1]) == pytest.approx((0.5**4 + 100 * h**2 / 2) ** 0.25, rel=0.03)
    assert all(level > 0.99 * math.sqrt(h) for level in levels)


@pytest.mark.parametrize("posterior", [DensityPosterior(1500), ResidualPosterior()], ids=["density", "residual"])
def test_the_corrected_step_with_draws_does_not_drift(posterior):
    """Spec 2.2: +0.0003 a sweep at D = 256 with draws (a sampling error), where DLG grows by half in 5 sweeps."""
    oracle = cube(256, 0.02, even=True, seed=1)
    space = ProductSpace(oracle)
    g = torch.Generator().manual_seed(0)
    x = oracle.sample(60, g) + 0.5 * torch.randn(60, 256, dtype=F64, generator=g)
    state = space.start(x, 0.5)
    kernel = dlg_exact(0.5, posterior)
    levels = torch.stack([s.level for s, _ in march(kernel, space, state, Draws.of(1, x), 40)], 1)
    drift = level_drift(levels)
    assert abs(drift.slope) < 4 * drift.standard_error + 5e-4
    plain = dlg(0.2, DensityPosterior(500))
    risen = torch.stack([s.level for s, _ in march(plain, space, state, Draws.of(1, x), 40)], 1)
    assert level_drift(risen).slope > 10 * abs(drift.slope)


FACTORIES = {
    "restart": restart(0.4, 4.0, 6),
    "churn": edm_churn(0.4, 4.0, 8),
    "predictor and corrector": predictor_corrector(0.4, 4.0, 30, 0.5, 1, Energy()),
    "walk": walk_jump(0.5, 1.0, Energy()),
    "diffusive Gibbs": DiffusiveGibbs(1.0, Repeat(MALA(0.5), 3)),
    "diffusive Gibbs by the score": DiffusiveGibbs(1.0, Repeat(MALA(0.5, LineIntegral(2)), 3)),
}


@pytest.mark.parametrize("process", [None, VP()], ids=["EDM", "VP"])
@pytest.mark.parametrize("name", FACTORIES)
def test_samplers_as_compositions_keep_the_law_at_their_level(name, process):
    """Started from p_sigma at one level, they end in it: modes, and widths around them."""
    if process is not None and name not in ("restart", "diffusive Gibbs"):
        return
    oracle = ring(process, radius=2.0)
    space = ProductSpace(oracle, LogUniform(0.1, 20.0), density=True)
    g = torch.Generator().manual_seed(0)
    x = oracle.sample(CHAINS, g) + 0.4 * torch.randn(CHAINS, 2, dtype=F64, generator=g)
    end = after(FACTORIES[name], space, space.start(x, 0.4), 6)
    assert bool((end.level == 0.4).all())
    drawn, _ = kar1(30, 0.1)(space, end.x, end.level)
    assert variation(oracle, drawn) < 0.04
    exact = stationary(ProductSpace(oracle, LogUniform(0.399, 0.401)), 20_000, seed=3)
    t = oracle.process.time(-torch.tensor(0.4, dtype=F64).log())
    a = oracle.process.a(t)
    here, there = oracle.log_prob(a * end.x, t).sort().values, oracle.log_prob(a * exact.x, t).sort().values
    u = torch.linspace(0.05, 0.95, 19, dtype=F64)
    gap = torch.searchsorted(here, torch.quantile(there, u)) / len(here) - u
    assert float(gap.abs().max()) < 0.035


def test_evaluations_of_moves():
    state = stationary(SPACE, 8)
    told = {
        "restart": (restart(0.4, 4.0, 3), 6),
        "churn": (edm_churn(0.4, 4.0, 3), 6),
        "exponential": (ToLevel(0.01, Flow(5, Exponential(order=2))), 5),
        "reversal": (ToLevel(0.01, Reversal(7)), 7),
        "walk": (walk_jump(), 2),
        "noise": (ToLevel(20.0, Renoise()), 0),
        "score posterior": (LevelGibbs(ScorePosterior(8, 4)), 24),
        "predictor": (predictor_corrector(0.4, 4.0, 3, moves=2), 9),
    }
    for name, (kernel, expected) in told.items():
        _, info = kernel.step(SPACE, state, Draws.of(0, state.x))
        assert info.evaluations == expected, name


def test_a_score_that_is_known_is_not_asked_again():
    kernel = Sequence((WithinLevel(MALA(0.5)), WithinLevel(MALA(0.5)), LevelGibbs(POSTERIOR), WithinLevel(MALA(0.5))))
    state = stationary(SPACE, 4)
    told = [info.evaluations for _, info in march(kernel, SPACE, state, Draws.of(0, state.x), 2)]
    assert told == [5, 4]  # the level's move makes the score unknown


@pytest.mark.parametrize("kernel", [*(k for k, _ in EXACT.values()), *FACTORIES.values()])
def test_chains_depend_on_their_own_number_alone(kernel):
    """To rounding: on the batch."""
    state = stationary(SPACE, 8)
    if kernel in FACTORIES.values():
        state = SPACE.start(state.x, 0.4)
    part = LevelState(state.x[4:], state.level[4:])
    whole = after(kernel, SPACE, state, 2)
    *_, (alone, _) = march(kernel, SPACE, part, Draws.of(1, part.x, first=4), 2)
    torch.testing.assert_close(alone.x, whole.x[4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.level, whole.level[4:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToLevel(-1.0, Renoise()), "no noise level"),
        (lambda: Flow(0), "goes nowhere"),
        (lambda: Reversal(1, tau=0.0), "no way down"),
        (lambda: LevelWalk(0.0), "stays where it is"),
        (lambda: SwapLevels(1), "leave nobody"),
        (lambda: after(ToLevel(90.0, Renoise()), SPACE, stationary(SPACE, 4), 1), "not inside the prior's"),
        (lambda: after(SwapLevels(3), SPACE, stationary(SPACE, 4), 1), "do not fill ladders"),
        (lambda: after(ToLevel(20.0, Flow(3, Exponential())), SPACE, stationary(SPACE, 4), 1), "down only"),
        (lambda: after(DiffusiveGibbs(0.02, MALA(0.1)), SPACE, stationary(SPACE, 20), 1), "not below"),
        (lambda: after(WithinLevel(MALA(0.1)), ProductSpace(RING), stationary(SPACE, 4), 1), "no log density"),
        (lambda: level_test(torch.zeros(0), LogUniform(0.1, 1.0)), "no levels"),
        (lambda: level_drift(torch.ones(1, 5)), "show no drift"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_default_solver_of_a_restart_is_heun():
    assert Flow().solver == Heun()
