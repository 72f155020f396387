"""Implicit methods: their coefficients, their stability, and what they do with stiff and hostile equations."""

from functools import cache

import numpy as np
import pytest
import torch

import dxdt
from claims import IMPLICIT, chosen, identify, slope
from dxdt import PID, SplitODE, Status
from dxdt.diffeq.methods.implicit.additive import AdditiveRungeKutta
from oracles import GENERIC, LINEAR

D = torch.float64
TABLEAUX = [s for s in IMPLICIT if hasattr(s.tableau, "b")]
ROSENBROCK = [s for s in IMPLICIT if s not in TABLEAUX]
L_STABLE = [
    s for s in IMPLICIT if identify(s) not in ("ImplicitMidpoint", "Trapezoidal", "GaussLegendre4", "GaussLegendre6")
]


@cache
def trees(n):
    """Rooted trees with n nodes, as sorted tuples of the trees above the root."""
    if n == 1:
        return [()]

    def forests(left, most):
        if left == 0:
            yield ()
        for k in range(min(left, most), 0, -1):
            for tree in trees(k):
                for rest in forests(left - k, k):
                    yield tuple(sorted((tree, *rest)))

    return sorted(set(forests(n - 1, n - 1)))


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    product = size(tree)
    for branch in tree:
        product *= density(branch)
    return product


def weight(tree, matrix):
    """The elementary weight of each stage; ``matrix(tree)`` is that of the edges above a node."""
    value = 1.0
    for branch in tree:
        value = value * (matrix(tree) @ (weight(branch, matrix) * np.ones(len(matrix(tree)))))
    return value


def defect(b, matrix, order):
    """Largest violation of the conditions of one order."""
    ones = np.ones(len(b))
    return max(abs(b @ (weight(t, matrix) * ones) - 1 / density(t)) for t in trees(order))


def arrays(solver):
    tableau = solver.tableau
    a, b = np.array(tableau.matrix), np.array([float(x) for x in tableau.b])
    error = None if tableau.error is None else np.array([float(x) for x in tableau.error])
    if error is not None and len(error) > len(b):  # f(t, y) as a stage of its own
        a, b = np.pad(a, ((1, 0), (1, 0))), np.pad(b, (1, 0))
    return a, b, error


@pytest.mark.parametrize("solver", TABLEAUX, ids=identify)
def test_coefficients_meet_the_order_conditions(solver):
    """Of the solution and of the method it is compared with, by rooted trees, and not one order more."""
    a, b, error = arrays(solver)
    found = [defect(b, lambda t: a, p) for p in range(1, solver.facts.order + 2)]
    assert max(found[:-1]) < 4e-15 and found[-1] > 1e-5
    ones, k = np.ones(len(b)), solver.facts.error_order
    if error is not None:
        differ = [max(abs(error @ (weight(t, lambda t: a) * ones)) for t in trees(p)) for p in range(1, k + 1)]
        assert max(differ[:-1]) < 4e-15 and differ[-1] > 1e-5


@pytest.mark.parametrize("solver", [s for s in TABLEAUX if isinstance(s, AdditiveRungeKutta)], ids=identify)
def test_additive_coefficients_meet_the_conditions_of_both_terms(solver):
    """Trees whose nodes are of two kinds: all choices of a matrix for the edges below each node."""
    a, b, _ = arrays(solver)
    e = np.zeros_like(a)
    for i, row in enumerate(solver.explicit):
        e[i + 1, : len(row)] = [float(x) for x in row]

    def weights(tree):
        """Of all colourings of the nodes above the root."""
        values = [np.ones(len(b))]
        for branch in tree:
            values = [v * (m @ w) for v in values for w in weights(branch) for m in (a, e)]
        return values

    for order in range(1, solver.facts.order + 1):
        for tree in trees(order):
            for value in weights(tree):
                assert abs(b @ value - 1 / density(tree)) < 4e-15


