"""Preconditionings: the published definitions, under the process they come from and under others."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dxdt.diffusion import (
    EDM,
    VP,
    EDMPreconditioning,
    GaussianOracle,
    IDDPMPreconditioning,
    Preconditioned,
    Process,
    RectifiedFlow,
    SelfPreconditioned,
    Table,
    VEPreconditioning,
    VPPreconditioning,
    linear_betas,
    zero_terminal_snr,
)
from processes import PROCESSES, grid

SIGMA = torch.logspace(-2.6, 1.9, 40, dtype=torch.float64)
ZERO, ONE = torch.zeros_like(SIGMA), torch.ones_like(SIGMA)
U = IDDPMPreconditioning().table


@dataclass(frozen=True)
class Definition:
    """Table 1 of Karras et al. (2022) at SIGMA."""

    skip: Tensor
    out: Tensor
    into: Tensor
    told: Tensor


DEFINITIONS = {
    EDMPreconditioning(): Definition(
        0.25 / (SIGMA**2 + 0.25), SIGMA * 0.5 / (SIGMA**2 + 0.25).sqrt(), 1 / (SIGMA**2 + 0.25).sqrt(), SIGMA.log() / 4
    ),
    VPPreconditioning(): Definition(
        ONE,
        -SIGMA,
        1 / (SIGMA**2 + 1).sqrt(),
        # t(sigma) in the form that EDM prints
        999 * ((0.1**2 + 2 * 19.9 * (1 + SIGMA**2).log()).sqrt() - 0.1) / 19.9,
    ),
    VEPreconditioning(): Definition(ONE, SIGMA, ONE, (SIGMA / 2).log()),
    IDDPMPreconditioning(): Definition(
        ONE, -SIGMA, 1 / (SIGMA**2 + 1).sqrt(), 999 - (U[None] - SIGMA[:, None]).abs().argmin(1).double()
    ),
    SelfPreconditioned(): Definition(ZERO, ONE, ONE, SIGMA),
}
named = pytest.mark.parametrize("kind", DEFINITIONS, ids=lambda k: type(k).__name__)


@named
def test_scales_are_the_published_ones(kind):
    want, got = DEFINITIONS[kind], kind.weights(ONE, SIGMA)
    assert torch.allclose(got.data_skip, want.skip, rtol=1e-13)
    assert torch.allclose(got.data_out, want.out, rtol=1e-13)
    assert torch.allclose(got.into, want.into, rtol=1e-13)
    assert torch.allclose(kind.told(SIGMA), want.told, rtol=1e-10)


@named
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_networks_denoise_under_every_process(kind, process: Process):
    # D = c_skip y + c_out F(c_in y, c_noise) at y = (x - b mu) / a and sigma = c / a.
    t = grid(process, 6)
    x, mu = torch.randn(2, 6, 3, dtype=torch.float64)

    def net(z: Tensor, told: Tensor, mu: Tensor) -> Tensor:
        return (z + 0.1 * told[:, None]).sin() + mu

    found = Preconditioned(net, process, kind)(x, t, mu)
    y = (x - process.b(t)[:, None] * mu) / process.a(t)[:, None]
    sigma = process.c(t) / process.a(t)
    one = torch.ones_like(sigma)
    scales = kind.weights(one, sigma)
    answer = net(scales.into[:, None] * y, kind.told(sigma), mu)
    want = scales.data_skip[:, None] * y + scales.data_out[:, None] * answer
    assert torch.allclose(found.data, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
    assert torch.allclose(process.perturb(found.data, t, found.noise, mu), x, rtol=1e-9, atol=1e-8)


def test_one_network_is_one_denoiser_of_all_scalings():
    # The exact denoiser as a preconditioned network of EDM, read under other processes.
    mean, covariance = torch.tensor([0.4, -0.1]).double(), torch.tensor([[0.3, 0.1], [0.1, 0.2]]).double()
    edm = GaussianOracle(EDM(), mean, covariance)

    def net(y: Tensor, sigma: Tensor) -> Tensor:
        return edm(y, sigma).data

    x = torch.randn(6, 2, dtype=torch.float64)
    for process in PROCESSES:
        t = grid(process, 6)
        want = GaussianOracle(process, mean, covariance)(x, t)
        found = Preconditioned(net, process, SelfPreconditioned())(x, t)
        assert torch.allclose(found.data, want.data, rtol=1e-8, atol=1e-10)
        assert torch.allclose(found.noise, want.noise, rtol=1e-6, atol=1e-6)
        assert torch.allclose(found.score, want.score, rtol=1e-6, atol=1e-6 * want.score.abs().max().item())


def test_signal_may_vanish():
    # Nothing of EDM's scales divides by a: the prior's end of a flow or a zero-terminal table is finite.
    table = Table.from_alphas_cumprod(zero_terminal_snr((1 - linear_betas()).cumprod(0)))
    for process in (RectifiedFlow(), VP(table)):
        x = torch.randn(2, 3, dtype=torch.float64)
        kind = EDMPreconditioning()
        seen: list[Tensor] = []

        def net(z: Tensor, told: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(z)
            return z.cos()

        found = Preconditioned(net, process, kind)(x, torch.tensor(1.0))
        assert torch.allclose(seen[0], x)
        assert torch.allclose(found.data, 0.5 * x.cos())
        assert torch.allclose(found.noise, x)


def test_noise_is_exact_for_little_noise_in_float32():
    process, kind = EDM(), EDMPreconditioning()
    x = torch.randn(4, 3)
    t = torch.tensor(0.002)

    def net(z: Tensor, told: Tensor) -> Tensor:
        return (3 * z).sin()

    low = Preconditioned(net, process, kind)(x, t).noise
    high = Preconditioned(net, process, kind)(x.double(), t.double()).noise
    assert torch.allclose(low.double(), high, rtol=1e-5, atol=1e-5)


def test_levels_of_iddpm():
    kind = IDDPMPreconditioning()
    assert len(U) == 1001 and U[-1] == 0 and (U.diff() < 0).all()
    # The ratio of levels is bounded by the floor at the start, and follows the cosine elsewhere.
    bar = (0.5 * math.pi * torch.arange(1001).double() / 1000 / 1.008).sin() ** 2
    ratio = (U[1:] ** 2 + 1) / (U[:-1] ** 2 + 1)
    assert torch.allclose(ratio, torch.maximum(bar[:-1] / bar[1:], torch.tensor(0.001).double()), rtol=1e-9)
    assert torch.equal(kind.rounded(U), U)
    assert torch.allclose(kind.told(U), 999 - torch.arange(1001).double())
    near = U[8:] * (1 + 1e-4 * torch.randn(993, dtype=torch.float64))
    index = (U[None] - near[:, None]).abs().argmin(1)
    assert torch.equal(kind.rounded(near), U[index])
    assert kind.rounded(torch.tensor([1e9, 0.0, -1.0])).tolist() == [pytest.approx(U[0].item()), 0.0, 0.0]
