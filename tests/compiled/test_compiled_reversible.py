"""Walking back compiled: the gradients of `Direct` on the same steps, and no state kept."""

import importlib

import pytest
import torch
from torch import nn

import dxdt
from dxdt import PID, AsynchronousLeapfrog, Direct, McCallumFoster, Reversible, ReversibleHeun, Save
from dxdt.ops.tree import leaves

D = torch.float64
ENGINE = importlib.import_module("dxdt.diffeq.programs.engine")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.lower, self.upper = nn.Linear(2, 4, dtype=D), nn.Linear(4, 2, dtype=D)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=D) / 2

    def forward(self, t, y, rate):
        return self.upper(torch.tanh(self.lower(y))) * rate * torch.cos(t).unsqueeze(-1)


def shaken(t, y, rate):
    return 0.3 + 0.1 * torch.sin(y) * rate


def pulled(rule, compile, solver, driver=None, **options):
    net = Net()
    y0 = torch.linspace(-1, 1, 6, dtype=D).reshape(3, 2).requires_grad_()
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)
    equation = dxdt.ODE(net)
    if driver is not None:
        equation = dxdt.SDE(net, shaken, dxdt.Diagonal(), dxdt.Stratonovich())
    options = {"save": torch.tensor([0.0, 0.31, 0.6, 1.3], dtype=D), **options}
    sol = dxdt.solve(
        *(equation, y0, (0.0, 1.3)),
        **dict(args=(rate,), solver=solver, driver=driver, gradient=rule, compile=compile, **options),
    )
    loss = torch.nan_to_num(sol.ys).sin().sum()
    if sol.path is not None:
        loss = loss + sol.path(torch.tensor(0.45, dtype=D)).square().sum()
    return torch.autograd.grad(loss, [y0, rate, *net.parameters()]), sol


ADAPTIVE = dict(controller=PID(1e-4, 1e-5))
CASES = {
    "heun-rows": (ReversibleHeun(), dict(**ADAPTIVE, per_sample=True)),
    "heun-many-chunks": (ReversibleHeun(), dict(dt=0.004)),
    "leapfrog-end": (AsynchronousLeapfrog(), dict(dt=0.05, save=None)),
    "leapfrog-steps": (AsynchronousLeapfrog(), dict(dt=0.05, save=Save(steps=True, every=3, end=True))),
    "wrapped": (McCallumFoster(dxdt.Midpoint()), dict(dt=0.1)),
    "wrapped-adaptive": (McCallumFoster(dxdt.Bosh3()), ADAPTIVE),
    "wrapped-dense": (McCallumFoster(dxdt.Midpoint()), dict(dt=0.1, per_sample=True, save=Save(dense=True, end=True))),
    "increments": (ReversibleHeun(), dict(dt=0.1, driver=dxdt.Increments(3), per_sample=True)),
    "brownian": (ReversibleHeun(), dict(dt=0.1, driver=dxdt.Brownian(3))),
}
DEFAULT = ("increments", "wrapped")


def expect_the_same(name):
    solver, options = CASES[name]
    found, sol = pulled(Reversible(), True, solver, **options)
    wanted, eager = pulled(Direct(), False, solver, **options)
    assert torch.equal(torch.as_tensor(sol.stats.steps), torch.as_tensor(eager.stats.steps))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name", [x if x in DEFAULT else pytest.param(x, marks=pytest.mark.slow) for x in CASES if x != "heun-rows"]
)
def test_gradients_of_the_steps(name, traced, strict, monkeypatch):
    """In chunks that are short, so that solves of few steps are several."""
    monkeypatch.setattr(ENGINE, "_SLOTS", 8)
    expect_the_same(name)


def test_generated_code(strict):
    expect_the_same("heun-rows")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "heun-rows"])
def test_more_generated_code(name, strict):
    expect_the_same(name)