@pytest.mark.parametrize("solver", ROSENBROCK, ids=identify)
def test_rosenbrock_coefficients_meet_the_order_conditions(solver):
    """In the form with products of the Jacobian, where nodes with one branch weigh it with alpha + gamma."""
    tableau = solver.tableau
    s = len(tableau.m)
    a, c = np.zeros((s, s)), np.zeros((s, s))
    for i in range(1, s):
        a[i, :i], c[i, :i] = tableau.a[i - 1], tableau.c[i - 1]
    gamma = np.linalg.inv(np.eye(s) / tableau.g - c)
    alpha, b = a @ gamma, np.array(tableau.m) @ gamma
    lower = b - np.array(tableau.error) @ gamma
    beta = alpha + gamma
    matrix = lambda tree: beta if len(tree) == 1 else alpha  # noqa: E731
    assert np.abs(alpha.sum(1) - tableau.nodes).max() < 1e-13
    assert np.abs(gamma.sum(1) - tableau.d).max() < 1e-13
    found = [defect(b, matrix, p) for p in range(1, solver.facts.order + 2)]
    below = [defect(lower, matrix, p) for p in range(1, solver.facts.error_order + 1)]
    assert max(found[:-1]) < 1e-13 and found[-1] > 1e-5
    assert max(below[:-1]) < 1e-13 and below[-1] > 1e-5


def damped(solver, z):
    """What one step does to y' = lam y with lam dt = z, both numbers complex."""
    z = torch.as_tensor(z, dtype=torch.complex128).reshape(-1, 1)
    y = torch.ones_like(z)
    controls = dict(t=(0.0, 1.0), dt=1.0, per_sample=True)
    return dxdt.solve(dxdt.ODE(lambda t, y, z: z * y), y, args=(z,), solver=solver, **controls).y1.flatten()


@pytest.mark.parametrize("solver", IMPLICIT, ids=identify)
def test_stability(solver):
    """|R| <= 1 on the imaginary axis and far to the left, and R(-inf) = 0 where the method is L-stable."""
    angles = np.linspace(np.pi / 2, np.pi, 7)
    z = np.concatenate([r * np.exp(1j * angles) for r in (0.3, 1.0, 3.0, 10.0, 100.0)])
    factors = damped(solver, z)
    assert factors.abs().max() < 1 + 1e-9
    far = float(damped(solver, [-1e8]).abs())
    assert far < 1e-6 if solver in L_STABLE else abs(far - 1) < 1e-6


def follow(solver, n, rate=-1e6):
    field = lambda t, y: rate * (y - torch.cos(t)) - torch.sin(t)  # noqa: E731
    y1 = dxdt.solve(dxdt.ODE(field), torch.ones(1, dtype=D), (0.0, 2.0), dt=2 / n, solver=solver).y1
    return abs(float(y1) - np.cos(2.0))


@pytest.mark.parametrize("solver", IMPLICIT, ids=identify)
def test_steps_beyond_the_fast_scale_are_stable_and_accurate(solver):
    """A. Prothero, A. Robinson (1974): errors stay below those of the slow solution's scale, and fall."""
    coarse, fine = follow(solver, 8), follow(solver, 16)
    print(f"{identify(solver):16} {coarse:.1e} {fine:.1e} order {np.log2(coarse / fine):.2f}")
    assert coarse < 5e-2 and fine < coarse


def robertson(t, y):
    a, b, c = y.unbind(-1)
    slow, fast, back = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([-slow + back, slow - fast - back, fast], -1)


# scipy's Radau at 1e-12, t = 1e5.
ROBERTSON = torch.tensor([1.786592114209946e-02, 7.274751468436598e-08, 9.821340061103954e-01], dtype=D)


@pytest.mark.parametrize(
    "solver", chosen([s for s in L_STABLE if s.facts.error_order is not None and s.facts.order >= 3])
)
def test_robertson(solver):
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D)
    sol = dxdt.solve(dxdt.ODE(robertson), y0, (0.0, 1e5), solver=solver, controller=PID(1e-5, 1e-10))
    error = (sol.y1 / ROBERTSON - 1).abs().max()
    print(f"{identify(solver):16} {sol.stats} error {error:.1e}")
    assert error < 2e-3 and sol.stats.steps < 500
    assert abs(float(sol.y1.sum()) - 1) < 1e-9


def test_each_sample_has_its_own_iterations_and_steps():
    """Two decades of rates in one batch, each as in a solve of its own."""
    rates = torch.tensor([1.0, 1e3, 1e6], dtype=D)
    field = lambda t, y, k: (k * (torch.cos(t) - y.T)).T  # noqa: E731
    options = dict(solver=dxdt.Kvaerno3(), controller=PID(1e-5, 1e-7), per_sample=True)
    y0 = torch.zeros(3, 1, dtype=D)
    together = dxdt.solve(dxdt.ODE(field), y0, (0.0, 2.0), args=(rates,), **options)
    for i in range(3):
        alone = dxdt.solve(dxdt.ODE(field), y0[:1], (0.0, 2.0), args=(rates[i : i + 1],), **options)
        assert alone.stats.steps[0] == together.stats.steps[i]
        assert abs(float(alone.y1[0] - together.y1[i])) < 1e-12


