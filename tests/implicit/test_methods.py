"""Every method finds what it claims to find, row by row, and says so where it does not."""

import inspect

import pytest
import torch

import dxdt.implicit as im
from dxdt.implicit import Kind
from implicit_problems import FUNCTIONS, X, contraction, pushed, residuals, valley

D = torch.float64
METHODS = [
    value()
    for name in im.__all__
    if inspect.isclass(value := getattr(im, name))
    and issubclass(value, im.Method)
    and value not in (im.Method, im.Bisection)
]
SERVED = [(m, k) for m in METHODS for k in Kind if k <= m.kind]


def named(value):
    return value.name.lower() if isinstance(value, Kind) else type(value).__name__


def wrong(kind, y, x):
    """How far from a solution."""
    if kind is Kind.FIXED_POINT:
        return (contraction(y, x) - y).abs().max()
    if kind is Kind.ROOT:
        return pushed(y, x).abs().max()
    return (y - x).abs().max()


@pytest.mark.parametrize(("method", "kind"), SERVED, ids=lambda v: named(v))
def test_every_method_solves_every_kind_up_to_its_own(method, kind):
    solve, f = FUNCTIONS[kind]
    y0 = X + 0.1 * torch.sin(torch.arange(12, dtype=D).reshape(4, 3)) if kind > Kind.ROOT else X
    result = solve(f, y0, X, method, per_sample=True)
    assert result.ok.all()
    # Line searches see values of phi, whose rounding hides the square root of it.
    assert wrong(kind, result.y, X) < (1e-6 if method.kind is Kind.MINIMUM else 1e-9)
    joint = solve(lambda y, x: f(y, x).sum() if kind is Kind.MINIMUM else f(y, x), y0, X, method, max_steps=1000)
    assert joint.status is im.Status.SUCCESS
    assert (joint.y - result.y).abs().max() < 1e-5


@pytest.mark.parametrize(("method", "kind"), SERVED, ids=lambda v: named(v))
def test_rows_do_not_read_each_other(method, kind):
    """By the bit, whatever the others do: here one is NaN, one far away."""
    solve, f = FUNCTIONS[kind]
    other = X.clone()
    other[1], other[3] = float("nan"), 50.0
    y0, strange = X * 0.9, X * 0.9
    strange = torch.where(torch.isfinite(other), strange, float("nan"))
    first = solve(f, y0, X, method, per_sample=True, throw=False, max_steps=40)
    second = solve(f, strange, other, method, per_sample=True, throw=False, max_steps=40)
    for i in (0, 2):
        assert torch.equal(first.y[i], second.y[i])
        assert first.status[i] is second.status[i] and first.steps[i] == second.steps[i]
    assert not second.status[1].ok


def test_trees_and_single_precision():
    f = lambda y: {"a": y["a"] ** 2 - 2, "b": (y["b"][0] ** 3 - y["a"].sum(), y["b"][1] - 1)}  # noqa: E731
    y0 = {"a": torch.ones(2), "b": (torch.ones(()), torch.zeros(3, dtype=torch.complex64))}
    result = im.root(f, y0)
    assert result.y["a"].dtype is torch.float32 and result.y["b"][1].dtype is torch.complex64
    assert torch.allclose(result.y["a"], torch.full((2,), 2**0.5))
    assert torch.allclose(result.y["b"][0] ** 3, result.y["a"].sum())


def test_newton_converges_quadratically():
    a = torch.tensor([2.0], dtype=D)
    errors = []
    for steps in (2, 3, 4):
        y = im.root(lambda y: y**2 - a, torch.tensor([1.5], dtype=D), max_steps=steps, throw=False).y
        errors.append(float((y - 2**0.5).abs()))
    assert errors[1] < 2 * errors[0] ** 2 and errors[2] < 1e-11


def test_a_slow_iteration_is_not_taken_for_a_converged_one():
    """Steps of Picard fall below the tolerance a thousand steps before the error does."""
    g = lambda y: 0.99 * y + 0.01  # noqa: E731
    result = im.fixed_point(g, torch.zeros(1, dtype=D), (), im.Picard(), rtol=1e-6, max_steps=5000)
    assert (result.y - 1).abs() < 2e-6


