"""Compiled solves on a CUDA device: the law of executors against the eager loop there and on the CPU."""

import pytest
import torch

import dxdt
from dxdt import ODE, PID, SDE, Backsolve, Bosh3, Checkpointed, Event, Grid, Increments, Save
from dxdt.compiler.cuda import Graphs
from dxdt.ops.tree import leaves
from nets import Swung

F64 = torch.float64

pytestmark = pytest.mark.gpu


def start(device, scale=1.0, rows=3):
    return (scale * torch.linspace(-1, 1.2, 2 * rows, dtype=F64).reshape(rows, 2)).to(device)


SPANS = (torch.tensor([0.0, 0.5, 1.0], dtype=F64), torch.tensor([1.5, -0.5, 1.1], dtype=F64))
ADAPTIVE = dict(solver=Bosh3(), controller=PID(rtol=1e-5, atol=1e-6))
CASES = {
    "grid-every": ((1.0, 0.0), dict(controller=Grid(torch.linspace(1, 0, 12)), save=Save(steps=True, every=2))),
    "spans": (SPANS, dict(**ADAPTIVE, per_sample=True)),
    "chunks-times": ((0.0, 1.0), dict(solver=dxdt.Euler(), dt=1 / 600, save=torch.linspace(0, 1, 7))),
    "dense": ((0.0, 1.0), dict(**ADAPTIVE, save=Save(dense=True, end=True))),
    "default": ((0.0, 1.0), dict()),
    "backsolve": ((0.0, 1.0), dict(**ADAPTIVE, per_sample=True, gradient=Backsolve())),
}


def pulled(device, compile, span, scale=1.0, gradient=None, **options):
    """A solution and its gradients, on the CPU."""
    net, y0 = (
        Swung(width=16).to(device),
        start(device, scale).requires_grad_(),
    )
    rate = torch.tensor(0.8, dtype=F64, device=device, requires_grad=True)
    if gradient is None and not compile:
        gradient = Checkpointed()
    sol = dxdt.solve(ODE(net), y0, span, args=(rate,), compile=compile, gradient=gradient, **options)
    total = sum(torch.nan_to_num(x).square().sum() for x in leaves(sol.ys))
    if sol.path is not None:
        total = total + sol.path(torch.tensor(0.45, dtype=F64, device=device)).square().sum()
    grads = torch.autograd.grad(total, (y0, rate, *net.parameters()))
    return sol, [x.detach().cpu() for x in (*leaves(sol.ys), *grads)]


@pytest.mark.parametrize("name", list(CASES))
def test_replayed_is_eager(name, fresh, strict):
    """Uncaptured, captured, and replayed with other inputs."""
    span, options = CASES[name]
    for scale in (1.0, 0.7, 0.9):
        a, values = pulled("cuda", True, span, scale, **options)
        for device in ("cuda", "cpu"):
            b, wanted = pulled(device, False, span, scale, **options)
            assert torch.equal(torch.as_tensor(a.stats.steps), torch.as_tensor(b.stats.steps))
            for x, y in zip(values, wanted, strict=True):
                assert torch.allclose(x, y, rtol=1e-8, atol=1e-9)


def test_events(fresh, strict):
    def field(t, y):
        return torch.stack([y[..., 1], -9.81 + 0 * y[..., 1]], -1)

    def solve(compile, heights, device="cuda"):
        height = torch.tensor(heights, dtype=F64, device=device)
        y0 = torch.stack([height, 0 * height], -1).requires_grad_()
        event = Event(lambda t, y: y[..., 0])
        sol = dxdt.solve(ODE(field), y0, (0.0, 2.0), event=event, per_sample=True, compile=compile, save=[0.2, 0.4])
        (g,) = torch.autograd.grad(sol.t1.sum() + torch.nan_to_num(sol.ys).sum(), y0)
        return [x.detach().cpu() for x in (sol.t1, torch.nan_to_num(sol.ys), g)]

    for heights in ([1.0, 5.0, 40.0], [2.0, 3.0, 1.0], [1.0, 1.0, 1.0]):
        for x, y in zip(solve(True, heights), solve(False, heights), strict=True):
            assert torch.allclose(x, y, rtol=1e-9, atol=1e-9)


def test_noise(fresh, strict):
    def solve(compile, seed, device="cuda"):
        equation = SDE(lambda t, y: -y, lambda t, y: 0.1 + 0.2 * y)
        options = dict(solver=dxdt.EulerMaruyama(), dt=0.05, per_sample=True, driver=Increments(seed))
        return dxdt.solve(equation, start(device), (0.0, 1.0), compile=compile, **options).ys.cpu()

    for seed in (1, 2, 3):
        assert torch.allclose(solve(True, seed), solve(False, seed), rtol=1e-10)
        assert torch.allclose(solve(True, seed), solve(False, seed, "cpu"), rtol=1e-10)


def trained(steps, monkeypatch):
    """How many captures each step of training made, and the losses."""
    captures, losses, counts = [0], [], []
    capture = Graphs.__call__

    def counted(self, work):
        captures[0] += 1
        return capture(self, work)

    monkeypatch.setattr(Graphs, "__call__", counted)
    net = Swung(width=16, dtype=torch.float32).cuda()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02)
    rate = torch.tensor(1.0, device="cuda")
    for i in range(steps):
        y0 = start("cuda", rows=64).float()
        sol = dxdt.solve(ODE(net), y0, (0.0, 0.5 + 0.01 * i), args=(rate,), compile=True, save=[0.3])
        loss = sol.ys.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        counts.append(captures[0])
    return counts, losses


def test_training_captures_once(fresh, strict, monkeypatch):
    """The second step captures what precedes the loop and a turn, forward and backward, and few later ones do."""
    counts, losses = trained(100, monkeypatch)
    assert losses[-1] < losses[0]
    assert counts[0] == 0 and counts[1] == 4
    assert counts[-1] == counts[50], "captures come to an end"


def test_memory_is_flat(fresh, strict):
    """Of solves with records and gradients, once they are captured."""

    def step(i):
        pulled("cuda", True, (0.0, 1.0 + 0.01 * (i % 7)), save=[0.5, 1.0])

    for i in range(10):
        step(i)
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for i in range(50):
        step(i)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= allocated + (1 << 20)
    assert torch.cuda.memory_reserved() <= reserved + (8 << 20)


def test_streams(fresh, strict):
    """Solves of one program on two streams follow each other, and results are nobody else's."""
    net = Swung(width=16).cuda().requires_grad_(False)
    rate = torch.tensor(0.8, dtype=F64, device="cuda")

    def solve(scale, compile=True):
        return dxdt.solve(ODE(net), start("cuda", scale), (0.0, 1.0), args=(rate,), compile=compile).ys

    for _ in range(3):
        solve(1.0)
    streams, found = [torch.cuda.Stream(), torch.cuda.Stream()], []
    torch.cuda.synchronize()
    for i in range(10):
        with torch.cuda.stream(streams[i % 2]):
            found.append((1 + i / 10, solve(1 + i / 10)))
    torch.cuda.synchronize()
    for scale, ys in found:
        assert torch.allclose(ys, solve(scale, False), rtol=1e-8, atol=1e-9)
