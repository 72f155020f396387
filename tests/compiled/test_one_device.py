"""Programs read nothing on the host and mix no devices: each of their functions is run on fake tensors.

A solve on the CPU shows what the functions are called with. Each is then run for one turn, as it is traced,
on tensors of another device that have no values: reading one is an error, and so is to use it with a tensor of
the CPU. The device is "meta", since torch without CUDA cannot do all of this on fake tensors of a CUDA device.
"""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import dxdt
from dxdt import ODE, PID, SDE, Backsolve, Bosh3, Brownian, Clip, Grid, Heun, Increments, Save
from dxdt.paths.native_tree import NativeTree

ENGINE, FUNCTIONS, REVERSE, ADJOINT = (
    importlib.import_module(f"dxdt.{name}")
    for name in ("diffeq.programs.engine", "compiler.compile", "diffeq.programs.pullback", "diffeq.compiled.adjoint")
)
F64 = torch.float64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, dtype=F64)

    def forward(self, t, y, rate):
        time = t.reshape(t.shape + (1,) * (y.ndim - t.ndim))
        return torch.tanh(self.linear(y)) * rate - y * torch.sin(time)


def reading(t, y, rate):
    return -y * rate.item()


def elsewhere(t, y, rate):
    return -y * rate + torch.zeros(2, dtype=F64)


class Fake:
    """Values on a device that is not there."""

    def __init__(self):
        self.seen = {}

    def __call__(self, x):
        """The same without values."""
        if id(x) not in self.seen:
            self.seen[id(x)] = self._made(x), x
        return self.seen[id(x)][0]

    def _made(self, x):
        if isinstance(x, torch.Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        if isinstance(x, torch.device):
            return torch.device("meta")
        if isinstance(x, nn.Module):
            with unset_fake_temporarily():
                module = copy.deepcopy(x)
            return self._module(module)
        if isinstance(x, tuple):
            values = [self(v) for v in x]
            return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
        if type(x).__module__.startswith("dxdt.paths") and not isinstance(x, NativeTree):
            made = copy.copy(x)
            made.__dict__.update({k: self(v) for k, v in x.__dict__.items()})
            return made
        return x

    def _module(self, module):
        for inner in module.modules():
            for name, p in inner._parameters.items():
                inner._parameters[name] = nn.Parameter(self._made(p), requires_grad=False)
        return module


def looped(keeps, body, carry):
    while keeps(*carry):
        carry = body(*carry)
    return carry


def once(keeps, body, carry):
    assert keeps(*carry).shape == ()
    return body(*carry)


@pytest.fixture
def ran(monkeypatch, fresh):
    """The functions that were run on fake tensors, and where their results are."""
    places = []

    def set_loop(loop):
        monkeypatch.setattr(ENGINE, "while_loop", loop)
        monkeypatch.setattr(ADJOINT, "while_loop", loop)
        monkeypatch.setattr(REVERSE, "_looped_eagerly", loop)

    def call(functions, name, *given):
        function = functions.made[name]._inner
        set_loop(once)
        with FakeTensorMode(), torch.no_grad():
            results = function(*Fake()(given))
            places.append((name, {x.device.type for x in results if isinstance(x, torch.Tensor)}))
        set_loop(looped)
        return function(*given)

    monkeypatch.setattr(FUNCTIONS.Functions, "call", call)
    return places


ADAPTIVE = dict(solver=Bosh3(), controller=PID(rtol=1e-3, atol=1e-4))
CASES = {
    "joint": dict(**ADAPTIVE, save=[0.4, 1.0]),
    "rows": dict(**ADAPTIVE, per_sample=True, save=Save(dense=True)),
    "grid": dict(solver=Heun(), controller=Grid(torch.linspace(0, 1, 5))),
    "many-chunks": dict(solver=dxdt.Euler(), dt=1 / 300, save=[0.3]),
    "clipped": dict(solver=Bosh3(), controller=Clip(PID(), steps=[0.3], jumps=[0.6]), per_sample=True),
    "backsolve": dict(**ADAPTIVE, gradient=Backsolve(), save=[0.4, 1.0]),
    "backsolve-rows": dict(**ADAPTIVE, gradient=Backsolve(seminorm=False), per_sample=True),
}


@pytest.mark.parametrize("name", list(CASES))
def test_equations_without_noise(name, ran, strict):
    y0 = torch.ones(3, 2, dtype=F64, requires_grad=True)
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    ends = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64, requires_grad=name == "joint")
    sol = dxdt.solve(ODE(Net()), y0, ends, args=(rate,), compile=True, **CASES[name])
    (sol.path(torch.tensor(0.4)) if sol.path is not None else sol.ys).sum().backward()
    kinds = {kind for kind, _ in ran}
    assert kinds == {"first", "sweep" if "backsolve" in name else "back"} | {"more"} & kinds
    assert ("more" in kinds) == (name == "many-chunks")
    assert all(where == {"meta"} for _, where in ran), ran


@pytest.mark.parametrize("driver", [Increments(1), Brownian(1)])
def test_equations_with_noise(driver, ran, strict):
    y0 = torch.ones(3, 2, dtype=F64, requires_grad=True)
    equation = SDE(lambda t, y: -y, lambda t, y: 0.1 + 0.2 * y)
    options = dict(solver=dxdt.EulerMaruyama(), dt=0.1, per_sample=True, driver=driver, compile=True)
    dxdt.solve(equation, y0, (0.0, 1.0), **options).ys.sum().backward()
    assert [kind for kind, _ in ran] == ["first", "back"]
    assert all(where == {"meta"} for _, where in ran), ran


@pytest.mark.parametrize("field", [reading, elsewhere])
def test_what_is_found(field, ran):
    """Fields that do what a program may not."""
    y0, rate = torch.ones(3, 2, dtype=F64), torch.tensor(0.5, dtype=F64)
    with pytest.raises(Exception, match="_local_scalar_dense|item|devices"):
        dxdt.solve(ODE(field), y0, (0.0, 1.0), args=(rate,), compile=True, **ADAPTIVE)
