"""The continuous adjoint compiled: the steps and gradients of the eager one, by one program."""

import gc
from collections import Counter

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Grid, Save

D = torch.float64


class Net(nn.Module):
    def __init__(self, n=3, width=6):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.lower, self.upper = nn.Linear(n, width, dtype=D), nn.Linear(width, n, dtype=D)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=D) / 2

    def forward(self, t, y, force=0.0):
        wave = torch.sin(2 * t).unsqueeze(-1)
        return self.upper(torch.tanh(self.lower(y))) - 0.3 * y + force * wave


def pulled(compile, per_sample, rule, times=False, saved=True, **options):
    """Gradients of the state, an argument, the parameters, and where wanted of all times."""
    net, counts = Net(), Counter()
    y0 = torch.linspace(-1, 1.2, 12, dtype=D).reshape(4, 3).requires_grad_()
    force = torch.tensor([0.3, -0.8, 0.5], dtype=D, requires_grad=True)
    start = torch.tensor([0.0, 0.3, -0.2, 2.0], dtype=D)
    end = torch.tensor([1.0, 2.1, 0.4, 0.5], dtype=D)  # the last row runs backwards
    t0, t1 = ((x if per_sample else x[1]).clone() for x in (start, end))
    share = torch.tensor([0.21, 0.55, 0.9, 1.0], dtype=D)
    moments = share[:, None] * (end - start) + start if per_sample else share * 1.8 + 0.3
    wanted = [y0, force, *net.parameters()]
    if times:
        wanted += [x.requires_grad_() for x in (t0, t1, moments)]
    rule = Backsolve(**rule, counts=counts)
    sol = dxdt.solve(
        dxdt.ODE(net),
        y0,
        (t0, t1),
        args=(force,),
        save=Save(times=moments, end=True) if saved else None,
        gradient=rule,
        per_sample=per_sample,
        compile=compile,
        **{"controller": dxdt.PID(rtol=1e-5, atol=1e-6), **options},
    )
    weights = torch.linspace(0.3, 1.7, sol.ys.numel(), dtype=D).reshape(sol.ys.shape)
    return torch.autograd.grad((sol.ys.sin() * weights).sum(), wanted), counts["evaluations"], sol


QUICK = dict(solver=dxdt.Heun(), controller=dxdt.PID(rtol=1e-3, atol=1e-4))
COARSE = dict(solver=dxdt.Heun(), controller=None, dt=0.4)
FIXED = dict(solver=dxdt.Heun(), controller=None, dt=0.07)
GRID = torch.linspace(2.1, 0.3, 30, dtype=D)
EACH = torch.stack([torch.linspace(b, a, 9, dtype=D) for a, b in ((0, 1), (0.3, 2.1), (-0.2, 0.4), (2, 0.5))], 1)
PLAIN = dict(controller=dxdt.PID(rtol=1e-5, atol=torch.tensor([1e-6, 1e-7, 1e-6])))
CASES = {
    "joint": (False, {}, dict(times=True, **QUICK)),
    "joint-full-norm": (False, dict(seminorm=False), {}),
    "rows": (True, {}, dict(times=True, **FIXED)),
    "adaptive": (False, {}, dict(times=True)),
    "adaptive-rows": (True, {}, dict(times=True)),
    "one-interval": (False, {}, dict(saved=False, solver=dxdt.Bosh3())),
    "fixed-steps": (False, {}, FIXED),
    "other-method": (False, dict(solver=dxdt.Bosh3(), controller=dxdt.PI(rtol=1e-4)), FIXED),
    "tolerances": (False, dict(seminorm=False), PLAIN),
    "grid": (False, dict(controller=Grid(GRID), solver=dxdt.RK4()), {}),
    "grid-rows": (True, dict(controller=Grid(EACH), solver=dxdt.RK4()), {}),
    "clipped": (False, dict(controller=dxdt.Clip(dxdt.PID(rtol=1e-4), steps=[0.7, 1.3])), {}),
}


def expect_the_same(name):
    per_sample, rule, options = CASES[name]
    (found, work, sol), (wanted, least, eager) = (pulled(c, per_sample, rule, **options) for c in (True, False))
    # The first step of every interval is found, in case it is wanted.
    intervals = 1 if options.get("saved") is False else 4
    assert least <= work <= least + 2 * intervals and torch.allclose(sol.ys, eager.ys, rtol=1e-10, atol=1e-12)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-11)


DEFAULT = ("joint",)


