"""Laws of the kernels: what they leave invariant, what they cost, and that chains do not see each other."""

import math

import pytest
import torch
from torch import Tensor

from dxdt import BlanesMoan4, BlanesMoan6, SemiImplicitEuler, ShARK, StoermerVerlet, Yoshida4
from dxdt.mcmc import (
    HMC,
    MALA,
    Density,
    Draws,
    Energy,
    LangevinSDE,
    LineIntegral,
    Mixture,
    Repeat,
    Scaled,
    Score,
    Sequence,
    State,
    UnadjustedLangevin,
    UnderdampedLangevin,
    march,
    run_chains,
)

F64 = torch.float64


def logistic(x: Tensor) -> Tensor:
    """Log density of independent logistic entries: heavier tails than a normal law, and known quantiles."""
    return (-x - 2 * torch.nn.functional.softplus(-x)).flatten(1).sum(1)


def logistic_draw(chains: int, size: int, seed: int) -> Tensor:
    u = torch.rand(chains, size, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return (u / (1 - u)).log()


LOGISTIC = Density(logistic)
LOGISTIC_SCORE = Score(lambda x: 1 - 2 * torch.sigmoid(x))
NORMAL = Density(lambda x: -0.5 * x.square().flatten(1).sum(1))


def kolmogorov(u: Tensor) -> float:
    """Distance of numbers from the uniform law, in units of its 1 % quantile for so many independent ones."""
    u = u.flatten().sort().values
    n = len(u)
    place = torch.arange(n, dtype=u.dtype)
    distance = torch.maximum((u - place / n).max(), ((place + 1) / n - u).max())
    return float(distance) * math.sqrt(n) / 1.63


EXACT = {
    "MALA": MALA(1.5),
    "HMC": HMC(0.7, 3),
    "HMC, jitter": HMC(0.7, 3, jitter=0.5),
    "HMC, Yoshida": HMC(1.2, 1, Yoshida4()),
    "HMC, Blanes-Moan 4": HMC(1.5, 1, BlanesMoan4()),
    "HMC, Blanes-Moan 6": HMC(2.0, 1, BlanesMoan6()),
    "underdamped": UnderdampedLangevin(0.9, 0.7, Energy()),
    "line integral": MALA(1.5, LineIntegral(3)),
    "HMC, line integral": HMC(0.7, 3, ratio=LineIntegral(3)),
    "underdamped, line integral": UnderdampedLangevin(0.9, 0.7, LineIntegral(3)),
    "scaled": Scaled(MALA(1.0), torch.tensor([2.0, 0.7], dtype=F64)),
    "sequence": Sequence((MALA(1.5), UnderdampedLangevin(0.9, 0.7, Energy()), HMC(0.7, 2))),
    "mixture": Mixture((MALA(1.5), Repeat(MALA(0.3), 2)), (0.7, 0.3)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_kernels_leave_the_target_as_it_is(name):
    start = logistic_draw(4000, 2, seed=1)
    assert kolmogorov(torch.sigmoid(start)) < 1
    target = LOGISTIC_SCORE if "line" in name else LOGISTIC
    chains = run_chains(EXACT[name], target, start, draws=1, thin=25, seed=3)
    assert kolmogorov(torch.sigmoid(chains.x[:, 0])) < 1
    # All but a few chains have moved, and what is accepted is said.
    assert (chains.x[:, 0] != start).any(1).double().mean() > 0.97
    assert 0.5 < chains.statistics["acceptance"].mean() < 1


def test_the_same_test_sees_the_bias_of_an_unadjusted_step():
    start = logistic_draw(4000, 2, seed=1)
    chains = run_chains(UnadjustedLangevin(3.0), LOGISTIC, start, draws=1, thin=25, seed=3)
    assert kolmogorov(torch.sigmoid(chains.x[:, 0])) > 2


@pytest.mark.parametrize("kernel", [MALA(1.5), HMC(0.7, 3), MALA(1.5, LineIntegral())], ids=["MALA", "HMC", "line"])
def test_detailed_balance_on_a_normal_law(kernel):
    """E[f(x) g(x')] = E[g(x) f(x')] for x from the target and x' one step later."""
    n = 40_000
    x = torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    target = Score(lambda x: -x) if kernel == MALA(1.5, LineIntegral()) else NORMAL
    new, _ = kernel.step(target, State(x), Draws.of(1, x))
    a, b = x[:, 0], new.x[:, 0]
    for f, g in ((torch.tanh, torch.square), (torch.sin, torch.exp), (lambda x: (x > 1).double(), torch.abs)):
        flux = f(a) * g(b) - g(a) * f(b)
        assert abs(flux.mean()) < 4 * flux.std() / math.sqrt(n)


@pytest.mark.parametrize(
    ("kernel", "variance"),
    [
        (UnadjustedLangevin(1.0), 1 / (1 - 0.25)),
        (UnadjustedLangevin(1.0, curvature=1.0), 1.0),
        (UnderdampedLangevin(1.0, 1.0), 1 / (1 - 0.25)),
        (LangevinSDE(0.5), 1 / (1 - 0.125)),
        (LangevinSDE(0.25, 4, friction=2.0), None),
    ],
    ids=["Langevin", "curvature", "OBABO", "Euler-Maruyama", "underdamped Euler-Maruyama"],
)
def test_unadjusted_kernels_have_the_variance_that_theory_says(kernel, variance):
    """Fixed points of the exact moment recursions on N(0, 1)."""
    x = torch.randn(4000, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    chains = run_chains(kernel, NORMAL, x, draws=8, burn_in=12, thin=4, seed=5)
    if variance is None:
        h, friction = 0.25, 2.0
        step = torch.tensor([[1.0, h], [-h, 1 - friction * h]], dtype=F64)
        noise = torch.diag(torch.tensor([0.0, 2 * friction * h], dtype=F64))
        cov = torch.eye(2, dtype=F64)
        for _ in range(500):
            cov = step @ cov @ step.T + noise
        variance = float(cov[0, 0])
    # 128,000 numbers, correlated along a chain: a standard error of one per cent at most.
    assert chains.x.var() == pytest.approx(variance, rel=0.03)


def test_a_solver_of_weak_order_two_biases_less():
    x = torch.randn(4000, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = run_chains(LangevinSDE(0.5, 2, ShARK()), NORMAL, x, draws=8, burn_in=8, thin=2, seed=5)
    assert found.x.var() == pytest.approx(1, abs=0.03)
    assert found.evaluations == 24 * 4


@pytest.mark.parametrize(
    ("kernel", "first", "later"),
    [
        (UnadjustedLangevin(0.5), 1, 1),
        (MALA(0.5), 2, 1),
        (MALA(0.5, LineIntegral(0)), 2, 1),
        (MALA(0.5, LineIntegral(2)), 4, 3),
        (HMC(0.5, 4), 5, 4),
        (HMC(0.5, 4, ratio=LineIntegral(1)), 9, 8),
        (HMC(0.5, 2, Yoshida4()), 7, 6),
        (UnderdampedLangevin(0.5), 2, 1),
        (Repeat(MALA(0.5), 3), 4, 3),
        (Sequence((MALA(0.5), HMC(0.5, 2))), 4, 3),
    ],
)
def test_evaluations_are_those_that_were_made(kernel, first, later):
    asked = []

    def log_prob(x):
        asked.append(len(x))
        return logistic(x)

    state = State(torch.zeros(5, 2, dtype=F64))
    told = [info.evaluations for _, info in march(kernel, Density(log_prob), state, Draws.of(0, state.x), 3)]
    assert told == [first, later, later]
    assert asked == [5] * (first + 2 * later)


def test_the_line_integral_converges_to_the_difference_of_densities():
    x = logistic_draw(200, 3, seed=2)
    y = x + 1.5 * torch.randn(200, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact = logistic(y) - logistic(x)
    places = [(x, LOGISTIC(x)), (y, LOGISTIC(y))]
    errors = []
    for inner in (0, 1, 3, 7):
        value, evaluations = LineIntegral(inner)(LOGISTIC_SCORE, places)
        assert evaluations == inner
        errors.append(float((value - exact).abs().max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[3] < 1e-4
    # Exact for polynomials: n inner nodes integrate a score of degree 2 n + 1.
    cubic = Score(lambda x: x**3)
    value, _ = LineIntegral(1)(cubic, [(x, cubic(x)), (y, cubic(y))])
    torch.testing.assert_close(value, ((y**4 - x**4) / 4).sum(1))


def test_leapfrog_along_its_trajectory_needs_no_energy():
    """On a normal law the trapezoid is exact, so both kinds of HMC make the same decisions."""
    x = torch.randn(50, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    a, b = (
        run_chains(HMC(1.4, 5, ratio=ratio), target, x, draws=20, seed=1)
        for ratio, target in ((Energy(), NORMAL), (LineIntegral(), Score(lambda x: -x)))
    )
    torch.testing.assert_close(a.x, b.x)
    assert a.statistics["acceptance"].mean() < 0.99
    torch.testing.assert_close(a.statistics["energy_error"], b.statistics["energy_error"])


EVERY = {**EXACT, "Langevin": UnadjustedLangevin(0.5), "OBABO": UnderdampedLangevin(0.5), "SDE": LangevinSDE(0.1, 3)}


@pytest.mark.parametrize("name", EVERY)
def test_chains_depend_on_their_own_number_alone(name):
    """Bit by bit: on the batch, on where a run was taken up, and on what the others do."""
    x = logistic_draw(6, 2, seed=1)
    target = LOGISTIC_SCORE if "line" in name else LOGISTIC
    whole = run_chains(EVERY[name], target, x, draws=6, seed=3)
    part = run_chains(EVERY[name], target, x[4:], draws=6, seed=3, first=4)
    assert torch.equal(part.x, whole.x[4:])
    begun = run_chains(EVERY[name], target, x, draws=2, seed=3)
    rest = run_chains(EVERY[name], target, begun.state, draws=4, seed=3, steps=begun.steps)
    assert torch.equal(rest.x, whole.x[:, 2:])
    other = run_chains(EVERY[name], target, x, draws=6, seed=4)
    assert not torch.equal(other.x, whole.x)


def test_a_chain_that_fails_harms_no_other_and_is_named():
    def log_prob(x):
        return torch.where(x[:, 0] > 2, torch.nan, -0.5 * x.square().sum(1))

    x = torch.tensor([[0.1], [5.0], [0.2]], dtype=F64)
    alone = run_chains(MALA(0.5), NORMAL, x[:1], draws=9, seed=0)
    chains = run_chains(MALA(0.5), Density(log_prob), x, draws=9, seed=0)
    assert torch.isfinite(chains.x).all()  # what is not a number is rejected
    torch.testing.assert_close(chains.x[0], alone.x[0])
    with pytest.warns(UserWarning, match=r"1 of 3 chains left the finite numbers \(chains 1\)"):
        lost = run_chains(UnadjustedLangevin(0.5), Score(lambda x: torch.where(x > 2, torch.nan, -x)), x, draws=9)
    assert torch.isfinite(lost.x[[0, 2]]).all() and torch.isnan(lost.x[1]).all()


def test_half_precision_and_images():
    x = torch.zeros(3, 1, 4, 4, dtype=torch.bfloat16)
    chains = run_chains(MALA(0.1), NORMAL, x, draws=3, keep=lambda x: x.mean((1, 2, 3)))
    assert chains.x.shape == (3, 3) and chains.state.x.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MALA(0.0), "step_size=0.0 is not positive"),
        (lambda: UnadjustedLangevin(4.0, 1.0), "leaves no noise"),
        (lambda: HMC(0.1, 0), "no trajectory"),
        (lambda: HMC(0.1, 1, SemiImplicitEuler()), "begins with a drift"),
        (lambda: UnderdampedLangevin(0.1, -1.0), "friction=-1.0 is not positive"),
        (lambda: LineIntegral(-1), "no rule"),
        (lambda: Sequence(()), "no kernel"),
        (lambda: Repeat(MALA(0.1), 0), "moves nothing"),
        (lambda: Mixture((MALA(0.1),), (0.5, 0.5)), "do not belong"),
        (lambda: Scaled(MALA(0.1), torch.zeros(2)), "not positive"),
        (lambda: run_chains(MALA(0.1), LOGISTIC_SCORE, torch.zeros(2, 1), draws=1), "no log density"),
        (lambda: run_chains(MALA(0.1), NORMAL, torch.zeros(0, 1), draws=1), "no chains"),
        (lambda: run_chains(MALA(0.1), NORMAL, torch.zeros(2, 1), draws=0), "keep nothing"),
        (lambda: run_chains(MALA(0.1), NORMAL, torch.full((2, 1), torch.nan), draws=1), "not finite"),
        (lambda: run_chains(MALA(0.1), Density(lambda x: x.sum()), torch.zeros(2, 1), draws=1), "does not belong"),
        (lambda: run_chains(MALA(0.1), Score(lambda x: x[:, 0]), torch.zeros(2, 1), draws=1), "does not belong"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_leapfrog_begins_with_a_kick():
    assert StoermerVerlet().composition.kicks_first
