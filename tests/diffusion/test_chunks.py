"""One seed names one set of samples, however the batch is cut, and one path, however the grid is refined."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dxdt
from dxdt import Exponential, NoisePrediction
from dxdt.diffusion import (
    DDIM,
    VP,
    Ancestral,
    BrownianBridge,
    Denoiser,
    Given,
    LogSNR,
    draw,
    gaussian_oracle,
    integrate,
    prior_noise,
    reverse,
)
from dxdt.nn import UNet
from dxdt.ops.tree import Layout

SHAPE = (7, 1, 8, 8)
WAYS: list[tuple[Any, float]] = [
    (Exponential(2), 0.0),
    (Exponential(3), 0.0),
    (Exponential(2), 1.0),
    (Exponential(2), 0.5),
    (Ancestral(), 1.0),
    (DDIM(0.5), 0.0),
    (dxdt.EulerMaruyama(), 1.0),
]


class Recorded:
    """A driver that keeps what it gave."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.adaptive, self.levy = driver, driver.adaptive, driver.levy
        self.given: list[Tensor] = []

    def bind(self, *args: Any) -> Any:
        inner, given = self.driver.bind(*args), self.given

        class Bound:
            def increment(self, *a: Any) -> Any:
                found = inner.increment(*a)
                given.append(found.W)
                return found

            def normals(self, *a: Any) -> Tensor:
                given.append(inner.normals(*a))
                return given[-1]

        return Bound()


def model() -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, channels=8, blocks=1)
        for p in net.parameters():
            nn.init.normal_(p, std=0.03)
    return Denoiser(net, VP()).requires_grad_(False)


@pytest.mark.parametrize(("solver", "tau"), WAYS, ids=str)
def test_parts_of_a_batch_are_the_batch(solver: Any, tau: float):
    """Noise by the bit, samples to 1e-5 of their size in float32."""
    denoiser = model()
    options: dict[str, Any] = dict(steps=8, tau=tau, solver=solver, seed=4, t0=0.01)

    def run(rows: int, first: int) -> tuple[Tensor, list[Tensor]]:
        driver = Recorded(dxdt.Increments(4))
        return draw(denoiser, (rows, *SHAPE[1:]), first=first, driver=driver, **options).x, driver.given

    whole, noise = run(7, 0)
    for parts in ((1, 6), (3, 3, 1), (2, 2, 2, 1)):
        first = 0
        for rows in parts:
            x, part = run(rows, first)
            assert (x - whole[first : first + rows]).abs().max() <= 1e-5 * max(1.0, float(whole.abs().max()))
            assert all(torch.equal(a, b[first : first + rows]) for a, b in zip(part, noise, strict=True))
            first += rows
    assert torch.equal(prior_noise(SHAPE, 4)[3:5], prior_noise((2, *SHAPE[1:]), 4, first=3))


def test_parts_of_bridges_open_with_their_own_noise():
    process = BrownianBridge()
    oracle = gaussian_oracle(process, torch.zeros(3).double(), torch.ones(3).double())
    mu = torch.ones(1, 3, dtype=torch.float64)
    options: dict[str, Any] = dict(steps=6, seed=1, dtype=torch.float64, mu=mu)
    whole = draw(oracle, (5, 3), **options).x
    assert torch.allclose(draw(oracle, (2, 3), first=3, **options).x, whole[3:], rtol=0, atol=1e-12)


def test_numbered_samples_cannot_share_a_row_of_noise():
    with pytest.raises(ValueError, match="per_sample=False"):
        draw(model(), SHAPE, steps=4, tau=1.0, first=2, per_sample=False)


@pytest.mark.filterwarnings("ignore:Exponential:RuntimeWarning")
@pytest.mark.parametrize("solver", [Exponential(1), Exponential(2), Exponential(2, NoisePrediction())], ids=str)
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_refinement_stays_on_one_path(solver: Exponential, tau: float):
    """The noise of a step is that of its halves, and solves at N and 4 N approach each other sample by sample."""
    m, s = torch.tensor([0.5, -1.0, 0.0]).double(), torch.tensor([0.3, 0.8, 1.2]).double()
    oracle = gaussian_oracle(VP(), m, s)
    x = prior_noise((16, 3), 2, dtype=torch.float64)
    found = [
        integrate(
            oracle, x, grid=Given(LogSNR()(VP(), n, 1.0, 0.01)), tau=tau, solver=solver, driver=dxdt.Brownian(3)
        ).y1
        for n in (40, 160, 640)
    ]
    far, near = ((y - found[2]).square().mean().sqrt() for y in found[:2])
    assert near < 0.5 * far and near < 0.1
    equation = reverse(oracle, tau)
    layout = Layout.of(x, per_sample=True)
    start, end = (torch.full((16,), t).double().numpy() for t in (1.0, 0.01))
    path = solver.bind(dxdt.Brownian(3), equation, start, end, layout)
    a, b, c = (torch.full((16,), v).double().numpy() for v in (-1.0, 0.3, 2.2))

    def q(lam: float) -> Tensor:
        """The clock on which the noise is Brownian motion."""
        data = solver.kind == dxdt.DataPrediction()
        return torch.tensor(2 * tau**2 * lam).exp() if data else -torch.tensor(-2 * lam).exp()

    parts = [(q(hi[0]) - q(lo[0])).sqrt() * path.unit(lo, hi, 0) for lo, hi in ((a, b), (b, c), (a, c))]
    assert torch.allclose(parts[0] + parts[1], parts[2], rtol=1e-9, atol=1e-10)


def test_a_path_with_a_span_of_its_own_is_seen_in_parts():
    oracle = gaussian_oracle(VP(), torch.zeros(3).double(), torch.ones(3).double())
    options = {"steps": 6, "tau": 1.0, "driver": dxdt.Brownian(5, span=(2.0, 3.0)), "dtype": torch.float64}
    whole = draw(oracle, (4, 3), **options).x
    assert torch.allclose(draw(oracle, (2, 3), first=2, **options).x, whole[2:], atol=1e-12)