@pytest.mark.parametrize("shift", [0.3, 0.0, 1.0])
def test_bisection_closes_on_the_change_of_sign(shift):
    ends = torch.tensor([0.0, -1.0], dtype=D), torch.tensor([1.0, 2.0], dtype=D)
    result = im.root(lambda y: (y - shift) ** 3, torch.zeros(2, dtype=D), (), im.Bisection(*ends), per_sample=True)
    assert result.ok.all() and (result.y - shift).abs().max() < 1e-10


def test_bounds_hold_and_what_they_hold_follows_them():
    """min (y0 - 2)^2 + (y1 - y0)^2 with y0 <= b: both end at b."""
    bound = torch.tensor(1.0, dtype=D, requires_grad=True)
    high = torch.stack([bound, torch.tensor(9.0, dtype=D)])
    r = lambda y: torch.stack([y[0] - 2, y[1] - y[0]])  # noqa: E731
    result = im.least_squares(r, torch.zeros(2, dtype=D), (), im.LevenbergMarquardt(high=high))
    assert (result.y - 1).abs().max() < 1e-9
    (slope,) = torch.autograd.grad(result.y.sum(), bound)
    assert abs(float(slope) - 2) < 1e-9


BAD = [
    ("singular", lambda y: y * 0 + 1, im.Newton(), im.Status.SINGULAR, "LevenbergMarquardt"),
    ("no root", lambda y: torch.exp(y) + 1, im.Newton(), im.Status.SINGULAR, "LevenbergMarquardt"),
    ("far away", lambda y: torch.atan(y - 1), im.Newton(), im.Status.SINGULAR, "LevenbergMarquardt"),
    ("out of the domain", lambda y: torch.log(y + 10), im.Newton(), im.Status.NOT_FINITE, "trust region"),
    ("too few steps", lambda y: y**9, im.Newton(), im.Status.MAX_STEPS, "raise max_steps"),
    ("no bracket", lambda y: y**2 + 1, im.Bisection(-1.0, 1.0), im.Status.NO_BRACKET, "changes its sign"),
]


@pytest.mark.parametrize(("f", "method", "status", "remedy"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_fails_says_so_for_each_sample(f, method, status, remedy):
    y0 = torch.full((2, 1), -4.0, dtype=D)
    with pytest.warns(RuntimeWarning, match="2 of 2 samples failed"):
        result = im.root(f, y0, (), method, per_sample=True, max_steps=30)
    assert result.status == [status, status] and not result.ok.any()
    assert torch.isfinite(result.y).all()
    with pytest.raises(im.ImplicitError, match=remedy) as error:
        im.root(f, y0[:1], (), method, max_steps=30)
    assert error.value.result.status is status


def test_a_method_kept_from_running_away_finds_what_newton_does_not():
    y0 = torch.full((2, 1), -4.0, dtype=D)
    for method in (im.Dogleg(), im.LevenbergMarquardt()):
        result = im.root(lambda y: torch.atan(y - 1), y0, (), method, per_sample=True)
        assert result.ok.all() and (result.y - 1).abs().max() < 1e-9


REFUSED = [
    (lambda: im.root(pushed, X, X, im.Picard()), ValueError, "Newton"),
    (lambda: im.minimise(valley, X, X, im.Newton(), per_sample=True), ValueError, "BFGS"),
    (lambda: im.root(pushed, X, X, im.Newton), TypeError, r"Newton\(\)"),
    (lambda: im.root(pushed, X, X, gradient=im.Phantom()), ValueError, "Implicit"),
    (lambda: im.root(lambda y: y[:2], X), ValueError, "shape"),
    (lambda: im.root(pushed, X, X, im.Bisection(0.0, 1.0), per_sample=True), ValueError, "one in each row"),
    (lambda: im.root(pushed, X, X, rtol=-1.0), ValueError, "tolerances"),
    (lambda: im.root(pushed, X, X, maxsteps=3), TypeError, "max_steps"),
    (lambda: im.minimise(lambda y: y, X), ValueError, "one number"),
    (lambda: im.least_squares(lambda y: y[..., :1], X, per_sample=True, method=im.GaussNewton()), ValueError, "Marq"),
    (lambda: im.least_squares(residuals, X, X, im.LevenbergMarquardt(low=1.0, high=0.0)), ValueError, "interval"),
    (lambda: im.Picard(0.0), ValueError, "damping"),
    (lambda: im.Anderson(memory=1), ValueError, "memory"),
]


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED)
def test_bad_input_is_refused_with_the_remedy(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
