"""Ways in which a field can know something, and how that changes between its solve and the backward pass."""

import functools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Reversible

D = torch.float64
RULES = {
    "direct": Direct(),
    "default": None,
    "checkpointed": Checkpointed(),
    "slots": Checkpointed(2),
    "backsolve": Backsolve(),
    "reversible": Reversible(),
}
RATE = 1.0


class Net(nn.Module):
    """A linear field with everything that a module can hold."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2, dtype=D)
        self.frozen = nn.Linear(2, 2, dtype=D).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2, dtype=D)
        self.register_buffer("rate", torch.ones((), dtype=D))
        self.factor = 1.0

    def forward(self, t, y):
        return self.scale * self.factor * self.rate * (self.inner(y).sin() + self.frozen(y).cos())


class Normal(Net):
    def forward(self, t, y):
        return self.norm(self.inner(y))


class Called:
    """A field that is an object."""

    def __init__(self, net):
        self.net, self.rate = net, 1.0

    def __call__(self, t, y):
        return self.rate * self.net(t, y)

    def method(self, t, y):
        return self.rate * self.net(t, y)


def global_field(t, y, net):
    return RATE * net(t, y)


def set_global(value):
    global RATE
    RATE = value


def setting(make):
    """A way to know something: (net) -> field, args, change, undo."""
    WAYS[make.__name__] = make
    return make


WAYS = {}


@setting
def closure_number(net):
    rate = 1.0

    def change(to=3.0):
        nonlocal rate
        rate = to

    return lambda t, y: rate * net(t, y), (), change


@setting
def closure_net(net):
    used, other = net, Net()

    def change():
        nonlocal used
        used = other

    return lambda t, y: used(t, y).sin(), (), change


@setting
def closure_tensor(net):
    rate = torch.ones(2, dtype=D)

    def change():
        nonlocal rate
        rate = rate * 3

    return lambda t, y: rate * net(t, y), (), change


@setting
def closure_tensor_written(net):
    rate = torch.ones(2, dtype=D)
    return lambda t, y: rate * net(t, y), (), lambda: rate.mul_(3)


@setting
def inner_function(net):
    rate = 1.0

    def slowed(x):
        return rate * x

    def change():
        nonlocal rate
        rate = 3.0

    return lambda t, y: slowed(net(t, y)), (), change


@setting
def global_number(net):
    set_global(1.0)
    return global_field, (net,), lambda: set_global(3.0)


@setting
def attribute(net):
    return net, (), lambda: setattr(net, "factor", 3.0)


@setting
def submodule(net):
    return net, (), lambda: setattr(net, "inner", nn.Linear(2, 2, dtype=D))


@setting
def buffer(net):
    return net, (), lambda: setattr(net, "rate", torch.full((), 3.0, dtype=D))


@setting
def buffer_written(net):
    return net, (), lambda: net.rate.mul_(3)


@setting
def frozen_parameter_written(net):
    def change():
        with torch.no_grad():
            net.frozen.weight.mul_(3)

    return net, (), change


@setting
def eval_then_train(net):
    net.__class__ = Normal
    net.eval()
    return net, (), net.train


@setting
def running_averages(net):
    net.__class__ = Normal
    net.eval()

    def change():
        net.train()(0.0, torch.randn(5, 2, dtype=D))
        net.eval()

    return net, (), change


@setting
def hook(net):
    return net, (), lambda: net.inner.register_forward_hook(lambda m, x, y: 3 * y)


@setting
def class_attribute(net):
    kind = type("Own", (Net,), {"scale": 1.0})
    net.__class__ = kind
    return net, (), lambda: setattr(kind, "scale", 3.0)


@setting
def method_of_the_class(net):
    kind = type("Own", (Net,), {"rate_of": lambda self: 1.0, "forward": lambda s, t, y: s.rate_of() * s.inner(y).sin()})
    net.__class__ = kind
    return net, (), lambda: setattr(kind, "rate_of", lambda self: 3.0)


@setting
def called_object(net):
    field = Called(net)
    return field, (), lambda: setattr(field, "rate", 3.0)


@setting
def bound_method(net):
    field = Called(net)
    return field.method, (), lambda: setattr(field, "rate", 3.0)


@setting
def namespace(net):
    options = SimpleNamespace(rate=1.0)
    holder = Called(net)
    holder.options = options

    def field(t, y):
        return holder.options.rate * net(t, y)

    def change():
        options.rate = 3.0

    return field, (), change


@setting
def list_entry(net):
    rates = [1.0, 2.0]
    return lambda t, y: rates[0] * net(t, y), (), lambda: rates.insert(0, 3.0)


@setting
def argument_dictionary(net):
    options = {"rate": 1.0}
    return lambda t, y, o: o["rate"] * net(t, y), (options,), lambda: options.update(rate=3.0)


@setting
def argument_index(net):
    index = torch.tensor([0])
    table = torch.tensor([1.0, 3.0], dtype=D)
    return lambda t, y, i: table.index_select(0, i) * net(t, y), (index,), lambda: index.fill_(1)


@setting
def numpy_array(net):
    rates = np.ones(2)
    return lambda t, y: torch.from_numpy(rates) * net(t, y), (), lambda: rates.fill(3.0)


@setting
def partial_keyword(net):
    field = functools.partial(lambda t, y, rate: rate * net(t, y), rate=1.0)
    return field, (), lambda: field.keywords.update(rate=3.0)


@setting
def default_dtype(net):
    def change():
        torch.set_default_dtype(D)

    return lambda t, y: net(t, y) + torch.ones(2).mul(1e8).add(1).sub(1e8), (), change


def gradient_of(rule, compile, way, early):
    """Gradients of y0 and of the network, taken before or after the change."""
    torch.manual_seed(0)
    net = Net()
    y0 = torch.tensor([[0.4, -0.2], [1.0, 0.3]], dtype=D, requires_grad=True)
    field, args, change = WAYS[way](net)
    wanted = [y0, *net.inner.parameters()]
    reversible = isinstance(rule, Reversible)
    solver = dxdt.ReversibleHeun() if reversible else dxdt.Midpoint()
    sol = dxdt.solve(dxdt.ODE(field), y0, (0.0, 1.0), args=args, solver=solver, dt=0.25, gradient=rule, compile=compile)
    if not early:
        change()
    (sol.y1**2).sum().backward()
    torch.set_default_dtype(torch.float32)
    return [x.grad for x in wanted if x.grad is not None]
