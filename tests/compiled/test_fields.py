"""Fields of one code that are not the same field: what a program was made for is looked at again."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import dxdt
from dxdt import ODE, Euler

START = torch.tensor([[1.0, 0.5, -0.2]])


def pair(field, args=(), seed=5):
    """The values of the eager and of the compiled solve, and why the latter ran eager."""
    found, said = [], []
    for compile in (False, True):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            options = dict(solver=Euler(), dt=0.25, args=args, compile=compile)
            found.append(dxdt.solve(ODE(field), START.clone(), (0.0, 1.0), **options).y1)
        said += [str(w.message) for w in seen if compile]
    return *found, said


def dropping(module):
    return lambda t, y, module=module: module(y)


def switched(flag):
    return lambda t, y: torch.nn.functional.dropout(y, 0.5, training=flag)


class Holds:
    def __init__(self, module):
        self.module = module

    def __call__(self, t, y):
        return self.module(y)


NET = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).requires_grad_(False)


def knows(t, y):
    return NET(y)


@pytest.mark.parametrize("make", [dropping, Holds, lambda module: knows], ids=["default", "attribute", "global"])
def test_a_module_is_found_wherever_a_field_has_it(make, traced):
    """The dropout of a module that was met in its other mode is not compiled."""
    for mode in (False, True, False):
        eager, compiled, said = pair(make(NET.train(mode)))
        assert torch.allclose(eager, compiled)
        assert not mode or len(said) == 1 and "draws random numbers" in said[0]


def test_random_numbers_are_found_in_what_was_traced(fresh):
    """A flag is no part of what identifies a field."""
    for flag in (False, True):
        eager, compiled, said = pair(switched(flag))
        assert torch.equal(eager, compiled)
    assert len(said) == 1 and "draws random numbers" in said[0]


@pytest.mark.parametrize("draw", [np.random.rand, random.random])
def test_other_generators_of_random_numbers(draw, traced):
    eager, compiled, said = pair(lambda t, y: y * draw())
    assert torch.equal(eager, compiled) and not traced
    assert len(said) == 1 and "draws random numbers" in said[0]


class Wide:
    def __init__(self, wide):
        self.wide = wide

    def __call__(self, t, y):
        return -y if self.wide else -y[:, :1]


def test_shapes_are_looked_at_again(traced):
    pair(Wide(True))
    with pytest.raises(ValueError, match="return the time derivative of each entry"):
        dxdt.solve(ODE(Wide(False)), START, (0.0, 1.0), solver=Euler(), dt=0.25, compile=True)


def floats_only(rate):
    return lambda t, y: -rate * y if isinstance(rate, float) else y


def refuses_tensors(rate):
    return lambda t, y: -y * torch.nn.functional.dropout(y, rate, training=rate > 1).sum()


@pytest.mark.parametrize("make", [floats_only, pytest.param(refuses_tensors, marks=pytest.mark.slow)])
def test_numbers_that_tensors_cannot_stand_for(make, traced):
    """A field that tells tensors from numbers, or refuses them, keeps its numbers."""
    for i in range(3):
        eager, compiled, said = pair(make(0.5 + i / 10))
        assert torch.allclose(eager, compiled) and not said


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(3, affine=False), 0
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, t, y):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        return self.norm(torch.cat([y, 2 * y]))[:1] * self.mean + self.calls


def test_a_field_that_counts_is_met_without_being_counted(traced):
    """The look at a field leaves its buffers and attributes as they were."""
    fields = [Counts(), Counts()]
    for field, compile in zip(fields, (False, True), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            field.out = dxdt.solve(ODE(field), START, (0.0, 1.0), solver=Euler(), dt=0.25, compile=compile).y1
    eager, compiled = fields
    assert compiled.calls == eager.calls == 4 and torch.equal(compiled.out, eager.out)
    for name, value in eager.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[name])


def test_each_field_is_warned_of(traced):
    """By its name, once; torch's own warnings are not passed on."""

    def first(t, y):
        return -y if y.sum() > 0 else y

    def second(t, y):
        return -y if y.sum() > 0 else y

    for field in (first, second):
        (told,) = pair(field)[2]
        assert f"test_each_field_is_warned_of.{field.__name__}: a Python branch" in told and "torch.where" in told
        assert not pair(field)[2]


def indexes(t, y):
    return torch.linspace(0, 1, 11)[(t * 10).long()] * y


def interpolates(t, y):
    return float(np.interp(float(t), [0, 1], [0, 1])) * y


def opens(t, y):
    with open("/dev/null"):
        return -y


def inner(t, y):
    with torch.enable_grad():
        z = y.detach().requires_grad_()
        return -torch.autograd.grad(z.square().sum(), z)[0]


@pytest.mark.parametrize(
    ("field", "words"),
    [(indexes, "index_select"), (interpolates, "numpy's interp"), (opens, "calls open"), (inner, "torch.func.grad")],
)
def test_warnings_name_the_remedy(field, words, traced):
    eager, compiled, said = pair(field)
    assert torch.equal(eager, compiled) and not traced
    assert len(said) == 1 and words in said[0] and f"in {field.__name__}" in said[0]


def test_a_default_device_elsewhere(fresh, strict):
    """The device of the state counts, and memory of programs is the host's."""

    def field(t, y):
        return torch.sin(2 * y)

    def run(compile):
        return dxdt.solve(ODE(field), START, (0.0, 1.0), solver=Euler(), dt=0.25, compile=compile).y1

    wanted = run(False)
    with torch.device("meta"):
        assert torch.allclose(run(True), wanted)
