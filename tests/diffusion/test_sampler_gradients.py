"""Gradients through samplers of ten steps: every route finds the same, and keeps less than autograd does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dxdt
from dxdt import Exponential, Inside, NoisePrediction
from dxdt.diffusion import VP, Denoiser, Given, LogSNR, Time, draw, integrate
from memory import LiveBytes

STEPS = 10
TIMES = torch.cat([torch.ones(1, dtype=torch.float64), LogSNR()(VP(), STEPS - 1, 0.9, 0.02)])


class Net(nn.Module):
    """A network whose inner values weigh as much as those of an image model: 40 times the state."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.into = nn.Parameter(0.3 * torch.randn(6, 80, generator=generator, dtype=torch.float64))
        self.inner = nn.Parameter(0.1 * torch.randn(80, 80, generator=generator, dtype=torch.float64))
        self.out = nn.Parameter(0.3 * torch.randn(80, 6, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden = (x @ self.into + 0.1 * told.reshape(-1, 1)).sin()
        return (hidden @ self.inner).tanh() @ self.out


def through(solver: Any, gradient: Any, tau: float = 0.0, rows: int = 128) -> tuple[list[Tensor], Tensor, int]:
    """Gradients, samples, and the most bytes that were alive."""
    net = Net()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    with LiveBytes() as live:
        denoiser = Denoiser(net, VP())
        found = integrate(denoiser, x, grid=Given(TIMES), tau=tau, solver=solver, seed=3, gradient=gradient).y1
        grads = torch.autograd.grad(found.square().sum(), [x, *net.parameters()])
    return list(grads), found.detach(), live.peak


def agree(a: list[Tensor], b: list[Tensor], rtol: float) -> None:
    for p, q in zip(a, b, strict=True):
        assert (p - q).abs().max() <= rtol * q.abs().max()


FAMILY = [
    (Exponential(1), 0.0),
    (Exponential(2), 0.0),
    (Exponential(3), 0.0),
    (Exponential(2, NoisePrediction(), Inside()), 0.0),
    (Exponential(3, corrector=dxdt.Corrector()), 0.0),
    (Exponential(2), 1.0),
]


@pytest.mark.filterwarnings("ignore:Exponential:RuntimeWarning")
@pytest.mark.parametrize(("solver", "tau"), FAMILY, ids=str)
def test_checkpoints_find_the_gradient_of_autograd(solver: Any, tau: float):
    direct, samples, peak = through(solver, dxdt.Direct(), tau)
    for gradient, share in ((dxdt.Checkpointed(), 0.5), (dxdt.Checkpointed(slots=3), 0.5)):
        other, same, less = through(solver, gradient, tau)
        assert torch.equal(same, samples)
        agree(other, direct, 1e-12)
        assert less < share * peak, (less, peak)


REVERSIBLE = [dxdt.ReversibleHeun(), dxdt.McCallumFoster(dxdt.Midpoint()), dxdt.AsynchronousLeapfrog()]


@pytest.mark.parametrize("solver", REVERSIBLE, ids=lambda s: type(s).__name__)
def test_walking_back_finds_the_gradient_of_autograd(solver: Any):
    direct, samples, peak = through(solver, dxdt.Direct())
    other, same, less = through(solver, dxdt.Reversible())
    assert torch.equal(same, samples)
    agree(other, direct, 1e-7)
    assert less < 0.5 * peak, (less, peak)


def test_gradients_of_a_draw_by_every_route():
    """From prior to final denoising, one clock a sample, for the parameters."""
    net = Net()

    def loss(**options: Any) -> Tensor:
        options = {"gradient": dxdt.Direct(), **options}
        return draw(Denoiser(net, VP()), (16, 6), steps=STEPS, seed=2, dtype=torch.float64, **options).x.square().sum()

    direct = torch.autograd.grad(loss(), list(net.parameters()))
    kept = torch.autograd.grad(loss(gradient=dxdt.Checkpointed(slots=2)), list(net.parameters()))
    agree(list(kept), list(direct), 1e-12)
    walk: dict[str, Any] = dict(solver=dxdt.ReversibleHeun(), grid=Time())
    direct = torch.autograd.grad(loss(**walk), list(net.parameters()))
    back = torch.autograd.grad(loss(gradient=dxdt.Reversible(), **walk), list(net.parameters()))
    agree(list(back), list(direct), 1e-7)