def test_a_step_whose_stages_are_not_found_is_taken_again_with_a_smaller_one():
    """dt = 1 asks for the root of a parabola that has none."""
    field = lambda t, y: 1 + y * y  # noqa: E731
    y0 = torch.zeros(1, dtype=D)
    sol = dxdt.solve(dxdt.ODE(field), y0, (0.0, 1.0), dt=1.0, solver=dxdt.ImplicitEuler(), controller=PID(1e-4, 1e-4))
    assert sol.stats.rejected > 0 and abs(float(sol.y1) - np.tan(1.0)) < 0.05


@pytest.mark.parametrize("per_sample", [False, True])
def test_known_steps_whose_stages_are_not_found_fail_in_words(per_sample):
    """Never a silent wrong value: the sample stops where the stage has no solution, and others go on."""
    field = lambda t, y: y * y  # noqa: E731
    y0 = torch.tensor([[1.0], [0.1]], dtype=D) if per_sample else torch.ones(1, dtype=D)
    options = dict(dt=0.3, solver=dxdt.ImplicitEuler(), per_sample=per_sample, throw=False)
    sol = dxdt.solve(dxdt.ODE(field), y0, (0.0, 0.9), **options)
    status = sol.status if per_sample else [sol.status, Status.SUCCESS]
    assert status == [Status.NOT_FINITE, Status.SUCCESS]
    assert "implicit stage" in status[0].value
    assert torch.isnan(sol.y1[0]).all()


def stiff(t, y):
    return torch.stack([-200 * (y[..., 0] - torch.cos(y[..., 1])), torch.zeros_like(y[..., 1])], -1)


def other(t, y):
    return torch.stack([torch.sin(y[..., 1]) * y[..., 0], 1 + 0 * y[..., 1]], -1)


ADDITIVE = [s for s in IMPLICIT if isinstance(s, AdditiveRungeKutta)]


@pytest.mark.parametrize("solver", ADDITIVE, ids=identify)
def test_orders_on_sums(solver):
    """Of two terms that are both needed; only the stiff one is iterated."""
    half = lambda t, y: 0.5 * GENERIC.field(t, y) + torch.sin(t) * y  # noqa: E731
    rest = lambda t, y: 0.5 * GENERIC.field(t, y) - torch.sin(t) * y  # noqa: E731
    counts, errors = (12, 18, 27), []
    for n in counts:
        sol = dxdt.solve(SplitODE(half, rest), GENERIC.y0, (0.0, 2.0), dt=2 / n, solver=solver)
        errors.append(float((sol.y1 - GENERIC.end).abs().max()))
    assert slope(1 / np.array(counts), errors) >= solver.facts.order - 0.25


@pytest.mark.parametrize("solver", ADDITIVE[:1], ids=identify)
def test_sums_by_explicit_and_by_additive_methods(solver):
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    equation = SplitODE(stiff, other)
    options = dict(controller=PID(1e-7, 1e-9))
    want = dxdt.solve(equation, y0, (0.0, 1.0), **options).y1
    got = dxdt.solve(equation, y0, (0.0, 1.0), solver=solver, **options)
    assert (got.y1 - want).abs().max() < 1e-6


def test_gradients_of_sums():
    weight = torch.tensor([1.3, 0.7], dtype=D, requires_grad=True)
    equation = SplitODE(lambda t, y: -20 * weight[0] * (y - 1), lambda t, y: torch.sin(weight[1] * y))
    field = lambda t, y: -20 * weight[0] * (y - 1) + torch.sin(weight[1] * y)  # noqa: E731
    y0 = torch.tensor([0.2], dtype=D)
    ends = [
        dxdt.solve(e, y0, (0.0, 1.0), solver=s, controller=PID(1e-8, 1e-9)).y1.sum()
        for e, s in ((equation, dxdt.KenCarp3()), (dxdt.ODE(field), dxdt.Tsit5()))
    ]
    one, two = (torch.autograd.grad(y, weight)[0] for y in ends)
    assert (one - two).abs().max() < 1e-6


def test_step_doubling_makes_an_implicit_method_adaptive():
    solver = dxdt.HalfStep(dxdt.ImplicitMidpoint())
    sol = dxdt.solve(dxdt.ODE(LINEAR.field), LINEAR.y0, (0.0, 2.0), solver=solver, controller=PID(1e-5, 1e-5))
    assert (sol.y1 - LINEAR.end).abs().max() < 1e-3
