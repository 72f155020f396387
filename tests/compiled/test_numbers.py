"""Python numbers that change between solves, wherever they live: never a stale value."""

import functools
import sys
import warnings

import numpy as np
import pytest
import torch

import dxdt
from dxdt import ODE, Euler

Y0 = torch.tensor([1.0, -0.5, 0.25])
MODULE = sys.modules[__name__]
NUMBER = 0.0


def in_args(k):
    return (lambda t, y, k: torch.sin(t) - k * y), (k,)


def in_args_nested(k):
    return (lambda t, y, a: torch.sin(t) - a["k"][0] * y), ({"k": (k, 2.0)},)


def in_closure(k):
    return (lambda t, y: torch.sin(t) - k * y), ()


def in_nested_closure(k):
    def helper(y):
        return k * y

    return (lambda t, y: torch.sin(t) - helper(y)), ()


def in_deep_closure(k):
    def innermost(y):
        return y * k

    def helper(y):
        return innermost(y)

    return (lambda t, y: torch.sin(t) - helper(y)), ()


def in_global(k):
    MODULE.NUMBER = k
    return (lambda t, y: torch.sin(t) - NUMBER * y), ()


def scaled(k, t, y, shift=0.0):
    return torch.sin(t) + shift - k * y


def in_partial(k):
    return functools.partial(scaled, k), ()


def in_partial_keyword(k):
    return functools.partial(scaled, 1.0, shift=k), ()


def in_nested_partial(k):
    held = functools.partial(scaled, k)
    return (lambda t, y: held(t, y)), ()


def in_default(k):
    return (lambda t, y, rate=k: torch.sin(t) - rate * y), ()


def in_keyword_default(k):
    return (lambda t, y, *, rate=k: torch.sin(t) - rate * y), ()


class Object:
    rate = 0.0

    def __init__(self, k):
        self.k = k

    def __call__(self, t, y):
        return torch.sin(t) - self.k * y

    def method(self, t, y):
        return torch.sin(t) - self.k * y

    def by_class(self, t, y):
        return torch.sin(t) - self.rate * y


def in_object(k):
    return Object(k), ()


def in_owner_of_method(k):
    return Object(k).method, ()


def in_class(k):
    Object.rate = k
    return Object(0).by_class, ()


def in_object_of_closure(k):
    held = Object(k)
    return (lambda t, y: held(t, y)), ()


class Module(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, t, y):
        return torch.sin(t) - self.k * y


ONE_MODULE = Module(0.0)


def in_module(k):
    return Module(k), ()


def in_one_module(k):
    ONE_MODULE.k = k
    return ONE_MODULE, ()


def in_module_of_closure(k):
    held = Module(k)
    return (lambda t, y: held(t, y)), ()


def in_list(k):
    held = [k, 2.0]
    return (lambda t, y: torch.sin(t) - held[0] * y), ()


def in_dict(k):
    held = {"k": k}
    return (lambda t, y: torch.sin(t) - held["k"] * y), ()


def in_tuple(k):
    held = (k, 2.0)
    return (lambda t, y: torch.sin(t) - held[0] * y), ()


def in_numpy_scalar(k):
    held = np.float64(k)
    return (lambda t, y: torch.sin(t) - held * y), ()


def in_single_numpy_scalar(k):
    held = np.float32(k)
    return (lambda t, y: torch.sin(t) - y * float(held)), ()


def in_numpy_array(k):
    held = np.array([k, 1.0, k])
    return (lambda t, y: torch.sin(t) - torch.from_numpy(held).to(y) * y), ()


def in_function_attribute(k):
    def helper(y):
        return helper.k * y

    helper.k = k
    return (lambda t, y: torch.sin(t) - helper(y)), ()


def in_exponent(k):
    return (lambda t, y: -(y.abs() ** k)), ()


def in_branch(k):
    return (lambda t, y: -k * y if k > 1.05 else k * y), ()


def in_type(k):
    """What is said of the type of a number holds for an input too, or it stays a constant."""
    return (lambda t, y: -k * y if isinstance(k, float) else k * y), ()


PLACES = {name: f for name, f in globals().items() if name.startswith("in_")}
# Those that become inputs: two programs, however many values.
INPUTS = (
    *("in_args", "in_args_nested", "in_closure", "in_nested_closure", "in_deep_closure", "in_partial"),
    *("in_partial_keyword", "in_nested_partial", "in_default", "in_keyword_default", "in_numpy_scalar", "in_exponent"),
)


def end(field, args, compile, grad=False):
    y = Y0.clone().requires_grad_(grad)
    sol = dxdt.solve(ODE(field), y, (0.0, 1.0), solver=Euler(), dt=0.5, args=args, compile=compile)
    return (sol.ys, torch.autograd.grad(sol.ys.sum(), y)[0]) if grad else (sol.ys,)


def follow(place, values, grad=False):
    """Solve with each value, and compare with the eager loop; what was said."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for k in values:
            field, args = place(k)
            for a, b in zip(end(field, args, True, grad), end(field, args, False, grad), strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), k
    return [str(w.message) for w in seen if w.category is RuntimeWarning]


# One of each kind; all of them in the slow suite.
USUAL = ("in_nested_closure", "in_partial_keyword")
CASES = [x if x in USUAL else pytest.param(x, marks=pytest.mark.slow) for x in PLACES]


@pytest.mark.parametrize("place", CASES)
def test_a_value_is_never_stale(place, traced):
    said = follow(PLACES[place], (1.0, 2.0, 0.5, 1.0))
    assert place == "in_numpy_array" or not said
    assert len(traced) <= 3
    if place in INPUTS:
        assert len(traced) == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_many_values_end_eager_with_one_warning_at_most(place, traced):
    assert len(follow(PLACES[place], [1.0 + i / 10 for i in range(12)])) <= 1
