"""Programs are not used where something that they were made of has changed; and what they compute to the last digit."""

import pytest
import torch
from torch import nn

import dxdt
from dxdt import ODE, Checkpointed, Euler, Heun

Y0 = torch.linspace(-1, 1, 20).reshape(5, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, t, y):
        return self.inner(y).tanh()


def pair(field, **options):
    """Eager and compiled."""
    return [
        dxdt.solve(ODE(field), Y0, (0.0, 1.0), dt=0.5, solver=Heun(), compile=c, **options).y1 for c in (False, True)
    ]


def agree(field, within=1e-6):
    eager, compiled = pair(field)
    assert (eager - compiled).abs().max() <= within
    return eager


@pytest.mark.filterwarnings("ignore:compile=True runs eager")
def test_hooks_and_patches():
    net = Net()
    first = agree(net)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: 2 * o if isinstance(m, nn.Linear) else None)
    try:
        hooked = agree(net)
    finally:
        hook.remove()
    assert not torch.allclose(hooked, first) and torch.equal(agree(net), first)
    own = net.inner.register_forward_hook(lambda m, i, o: 3 * o)
    assert not torch.allclose(agree(net), first)
    own.remove()
    before = Net.forward
    Net.forward = lambda self, t, y: self.inner(y).sin()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        assert not torch.allclose(agree(net), first)
    finally:
        Net.forward = before
    assert torch.equal(agree(net), first)


def test_autocast_that_was_not_there_when_a_program_was_made():
    net = Net()
    first = agree(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, compiled = pair(net)
    moved = (eager - first).abs().max()
    assert (eager - compiled).abs().max() < 0.6 * moved and (compiled - first).abs().max() > 0.3 * moved
    assert torch.equal(agree(net), first)


NAN = float("nan")


@pytest.mark.parametrize(
    "f",
    [
        lambda y: y.clamp(min=NAN),
        lambda y: y.clamp(max=NAN),
        lambda y: y.clamp_min(NAN),
        lambda y: torch.clamp(y, y * NAN, y + 1),
        lambda y: torch.relu(y * NAN),
        lambda y: torch.nn.functional.hardtanh(y * NAN),
        lambda y: torch.relu(y) - y.clamp(-0.5, 0.5),
    ],
)
def test_bounds_that_are_no_numbers(f):
    options = dict(dt=1.0, solver=Euler(), throw=False)
    a, b = (dxdt.solve(ODE(lambda t, y: f(y) + 0 * y), Y0, (0.0, 1.0), compile=c, **options).y1 for c in (False, True))
    torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "reduce"),
    [
        ((300_000,), lambda y: y.mean()),
        pytest.param((3, 100_000), lambda y: y.mean(-1, keepdim=True), marks=pytest.mark.slow),
        ((100_000, 3), lambda y: y.mean(0)),
        pytest.param((2000, 2), lambda y: y.sum(0) / 2000, marks=pytest.mark.slow),
    ],
    ids=["all", "rows", "columns", "short"],
)
def test_long_sums_in_float32(shape, reduce):
    torch.manual_seed(0)
    y0 = torch.rand(*shape) * 0.6
    field = ODE(lambda t, y: reduce(y) + 0 * y)
    exact, found = (
        dxdt.solve(field, y, (0.0, 1.0), dt=1.0, solver=Euler(), compile=c).y1 - y
        for y, c in ((y0.double(), False), (y0, True))
    )
    assert (found - exact).abs().max() < 2e-7


@pytest.mark.slow
def test_gradients_of_long_batches_in_float32():
    net = nn.Linear(4, 4)
    y0, found = torch.randn(50_000, 4), []
    for dtype, c in ((torch.float64, False), (torch.float32, True)):
        net.to(dtype).zero_grad()
        options = dict(dt=0.5, solver=Heun(), compile=c, gradient=Checkpointed())
        dxdt.solve(ODE(lambda t, y: net(y).tanh()), y0.to(dtype), (0.0, 1.0), **options).y1.square().mean().backward()
        found.append([p.grad.double() for p in net.parameters()])
    assert all((a - b).norm() < 2e-6 * a.norm() for a, b in zip(*found, strict=True))
