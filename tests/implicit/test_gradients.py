"""Derivatives of solutions: exact rules against finite differences, cheap ones against what they claim."""

import pytest
import torch
from torch import nn

import dxdt.implicit as im
from dxdt.ops.autodiff import jacobian
from dxdt.ops.linear import gmres
from implicit_problems import FUNCTIONS, X, contraction, pushed

D = torch.float64
EXACT = {
    "dense": im.Implicit(),
    "gmres": im.Implicit(im.GMRES()),
    "neumann": im.Implicit(im.Neumann(200)),
    "unrolled": im.Unrolled(),
    "truncated": im.Truncated(200),
    "phantom": im.Phantom(200, 0.9),
}
CHOICES = {
    im.Kind.FIXED_POINT: im.Picard(),
    im.Kind.ROOT: im.Newton(),
    im.Kind.LEAST_SQUARES: im.LevenbergMarquardt(),
    im.Kind.MINIMUM: im.BFGS(),
}


def solved(kind, x, gradient=None, **options):
    solve, f = FUNCTIONS[kind]
    options |= {} if gradient is None else {"gradient": gradient}
    return solve(f, X * 0.8, x, CHOICES[kind], per_sample=True, throw=True, **options).y


@pytest.mark.parametrize("kind", list(im.Kind), ids=lambda k: k.name)
def test_first_and_second_derivatives_of_every_kind(kind):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: solved(kind, x), x, atol=1e-5, rtol=1e-5)
    if kind <= im.Kind.ROOT:  # others are found to the square root of rounding, too rough for second differences
        assert torch.autograd.gradgradcheck(lambda x: solved(kind, x), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_rules_that_become_exact_agree(name):
    x = X.clone().requires_grad_()
    found = [solved(im.Kind.FIXED_POINT, x, rule) for rule in (im.Implicit(), EXACT[name])]
    one, two = (torch.autograd.grad(y.square().sum(), x)[0] for y in found)
    assert (one - two).abs().max() < 1e-8


@pytest.mark.parametrize("linear", [im.Dense(), im.GMRES()], ids=["dense", "gmres"])
def test_orders_of_derivatives(linear):
    """y^3 + y = x: the third derivative needs orders=3, without a graph of the iteration."""
    x = torch.tensor([[1.7]], dtype=D, requires_grad=True)
    y = im.root(lambda y, x: y**3 + y - x, torch.ones(1, 1, dtype=D), x, gradient=im.Implicit(linear, 3)).y
    slopes = [y.sum()]
    for _ in range(3):
        slopes.append(torch.autograd.grad(slopes[-1], x, create_graph=True)[0].sum())
    z = y.detach()
    s = 1 / (3 * z**2 + 1)
    wanted = (s, -6 * z * s**3, (108 * z**2 * s**2 - 6 * s) * s**3)
    for found, exact in zip(slopes[1:], wanted, strict=True):
        assert abs(float(found.detach() - exact)) < 1e-9


def test_forward_mode_and_transforms():
    f = lambda x: im.fixed_point(contraction, torch.zeros(3, dtype=D), x, im.Picard()).y  # noqa: E731
    (wanted,) = torch.autograd.functional.jvp(f, X[0], X[1])[1:]
    assert torch.allclose(torch.func.jvp(f, (X[0],), (X[1],))[1], wanted, atol=1e-9)
    loss = lambda x: f(x).square().sum()  # noqa: E731
    rows = torch.func.vmap(torch.func.grad(loss))(X)
    for x, row in zip(X, rows, strict=True):
        x = x.clone().requires_grad_()
        assert torch.allclose(torch.autograd.grad(loss(x), x)[0], row, atol=1e-9)
    hessian = torch.func.hessian(loss)(X[0])
    assert torch.allclose(hessian, torch.autograd.functional.hessian(loss, X[0]), atol=1e-8)
    with pytest.raises(RuntimeError, match="Dense"):
        torch.func.grad(lambda x: im.root(pushed, X[0], x, gradient=im.Implicit(im.GMRES())).y.sum())(X[0])


def test_modules_and_captured_tensors_get_their_gradients():
    torch.manual_seed(0)
    net, shift = nn.Linear(3, 3).double(), torch.tensor(0.3, dtype=D, requires_grad=True)
    g = lambda y: 0.5 * torch.tanh(net(y)) + shift  # noqa: E731
    for rule in (im.Implicit(), im.Implicit(im.GMRES())):
        y = im.fixed_point(g, X, gradient=rule, per_sample=True).y
        slopes = torch.autograd.grad(y.square().sum(), [*net.parameters(), shift])
        y = im.fixed_point(g, X, (), im.Picard(), gradient=im.Unrolled(), per_sample=True).y
        wanted = torch.autograd.grad(y.square().sum(), [*net.parameters(), shift])
        for a, b in zip(slopes, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-8)


def test_a_row_that_failed_leaves_the_gradients_of_others_alone():
    scale = torch.tensor(1.0, dtype=D, requires_grad=True)
    f = lambda y, x: scale * (y**2 - x)  # noqa: E731
    x = torch.tensor([[2.0], [-1.0], [0.0]], dtype=D, requires_grad=True)
    y0 = torch.tensor([[1.0], [1.0], [0.0]], dtype=D)
    result = im.root(f, y0, x, per_sample=True, throw=False)
    assert [s.ok for s in result.status] == [True, False, False]
    slope, _ = torch.autograd.grad(result.y[0].sum() + 0 * result.y.sum(), [x, scale])
    assert abs(float(slope[0]) - 0.5 / 2**0.5) < 1e-9 and torch.isfinite(slope).all()


def test_what_cheap_rules_claim():
    """One step of the map, and damped steps of it, at the solution."""
    x = X.clone().requires_grad_()
    z = solved(im.Kind.FIXED_POINT, x).detach()
    free = solved(im.Kind.FIXED_POINT, x, im.JacobianFree())
    assert torch.allclose(torch.autograd.grad(free.sum(), x)[0], torch.ones_like(x))
    y = z
    for _ in range(3):
        y = y + 0.7 * (contraction(y, x) - y)
    phantom = solved(im.Kind.FIXED_POINT, x, im.Phantom(3, 0.7))
    one, two = (torch.autograd.grad(v.square().sum(), x)[0] for v in (phantom, y))
    assert torch.allclose(one, two, atol=1e-12)
    series = solved(im.Kind.FIXED_POINT, x, im.Implicit(im.Neumann(1)))
    assert torch.allclose(torch.autograd.grad(series.sum(), x)[0], torch.ones_like(x))


@pytest.mark.parametrize("wide", [False, True])
def test_jacobians_of_rows(wide):
    """Transposed and forward passes, recorded and not, inside transforms, and of what cannot be mapped."""
    f = (lambda y: torch.cat([y**2, y.prod(-1, keepdim=True)], -1)) if wide else (lambda y: y * y.sum(-1, keepdim=True))
    exact = torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], y) for y in X])
    for grad in (False, True):
        y = X.clone().requires_grad_(grad)
        value, slope = jacobian(f, y)
        assert torch.allclose(slope, exact) and slope.requires_grad >= grad and torch.equal(value, f(y))
    assert torch.allclose(torch.func.vmap(lambda y: jacobian(f, y[None])[1][0])(X), exact)


def test_gmres_of_rows_with_their_own_ends():
    torch.manual_seed(0)
    a = torch.randn(5, 12, 12, dtype=D) + 4 * torch.eye(12, dtype=D)
    a[1] = torch.eye(12, dtype=D)
    a[2] = 0
    b = torch.randn(5, 12, dtype=D)
    b[3] = 0
    x, ok = gmres(lambda v: (a @ v.unsqueeze(-1)).squeeze(-1), b)
    assert ok.tolist() == [True, True, False, True, True]
    left = (a @ x.unsqueeze(-1)).squeeze(-1) - b
    assert left[[0, 1, 3, 4]].abs().max() < 1e-9
