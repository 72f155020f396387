"""The reverse equation of every process carries its marginals, for every share of noise."""

import pytest
import torch

from dxdt.diffeq import PID, Tsit5, solve
from dxdt.diffusion import (
    VP,
    GaussianOracle,
    MeanReverting,
    Process,
    RectifiedFlow,
    SubVP,
    Table,
    linear_betas,
    reverse,
)
from processes import PROCESSES, ends, grid

M, S2 = torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([0.1, 0.6, 1.4]).double()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_moments_of_the_reverse_equation_are_those_of_the_diffusion(process: Process, tau: float):
    # For Gaussian data the drift is k x + d: M' = k M + d and V' = 2 k V - tau^2 g^2, since its noise
    # enters as t falls.
    t = grid(process, 9)[1:-1] + 1.23e-5 * process.t1
    mu = torch.tensor([0.3, 0.1, -0.7]).double().expand(7, 3)
    equation = reverse(GaussianOracle(process, M, torch.diag(S2)), tau, mu)
    zero = torch.zeros(7, 3, dtype=torch.float64)
    d = equation.drift(t, zero)
    k = equation.drift(t, zero + 1) - d
    at, r = process.moments(t, zero), process.rates(t, zero)
    mean, variance = at.a * M + at.b * mu, at.a**2 * S2 + at.c**2
    slope = r.a * M + r.b * mu
    turn = 2 * at.a * r.a * S2 + 2 * at.c * r.c
    g2 = equation.diffusion(t, zero).square() if tau > 0 else zero
    size = slope.abs().max().item() + (k * mean).abs().max().item()
    assert torch.allclose(k * mean + d, slope, rtol=1e-8, atol=1e-9 * size)
    size = turn.abs().max().item() + g2.abs().max().item()
    assert torch.allclose(2 * k * variance - g2, turn, rtol=1e-8, atol=1e-9 * size)
    if tau > 0:
        assert torch.allclose(g2, tau**2 * r.g2.expand(7, 3), rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_affine_part_is_that_of_the_process(process: Process):
    t, mu = grid(process, 5), torch.randn(5, 3, dtype=torch.float64)
    oracle = GaussianOracle(process, M, torch.diag(S2))
    equation = reverse(oracle, 0.5, mu)
    x = torch.randn(5, 3, dtype=torch.float64)
    for name in ("a", "b", "c", "lam"):
        assert torch.equal(getattr(equation, name)(t), getattr(process, name)(t))
    assert torch.equal(equation.time(process.lam(t)), process.time(process.lam(t)))
    assert torch.equal(equation.remainder(t, x).data, oracle(x, t, mu).data)
    assert equation.process is process and equation.tau == 0.5


SMOOTH = [
    p for p in PROCESSES if "Table" not in repr(p) or "Smooth" in repr(p)
]  # generic solvers stumble over jumps of rates


@pytest.mark.parametrize("process", SMOOTH, ids=repr)
def test_a_generic_solver_follows_the_exact_flow(process: Process):
    covariance = torch.tensor([[0.5, 0.2, 0.1], [0.2, 0.6, 0.0], [0.1, 0.0, 0.3]]).double()
    oracle = GaussianOracle(process, M, covariance)
    eps, mu = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    late, early = (torch.tensor(s, dtype=torch.float64) for s in reversed(ends(process)))
    x = process.perturb(M.expand(4, 3), late, eps, mu)
    span = (late.item(), early.item())
    found = solve(reverse(oracle, 0.0, mu), x, span, solver=Tsit5(), controller=PID(1e-7, 1e-7)).y1
    assert torch.allclose(found, oracle.transport(x, late, early, mu), atol=1e-5)


def test_the_flow_is_finite_where_the_data_are_forgotten():
    x = torch.randn(2, 3, dtype=torch.float64)
    last = torch.ones((), dtype=torch.float64)
    for process in (VP(), SubVP(), RectifiedFlow(), VP(Table.from_betas(linear_betas()))):
        assert torch.isfinite(reverse(GaussianOracle(process, M, torch.diag(S2))).drift(last, x)).all()


def test_drift_in_float32_is_the_float64_one():
    process = MeanReverting()
    x, t = torch.randn(4, 3), torch.tensor([3.0, 20.0, 50.0, 99.0])
    equation = reverse(GaussianOracle(process, M, torch.diag(S2)), 1.0, 0.3 + 0 * x)
    low, high = equation.drift(t, x), reverse(equation.denoiser, 1.0, 0.3 + 0 * x.double()).drift(t, x.double())
    assert low.dtype == torch.float32
    assert torch.allclose(low.double(), high, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_a_share_of_noise_outside_its_range_is_refused(tau: float):
    with pytest.raises(ValueError, match="share of noise"):
        reverse(GaussianOracle(VP(), M, torch.diag(S2)), tau)
