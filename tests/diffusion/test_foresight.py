"""What is prepared for known times changes what a step costs, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dxdt
from dxdt import DataPrediction, Exponential, NoisePrediction
from dxdt.diffusion import (
    EDM,
    VP,
    AngularVelocity,
    Clip,
    Conditioned,
    Data,
    Denoiser,
    EDMPreconditioning,
    Index,
    LogSNR,
    Posterior,
    Preconditioned,
    SubVP,
    Thresholded,
    Velocity,
    integrate,
    reverse,
)
from grids import solve_on_grid
from memory import Operations


class Net(nn.Module):
    """Says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, told: Tensor, shift: float = 0.0) -> Tensor:
        self.heard.append(told)
        return (x + 1e-3 * told.to(x).reshape(-1, *(1,) * (x.ndim - 1)) + shift).sin()


def hidden(denoiser: Any) -> Any:
    """The denoiser without foresight."""

    def ask(x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        return denoiser(x, t.clone(), mu)

    ask.process = denoiser.process  # pyright: ignore[reportFunctionMemberAccess]
    return ask


NET = Net()
DENOISERS: list[Any] = [
    Denoiser(NET, VP()),
    Denoiser(NET, SubVP(), Data(), Index()),
    Denoiser(NET, VP(), Velocity(), Index.levels(1000, whole=True)),
    Denoiser(NET, VP(), AngularVelocity()),
    Preconditioned(NET, EDM(), EDMPreconditioning()),
    Preconditioned(NET, VP(), EDMPreconditioning()),
    Conditioned(Denoiser(NET, VP()), shift=0.3),
    Thresholded(Denoiser(NET, VP()), Clip()),
    Thresholded(Conditioned(Preconditioned(NET, VP(), EDMPreconditioning()), shift=0.3)),
]


@pytest.mark.filterwarnings("ignore:Exponential:RuntimeWarning")
@pytest.mark.parametrize("denoiser", DENOISERS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_foresight_changes_nothing(denoiser: Any, dtype: torch.dtype, per_sample: bool):
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for solver in (Exponential(3), Exponential(2, NoisePrediction())):
        told = []
        found = []
        for asked in (denoiser, hidden(denoiser)):
            NET.heard.clear()
            found.append(integrate(asked, x, steps=6, solver=solver, per_sample=per_sample).y1)
            told.append(torch.stack(NET.heard))
        assert torch.allclose(*found, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)
        assert told[0].dtype == told[1].dtype and torch.allclose(*(t.double() for t in told), rtol=1e-6)
        assert told[0].shape == told[1].shape == (len(told[0]), 3)


def test_what_is_kept_between_solves_follows_what_it_is_made_of():
    """Another clock, process, solver or grid is another preparation; the same one is found again."""
    x = torch.ones(2, 3, dtype=torch.float64)
    net = Net()
    denoiser = Denoiser(net, VP(), clock=Index())
    first = integrate(denoiser, x, steps=5).y1
    assert torch.equal(integrate(denoiser, x, steps=5).y1, first)
    denoiser.clock = Index(500.0)
    other = integrate(denoiser, x, steps=5).y1
    assert not torch.equal(other, first)
    assert torch.equal(other, integrate(Denoiser(net, VP(), clock=Index(500.0)), x, steps=5).y1)
    denoiser.clock = Index()
    assert not torch.equal(integrate(denoiser, x, steps=5, solver=Exponential(3)).y1, first)
    assert not torch.equal(integrate(denoiser, x, steps=5, t0=0.01).y1, first)
    assert torch.equal(integrate(denoiser, x, steps=5).y1, first)


def test_a_denoiser_without_foresight_and_a_process_without_a_hash_are_served():
    class Odd(VP):
        __hash__ = None  # pyright: ignore[reportAssignmentType]

    x = torch.ones(2, 3, dtype=torch.float64)
    plain = integrate(Denoiser(Net(), VP()), x, steps=5).y1
    assert torch.equal(integrate(Denoiser(Net(), Odd()), x, steps=5).y1, plain)


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(
    "solver", [Exponential(1), Exponential(3), Exponential(3, corrector=dxdt.Corrector())], ids=str
)
def test_walking_a_grid_is_the_loop(solver: Any, tau: float):
    """States, saved values, dense output, statistics and statuses of the loop that decides at every step."""
    denoiser = Denoiser(Net(), VP())
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = LogSNR()(VP(), 7, 0.9, 0.05)
    column = dxdt.Grid(times)
    each = dxdt.Grid(times[:, None].expand(-1, 3))  # one grid a sample is not walked
    options: dict[str, Any] = dict(solver=solver, driver=dxdt.Increments(2), per_sample=True)
    for save in (dxdt.Save(end=True), dxdt.Save(start=True, steps=True), dxdt.Save(times=[0.8, 0.3, 0.05], dense=True)):
        a, b = (
            solve_on_grid(reverse(denoiser, tau), x, (0.9, 0.05), controller=c, save=save, **options)
            for c in (column, each)
        )
        assert torch.allclose(a.ys, b.ys, rtol=1e-12, atol=1e-12)
        assert a.status == b.status
        assert torch.equal(a.stats.accepted, b.stats.accepted) and a.stats.evaluations == b.stats.evaluations
        assert np.allclose(a.ts, b.ts, atol=1e-12)


@pytest.mark.parametrize(("order", "most"), [(2, 8), (3, 9)])
def test_a_step_dispatches_few_operations(order: int, most: int):
    """Beside the network: two to form the data, one a term of the line, and the views of the rows."""
    x = torch.randn(4, 3, 8, 8)
    denoiser = Denoiser(lambda x, t: x, VP())
    counts = []
    for steps in (20, 60):
        integrate(denoiser, x, steps=steps, solver=Exponential(order, DataPrediction()))  # the numbers of the grid
        with torch.no_grad(), Operations() as seen:
            integrate(denoiser, x, steps=steps, solver=Exponential(order, DataPrediction()))
        counts.append(seen.total)
    assert (counts[1] - counts[0]) / 40 <= most, counts


def test_a_learned_process_keeps_its_gradient():
    class Learned(VP):
        def a(self, t: Tensor) -> Tensor:
            return super().a(t) * scale

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 3, dtype=torch.float64)
    found = []
    for gradient in (dxdt.Direct(), dxdt.Direct(), dxdt.Checkpointed()):
        y = solve_on_grid(
            reverse(Denoiser(Net(), Learned())),
            x,
            LogSNR()(VP(), 5, 0.9, 0.05),
            solver=Exponential(2),
            gradient=gradient,
            params=[scale],
        ).y1
        found.append(torch.autograd.grad(y.sum(), scale)[0])
    assert found[0] == found[1] and torch.allclose(found[0], found[2]) and found[0] != 0


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_inference_mode_left_serves_gradients(per_sample: bool):
    linear = nn.Linear(3, 3).double()
    denoiser = Denoiser(lambda x, t: linear(x * t.reshape(-1, 1)), VP())
    x = torch.ones(2, 3, dtype=torch.float64)
    options: dict[str, Any] = dict(steps=6, t0=0.037, solver=Exponential(3), per_sample=per_sample)
    with torch.inference_mode():
        quick = integrate(denoiser, x, **options).y1
    slow = integrate(denoiser, x, **options).y1
    assert torch.equal(slow.detach(), quick)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(slow.sum(), list(linear.parameters())))