@pytest.mark.slow
def test_a_method_that_undoes_its_steps_nearly(traced, strict):
    """EES25 has no memory: what it walks back is its own, to the order in which it is symmetric."""
    for compile in (True, False):
        found, _ = pulled(Reversible(), compile, dxdt.EES25(), dt=0.02)
        wanted, _ = pulled(Direct(), False, dxdt.EES25(), dt=0.02)
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_training_is_one_program(traced, strict):
    """A hundred steps of training over solves of different lengths: one forward, one walk."""
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    for i in range(100):
        options = dict(solver=AsynchronousLeapfrog(), dt=0.25, gradient=Reversible(), compile=True)
        rate = torch.tensor(0.5 + i / 100, dtype=D)
        sol = dxdt.solve(dxdt.ODE(net), torch.ones(2, 2, dtype=D), (0.0, 0.5 + (i % 5) / 2), args=(rate,), **options)
        optimiser.zero_grad()
        sol.y1.square().sum().backward()
        optimiser.step()
    assert len(traced) == 2


def test_only_clocks_are_kept(traced, strict, monkeypatch):
    """Start, length and end of each step and row; the noise of known steps is drawn again."""
    steps = 60
    monkeypatch.setattr(ENGINE, "_SLOTS", 16)
    y0 = torch.ones(1, 300, dtype=D, requires_grad=True)
    equation = dxdt.SDE(lambda t, y: -y, lambda t, y: torch.cos(y), dxdt.Diagonal(), dxdt.Stratonovich())
    options = dict(solver=ReversibleHeun(), driver=dxdt.Increments(2), gradient=Reversible(), compile=True)
    sol = dxdt.solve(equation, y0, (0.0, 1.0), dt=1 / steps, **options)
    node = sol.y1.grad_fn
    while not hasattr(node, "task"):
        node = node.next_functions[0][0]
    forward = node.task.forward
    held = [x for read in forward.tape for x in leaves(list(vars(read).values())) if isinstance(x, torch.Tensor)]
    held += [c.cell_contents for read in forward.tape for c in read.noise.__closure__ or ()]
    size = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held if isinstance(x, torch.Tensor)}
    assert sol.stats.steps == steps and sum(size.values()) <= 24 * steps + 64


def test_a_walk_that_misses_its_start_warns(traced, strict):
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    options = dict(solver=ReversibleHeun(), dt=0.1, gradient=Reversible(), compile=True)
    sol = dxdt.solve(dxdt.ODE(lambda t, y: -30 * y), y0, (0.0, 3.0), **options)
    with pytest.warns(RuntimeWarning, match="missed y0"):
        sol.y1.sum().backward()


def test_what_cannot_be_walked_compiled_runs_eager(fresh):
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    options = dict(solver=ReversibleHeun(), dt=0.1, gradient=Reversible(), compile=True)
    t1 = torch.tensor(1.0, dtype=D, requires_grad=True)
    stop = dxdt.Event(lambda t, y: y[0] - 0.5)
    refused = (dict(t=(0.0, 1.0), event=stop), "events and jumps"), (dict(t=(0.0, t1)), "derivatives for times")
    for more, why in refused:
        with pytest.warns(RuntimeWarning, match=why):
            sol = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, **more, **options)
        assert torch.autograd.grad(sol.y1.sum(), y0)[0].isfinite().all()
    with pytest.raises(ValueError, match="Reversible walks back along a reversible solver"):
        dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0.0, 1.0), **{**options, "solver": dxdt.Heun()})


@pytest.mark.slow
def test_a_walk_without_compiled_form_runs_eager(fresh, monkeypatch):
    from dxdt.compiler import compile as functions

    made = iter([lambda graph, inputs: graph.forward])
    monkeypatch.setattr(functions, "backend", lambda graph, inputs: next(made)(graph, inputs))
    with pytest.warns(RuntimeWarning, match="the walk back has no compiled form"):
        found, _ = pulled(Reversible(), True, ReversibleHeun(), dt=0.1)
    wanted, _ = pulled(Direct(), False, ReversibleHeun(), dt=0.1)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
