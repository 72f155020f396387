"""Modules that change between solves, or are not plain: the answer is always that of the eager loop."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import dxdt

D = torch.float64


def width(n=8, **options):
    torch.manual_seed(n)
    return nn.Sequential(nn.Linear(3, n, **options), nn.Tanh(), nn.Linear(n, 3, **options)).to(D)


class Shared(nn.Module):
    """One layer, used twice under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, dtype=D)
        self.second = self.first

    def forward(self, y):
        return torch.tanh(self.second(torch.tanh(self.first(y))))


class Listed(nn.Module):
    """Layers in a list and a dictionary, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3, dtype=D) for _ in range(2)])
        self.named = nn.ModuleDict({"last": nn.Linear(3, 3, dtype=D)})
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=D))
        self.register_buffer("shift", torch.ones(3, dtype=D))

    def forward(self, y):
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return self.scale * self.named["last"](y) + self.shift


def normed(train):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(D)
    net[1].running_mean += 0.3
    return net.train(train)


def weight_normed():
    net = width()
    net[0] = parametrizations.weight_norm(net[0])
    return net


def spectral_normed():
    net = width().eval()
    net[0] = parametrizations.spectral_norm(net[0])
    return net.eval()


def fields():
    return {
        "widths": [width(5), width(7), width(5)],
        "shared, listed, weight norm": [nn.Sequential(Shared(), Listed(), weight_normed())],
        "without bias": [width(6, bias=False), width(6)],
        "batch norm": [normed(False)],
        "spectral norm": [spectral_normed()],
    }


def both(net, y0, **options):
    """Values, and gradients for the state and for parameters, compiled and eager."""
    answers = []
    for compiled in (True, False):
        net.zero_grad()
        y = y0.clone().requires_grad_()
        sol = dxdt.solve(dxdt.ODE(lambda t, y: net(y)), y, (0.0, 1.0), dt=0.5, solver=dxdt.Euler(), compile=compiled)
        sol.y1.square().sum().backward()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        answers.append([sol.y1.detach(), y.grad, *grads])
    return answers


def agree(given, wanted):
    assert len(given) == len(wanted)
    for a, b in zip(given, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


USUAL = "shared, listed, weight norm"
KINDS = [x if x == USUAL else pytest.param(x, marks=pytest.mark.slow) for x in fields()]


@pytest.mark.parametrize("kind", KINDS)
def test_modules(traced, strict, kind):
    y0 = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)
    for net in fields()[kind]:
        agree(*both(net, y0))


def freezes(net):
    net[0].weight.requires_grad_(False)


def frees(net):
    net[0].weight.requires_grad_(True)


def scales(net):
    with torch.no_grad():
        net[0].weight *= 2


def replaces_a_weight(net):
    net[0].weight = nn.Parameter(torch.ones(8, 3, dtype=D))


def replaces_a_layer(net):
    net[1] = nn.Sigmoid()


def widens(net):
    net[0], net[2] = width(5)[0], width(5)[2]


def hooks(net):
    net[1].register_forward_hook(lambda module, given, made: 2 * made)


def unhooks(net):
    net[1]._forward_hooks.clear()


def narrows(net):
    net.float()


ALL = (freezes, frees, scales, replaces_a_weight, replaces_a_layer, widens, hooks, unhooks, narrows)


@pytest.mark.parametrize(
    "changes",
    [(scales, widens, hooks), pytest.param(ALL, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_module_that_changes(traced, strict, changes):
    """Frozen and free parameters, other values, another layer, a hook, another dtype: one after the other."""
    net, y0 = nn.Sequential(*width(), nn.Dropout(0.5)).eval(), torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)
    agree(*both(net, y0))
    for change in changes:
        change(net)
        dtype = net[2].weight.dtype
        given, wanted = both(net, y0.to(dtype))
        assert len(given) == len(wanted)
        bounds = dict(rtol=1e-9, atol=1e-11) if dtype is D else dict(atol=1e-5)
        assert all(torch.allclose(a, b, **bounds) for a, b in zip(given, wanted, strict=True)), change


class Counting(nn.Module):
    """Counts its calls and notes its times, as fields for torchdiffeq do."""

    def __init__(self):
        super().__init__()
        self.net, self.nfe, self.times = width(), 0, []

    def forward(self, y):
        self.nfe += 1
        self.times.append(len(y))
        return self.net(y)


@pytest.mark.parametrize("make", [lambda: normed(True), Counting])
def test_modules_that_remember_run_eager(traced, make):
    """Counts, lists and running averages are those of the eager loop; one warning names what is remembered."""
    y0, held = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3), []
    for compiled in (True, False):
        net = make()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                dxdt.solve(dxdt.ODE(lambda t, y, net=net: net(y)), y0, (0.0, 1.0), dt=0.5, compile=compiled)
        assert len(told) == compiled and not traced
        assert all("whenever it is called" in str(w.message) for w in told)
        held.append([getattr(net, name, None) for name in ("nfe", "times")] + list(net.buffers()))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*held, strict=True))


def counting(kind):
    """A field that notes its calls in something that it closes over, and what it noted."""
    calls, total, number = [], torch.zeros(()), 0

    def in_list(t, y):
        calls.append(1)
        return -y

    def in_tensor(t, y):
        total.add_(1)
        return -y

    def in_number(t, y):
        nonlocal number
        number += 1
        return -y

    fields = {"list": in_list, "tensor": in_tensor, "number": in_number}
    return fields[kind], lambda: (len(calls), float(total), number)


@pytest.mark.parametrize("kind", ["list", "tensor", "number"])
def test_functions_that_remember_run_eager(fresh, kind):
    """The look at a field leaves no trace, and the counts are those of the eager loop."""
    noted = []
    for compiled in (True, False):
        field, counts = counting(kind)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            dxdt.solve(dxdt.ODE(field), torch.ones(3), (0.0, 1.0), dt=0.5, solver=dxdt.RK4(), compile=compiled)
        assert len(told) == compiled and all("whenever it is called" in str(w.message) for w in told)
        noted.append(counts())
    assert noted[0] == noted[1] and sum(noted[0]) == 8


def test_a_buffer_that_is_not_a_number_is_no_change(traced, strict):
    net = Listed()
    net.register_buffer("unused", torch.tensor(float("nan")))
    with torch.no_grad():
        dxdt.solve(dxdt.ODE(lambda t, y: net(y)), torch.ones(2, 3, dtype=D), (0.0, 1.0), dt=0.5, compile=True)
