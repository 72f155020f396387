"""Oracles: scores are gradients of densities, covariances are exact, flows carry their laws."""

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    EDM,
    VP,
    GaussianOracle,
    JointOracle,
    MeanReverting,
    MixtureOracle,
    OUBridge,
    Process,
    covariance_product,
    gaussian_oracle,
    posterior_covariance,
)
from processes import PROCESSES, grid

each = pytest.mark.parametrize("process", PROCESSES, ids=repr)
M = torch.tensor([[0.5, -1.0], [0.2, 0.0]]).double()
ROOT = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
S = ROOT @ ROOT.T / 4 + 0.05 * torch.eye(4).double()
H = torch.eye(4).double() * 0.8 + 0.1
R = 0.04 * torch.eye(4).double()


def mixture(process: Process) -> MixtureOracle:
    return MixtureOracle(
        process,
        torch.tensor([0.2, 0.5, 0.3]).double(),
        torch.tensor([[-1.0, 0.5], [0.3, 0.2], [1.0, -0.8]]).double(),
        torch.tensor([[0.2, 0.4], [0.3, 0.1], [0.5, 0.5]]).double(),
    )


def oracles(process: Process) -> list:
    return [mixture(process), GaussianOracle(process, M, S), JointOracle(process, M, S, H, R)]