@pytest.mark.parametrize(
    "name", [x if x in DEFAULT else pytest.param(x, marks=pytest.mark.slow) for x in CASES if x != "rows"]
)
def test_gradients_of_the_eager_rule(name, traced, strict):
    expect_the_same(name)
    assert len(traced) == 2


def test_generated_code(strict):
    expect_the_same("rows")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "rows"])
def test_more_generated_code(name, strict):
    expect_the_same(name)


def test_training_is_one_program(traced, strict):
    """Steps of training with any number of saved times: one forward, one backward."""
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    options = dict(solver=dxdt.Heun(), dt=0.25, gradient=Backsolve())
    losses = []
    for i in range(8):
        save = Save(times=torch.linspace(0.1, 1.0, 1 + i % 7, dtype=D))
        y0 = torch.ones(4, 3, dtype=D)
        sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), save=save, compile=True, **options)
        loss = sol.ys[-1].square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert len(traced) == 2 and losses[-1] < losses[0]


@pytest.fixture
def few_objects():
    """What was there before is left out when objects are collected and listed, which takes long otherwise."""
    gc.freeze()
    yield
    gc.unfreeze()


def bytes_of_tensors():
    gc.collect()
    return sum(x.numel() * x.element_size() for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter))


@pytest.mark.filterwarnings("ignore")
def test_memory_does_not_grow_with_steps(traced, few_objects):
    net, kept = Net(), []
    for steps in (20, 20, 300):
        y0 = torch.ones(4, 3, dtype=D, requires_grad=True)
        before = bytes_of_tensors()
        sol = dxdt.solve(
            *(dxdt.ODE(net), y0, (0.0, 1.0)), dt=1 / steps, solver=dxdt.Heun(), gradient=Backsolve(), compile=True
        )
        kept.append(bytes_of_tensors() - before)
        assert sol.y1.requires_grad and sol.stats.steps == steps
    assert kept[1] == kept[2] < 4096


@pytest.mark.slow
def test_frozen_parameters_and_unused_arguments(traced, strict):
    net = Net()
    net.upper.requires_grad_(False)
    y0, idle = torch.ones(2, 3, dtype=D, requires_grad=True), torch.ones(2, dtype=D, requires_grad=True)
    found = []
    for compile in (True, False):
        field = dxdt.ODE(lambda t, y, idle: net(t, y))
        y1 = dxdt.solve(field, y0, (0.0, 1.0), args=(idle,), gradient=Backsolve(), compile=compile).y1
        found.append(torch.autograd.grad(y1.sum(), [y0, idle, *net.lower.parameters()]))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert not found[0][1].any()


def test_a_backward_solve_that_fails_is_an_error(traced, strict):
    y0 = torch.ones(3, dtype=D, requires_grad=True)
    for compile in (True, False):
        rule = Backsolve(max_steps=2)
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y: -y), y0, (0.0, 3.0), gradient=rule, compile=compile, solver=dxdt.Heun(), dt=0.5
        )
        with pytest.raises(RuntimeError, match="backward solve of Backsolve failed: took max_steps.*Checkpointed"):
            sol.y1.sum().backward()


def test_a_backward_solve_without_compiled_form_runs_eager(fresh, monkeypatch):
    """The forward solve is over by then: the eager sweep takes over, and says so once."""
    from dxdt.compiler import compile as functions

    made = iter([lambda graph, inputs: graph.forward])
    monkeypatch.setattr(functions, "backend", lambda graph, inputs: next(made)(graph, inputs))
    with pytest.warns(RuntimeWarning, match="the backward solve has no compiled form"):
        found, _, _ = pulled(True, False, {}, **COARSE)
    wanted, _, _ = pulled(False, False, {}, **COARSE)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-11)


def test_what_the_rule_refuses_it_refuses_compiled(traced):
    w, y0 = torch.tensor(0.5, dtype=D, requires_grad=True), torch.ones(2, dtype=D, requires_grad=True)
    options = dict(gradient=Backsolve(), compile=True, solver=dxdt.Heun(), dt=0.5)
    with pytest.raises(ValueError, match="not an input of the solve"):
        dxdt.solve(dxdt.ODE(lambda t, y: -w * y), y0, (0.0, 1.0), **options)
    with pytest.raises(ValueError, match="dense output"):
        dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0.0, 1.0), save=Save(dense=True), **options)
    sol = dxdt.solve(dxdt.ODE(lambda t, y: -(y**3)), y0, (0.0, 1.0), **options)
    with pytest.raises(RuntimeError, match="Backsolve has no second"):
        (g,) = torch.autograd.grad(sol.y1.sum(), y0, create_graph=True)
        torch.autograd.grad(g.sum(), y0)
