"""Fields that read a path through data: the path is a tree of its tensors at every door, and has a compiled form."""

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Backsolve, Checkpointed, Clip, Direct
from dxdt.paths import hermite, linear, natural

D = torch.float64
TS = torch.linspace(0, 1, 6, dtype=D)
SLOW = pytest.mark.slow


def driven(net):
    return ODE(lambda t, y, path: torch.tanh(net(torch.cat([y, path(t)], -1))))


def found(spline, per_sample, rule, compile):
    torch.manual_seed(0)
    net = torch.nn.Linear(5, 2).double()
    xs = torch.randn(*((3,) if per_sample else ()), 6, 3, dtype=D, requires_grad=True)
    y0 = torch.ones(*((3,) if per_sample else ()), 2, dtype=D)
    options = dict(args=(spline(TS, xs),), per_sample=per_sample, gradient=rule, compile=compile)
    # Steps end at the knots: without that the two executors may reject different steps at a kink.
    steps = Clip(PID(1e-7, 1e-9), steps=TS[1:-1])
    sol = dxdt.solve(driven(net), y0, (0.0, 1.0), controller=steps, **options)
    sol.y1.square().sum().backward()
    return sol.y1.detach(), xs.grad, net.weight.grad


CASES = [
    pytest.param(linear, False, Checkpointed(), id="linear"),
    pytest.param(hermite, True, Backsolve(), id="hermite-rows-adjoint", marks=SLOW),
    pytest.param(linear, True, Checkpointed(), id="linear-rows", marks=SLOW),
    pytest.param(natural, False, Checkpointed(), id="natural", marks=SLOW),
    pytest.param(natural, True, Backsolve(), id="natural-rows-adjoint", marks=SLOW),
]


@pytest.mark.parametrize(("spline", "per_sample", "rule"), CASES)
@pytest.mark.filterwarnings("error:compile=True runs eager")
def test_paths_in_args(spline, per_sample, rule):
    exact = found(spline, per_sample, Direct(), False)
    eager, compiled = (found(spline, per_sample, rule, c) for c in (False, True))
    for a, b, c in zip(exact, eager, compiled, strict=True):
        torch.testing.assert_close(b, c, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