def states(process: Process, oracle) -> tuple[Tensor, Tensor, Tensor]:
    shape = (2,) if isinstance(oracle, MixtureOracle) else (2, 2)
    x0, eps, mu = torch.randn(3, 5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = grid(process, 5)
    return process.perturb(x0, t, eps, mu), t, mu


@each
@pytest.mark.parametrize("which", [0, 1, 2])
def test_scores_are_gradients_of_densities(process: Process, which: int):
    oracle = oracles(process)[which]
    x, t, mu = states(process, oracle)
    for mean in (mu,) if which == 2 else (mu, None):
        y = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(oracle.log_prob(y, t, mean).sum(), y)
        found = oracle(x, t, mean)
        assert torch.allclose(found.score, score, rtol=1e-8, atol=1e-8 * score.abs().max().item())
        # data and noise are two views of one answer
        assert torch.allclose(process.perturb(found.data, t, found.noise, mean), x, rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("which", [0, 1, 2])
def test_covariances_are_jacobians(process: Process, which: int):
    oracle = oracles(process)[which]
    x, t, mu = states(process, oracle)
    exact = oracle.posterior_covariance(x, t, mu)
    found = posterior_covariance(oracle, x, t, mu)
    assert torch.allclose(found, exact, rtol=1e-7, atol=1e-9)
    assert torch.allclose(exact, exact.mT, atol=1e-12)
    v = torch.randn_like(x)
    product = covariance_product(oracle, x, t, v, mu)
    assert torch.allclose(product.flatten(1), (exact @ v.flatten(1)[..., None])[..., 0], rtol=1e-7, atol=1e-9)


def test_densities_are_normalised():
    axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    full = GaussianOracle(VP(), torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double())
    for oracle in (mixture(VP()), full):
        for t in (1e-5, 0.3, 1.0):
            p = oracle.log_prob(plane, torch.tensor(t)).exp().sum() * (axis[1] - axis[0]) ** 2
            assert p.item() == pytest.approx(1.0, abs=1e-6)


@each
def test_independent_entries_are_a_special_case(process: Process):
    std = torch.tensor([[0.3, 0.8], [1.2, 0.1]]).double()
    full, plain = GaussianOracle(process, M, torch.diag(std.flatten() ** 2)), gaussian_oracle(process, M, std)
    x, t, mu = states(process, full)
    one, other = full(x, t, mu), plain(x, t, mu)
    assert torch.allclose(one.data, other.data, rtol=1e-10, atol=1e-12)
    assert torch.allclose(one.noise, other.noise, rtol=1e-10, atol=1e-12)
    assert torch.allclose(full.log_prob(x, t, mu), plain.log_prob(x, t, mu), rtol=1e-10)
    assert torch.allclose(full.posterior_covariance(x, t, mu), plain.posterior_covariance(x, t, mu), atol=1e-12)


@each
def test_the_transport_is_the_flow(process: Process):
    oracle = GaussianOracle(process, M, S)
    t, h = grid(process, 7)[1:-1] + 1.23e-5 * process.t1, 1e-6 * process.t1
    x, mu = torch.randn(2, 5, 2, 2, dtype=torch.float64)
    moved = oracle.transport(x, t - h, t + h, mu)
    middle = oracle.transport(x, t - h, t, mu)
    velocity = oracle(middle, t, mu).velocity
    assert torch.allclose((moved - x) / (2 * h), velocity, rtol=1e-4, atol=1e-5 * velocity.abs().max().item())
    back = oracle.transport(moved, t + h, t - h, mu)
    assert torch.allclose(back, x, rtol=1e-10, atol=1e-10)


def test_a_restoration_is_a_gaussian_law_for_each_degraded_datum():
    process = MeanReverting(0.3)
    joint = JointOracle(process, M, S, H, R)
    x, t, mu = states(process, joint)
    gain = S @ H.T @ torch.linalg.inv(H @ S @ H.T + R)
    for row in range(5):
        centre = M.flatten() + gain @ (mu[row].flatten() - H @ M.flatten())
        alone = GaussianOracle(process, centre.reshape(2, 2), S - gain @ H @ S)
        one, other = joint(x, t, mu).data[row], alone(x, t, mu).data[row]
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)
        assert torch.allclose(joint.log_prob(x, t, mu)[row], alone.log_prob(x, t, mu)[row], rtol=1e-9)


@pytest.mark.parametrize("process", [VP(), MeanReverting(0.3), EDM(), OUBridge(0.3)], ids=repr)
def test_restoring_keeps_the_joint_law(process: Process):
    # Linear maps of Gaussians: sampling x_0 exactly from x_t given mu has the law of (x_0, mu) again.
    # E[Cov[x_0 | x_t, mu]] + Cov[E[x_0 | x_t, mu]] = S, and Cov[E[x_0 | x_t, mu], mu] = S H^T.
    joint = JointOracle(process, M, S, H, R)
    t = grid(process, 3)[1]
    zero = torch.zeros(1, 2, 2, dtype=torch.float64)
    base = joint(zero, t, zero).data.flatten()

    def slopes(of_x: bool) -> Tensor:
        unit = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
        moved = joint(unit if of_x else zero.expand(4, 2, 2), t, zero.expand(4, 2, 2) if of_x else unit).data
        return (moved.flatten(1) - base).T

    X, Y = slopes(True), slopes(False)
    a, b, c2 = (f(t).item() for f in (process.a, process.b, process.variance))
    mm = H @ S @ H.T + R
    xm = a * S @ H.T + b * mm
    xx = a**2 * S + a * b * (S @ H.T + H @ S) + b**2 * mm + c2 * torch.eye(4).double()
    cross = X @ xm + Y @ mm
    spread = X @ xx @ X.T + X @ xm @ Y.T + (X @ xm @ Y.T).T + Y @ mm @ Y.T
    left = joint.posterior_covariance(zero, t, zero)[0]
    assert torch.allclose(cross, S @ H.T, atol=1e-10)
    assert torch.allclose(spread + left, S, atol=1e-10)


def test_oracles_answer_in_the_dtype_of_the_question():
    for oracle in (GaussianOracle(VP(), M, S), JointOracle(VP(), M, S, H, R)):
        x = torch.randn(3, 2, 2)
        answer = oracle(x, torch.tensor(0.3), x)
        assert answer.data.dtype == answer.noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GaussianOracle(VP(), M, torch.eye(3)), r"\(4, 4\)"),
        (lambda: GaussianOracle(VP(), M, -S), "eigenvalue"),
        (lambda: JointOracle(VP(), M, S, H[:2], R), "operator"),
        (lambda: JointOracle(VP(), M, S, H, R)(torch.zeros(1, 2, 2), torch.tensor(0.5)), "pass mu"),
        (lambda: GaussianOracle(VP(), M, S)(torch.zeros(1, 2, 2), torch.tensor(0.5), M), r"mu of shape \(2, 2\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
