"""Tableaux, low-storage pairs and Adams methods: what each is made for beyond its order."""

from functools import cache
from math import prod
from typing import ClassVar

import numpy as np
import pytest
import torch

import dxdt
from claims import EXPLICIT, identify, one_step, slope
from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.tree import Layout
from memory import LiveBytes
from oracles import GENERIC

F64 = torch.float64
ADAMS = [dxdt.AdamsBashforth(k) for k in range(1, 7)]
ADAMS += [dxdt.AdamsBashforthMoulton(k) for k in range(2, 7)] + [dxdt.AdamsBashforthMoulton(4, 2)]


def errors(solver, problem, counts, grid=None):
    """Error at the end for each number of steps."""
    out = []
    for n in counts:
        span = (problem.t0, problem.t1)
        steps = {"dt": (problem.t1 - problem.t0) / n} if grid is None else {"controller": dxdt.Grid(grid(n))}
        sol = dxdt.solve(dxdt.ODE(problem.field), problem.y0, span, solver=solver, **steps)
        out.append(float((sol.y1 - problem.end).abs().max()))
    return out


# Tableaux: the order conditions of rooted trees.


@cache
def trees(n):
    """Rooted trees with n nodes, each a sorted tuple of its branches."""
    found = set()

    def grow(rest, branches):
        if rest == 0:
            found.add(tuple(sorted(branches)))
        for k in range(1, rest + 1):
            for t in trees(k):
                if not branches or t <= branches[-1]:
                    grow(rest - k, [*branches, t])

    grow(n - 1, [])
    return sorted(found)


def nodes_of(tree):
    return 1 + sum(map(nodes_of, tree))


def density(tree):
    return nodes_of(tree) * prod(map(density, tree))


def weight(tree, a):
    """The elementary weight of each stage."""
    return prod((a @ weight(t, a) for t in tree), start=np.ones(len(a)))


def residual(a, b, n, theta=1.0):
    """Largest error of the conditions of order n."""
    return max(abs(b @ weight(t, a) - theta**n / density(t)) for t in trees(n))


def matrices(tableau):
    """Matrix and weights, with the slope at the end as a further stage."""
    s = len(tableau.b)
    a = np.zeros((s + 1, s + 1))
    for i, row in enumerate(tableau.a):
        a[i + 1, : i + 1] = [float(x) for x in row]
    a[s, :s] = b = np.array([float(x) for x in tableau.b])
    return a, np.append(b, 0.0)


def padded(values, s):
    values = np.array([float(x) for x in values])
    return np.append(values, np.zeros(s - len(values)))


TABLEAUX = {
    identify(s): s.tableau if hasattr(s, "tableau") else s.registers.tableau
    for s in EXPLICIT
    if hasattr(s, "tableau") or hasattr(s, "registers")
}


@pytest.mark.parametrize("name", TABLEAUX)
def test_tableau_meets_its_order_conditions(name):
    tableau = TABLEAUX[name]
    a, b = matrices(tableau)
    p = tableau.order
    assert max(residual(a, b, n) for n in range(1, p + 1)) < 5e-14
    assert residual(a, b, p + 1) > 1e-7
    if tableau.error is not None:
        lower = b - padded(tableau.error, len(b))
        q = tableau.error_order
        assert max((residual(a, lower, n) for n in range(1, q)), default=0) < 5e-14
        assert residual(a, lower, q) > 1e-7


@pytest.mark.parametrize("name", [n for n, t in TABLEAUX.items() if t.dense is not None])
def test_dense_weights_meet_their_order_conditions_everywhere(name):
    tableau = TABLEAUX[name]
    a, b = matrices(tableau)
    rows = np.array([[float(x) for x in row] for row in tableau.dense])
    rows = np.vstack([rows, np.zeros((len(b) - len(rows), rows.shape[1]))])
    q = tableau.dense_order
    powers = np.arange(1, rows.shape[1] + 1)
    for theta in np.linspace(0, 1, 7):
        at = rows @ theta**powers
        assert max(residual(a, at, n, theta) for n in range(1, q + 1)) < 5e-13
    assert np.allclose(rows.sum(1), b, atol=2e-12)
    assert np.allclose(rows[:, 0], np.eye(len(b))[0])


class Ralston3(dxdt.RungeKutta):
    """A user's tableau: one class of data."""

    tableau = dxdt.Tableau(a=[[1 / 2], [0, 3 / 4]], b=[2 / 9, 1 / 3, 4 / 9], order=3)


def test_a_users_tableau_is_a_solver():
    counts = (16, 32, 64, 128)
    assert 2.8 <= slope(1 / np.array(counts), errors(Ralston3(), GENERIC, counts)) <= 3.5
    assert (Ralston3.facts.order, Ralston3.facts.stages, Ralston3.facts.error_order) == (3, 3, None)
    adaptive = dxdt.HalfStep(Ralston3())
    sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), solver=adaptive)
    assert float((sol.y1 - GENERIC.end).abs().max()) < 1e-2


# Low storage.


@pytest.mark.parametrize("solver", [dxdt.LowStorage3(), dxdt.LowStorage4()], ids=identify)
def test_low_storage_is_its_tableau(solver):
    class Full(dxdt.RungeKutta):
        tableau = solver.registers.tableau

    ours, _ = one_step(solver, GENERIC.field, 0.2, 0.1, GENERIC.at(0.2))
    full, _ = one_step(Full(), GENERIC.field, 0.2, 0.1, GENERIC.at(0.2))
    assert torch.allclose(ours.y, full.y, rtol=0, atol=1e-15)
    assert torch.allclose(ours.error, full.error, rtol=0, atol=1e-15)


@pytest.mark.parametrize("per_sample", [False, True])
def test_low_storage_holds_few_arrays(per_sample):
    """Beside y: x, z, the slope, the estimate, and what one operation needs."""
    n = 1 << 14
    y = torch.ones(4, n // 4, dtype=F64)
    layout = Layout.of(y, per_sample=per_sample)
    peaks = {}
    for solver in (dxdt.LowStorage4(), dxdt.Dopri8()):
        eq = Rows(dxdt.ODE(lambda t, y: -y), layout)
        t, dt = (np.zeros(4), np.full(4, 0.1)) if per_sample else np.float64([0, 0.1])
        with torch.no_grad(), LiveBytes() as live:
            solver.step(eq, t, dt, layout.pack(y), (), 0)
        peaks[type(solver).__name__] = live.peak / (8 * n)
    assert peaks["LowStorage4"] <= 5.1
    assert peaks["Dopri8"] > 12


# Adams methods.


def uneven(n):
    s = torch.linspace(0, 1, n + 1, dtype=F64)
    return 2 * (s + 0.08 * torch.sin(7 * s) * s * (1 - s))


@pytest.mark.parametrize("solver", ADAMS, ids=repr)
def test_adams_methods_start_without_losing_their_order(solver):
    counts = (80, 120, 160, 240)
    sizes = 1 / np.array(counts)
    k = solver.facts.order
    assert k - 0.2 <= slope(sizes, errors(solver, GENERIC, counts)) <= k + 0.5
    assert slope(sizes, errors(solver, GENERIC.reversed(), counts)) >= k - 0.2


@pytest.mark.parametrize("solver", ADAMS, ids=repr)
def test_adams_methods_keep_their_order_on_uneven_grids(solver):
    counts = (80, 120, 160, 240)
    measured = slope(1 / np.array(counts), errors(solver, GENERIC, counts, grid=uneven))
    assert solver.facts.order - 0.2 <= measured <= solver.facts.order + 0.5


@pytest.mark.parametrize("solver", ADAMS, ids=repr)
def test_adams_methods_integrate_polynomials_exactly(solver):
    k = min(solver.facts.order, 5)  # as far as the starter does
    grid = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.75, 1.2, 1.4, 2.0, 2.1], dtype=F64)
    equation = dxdt.ODE(lambda t, y: k * t ** (k - 1) + 0 * y)
    sol = dxdt.solve(equation, torch.zeros(1, dtype=F64), grid, solver=solver, controller=dxdt.Grid(grid))
    assert abs(float(sol.y1) - 2.1**k) < 1e-12 * 2.1**k


def test_adams_rows_with_their_own_grids_are_solo_solves():
    ends = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    y0 = GENERIC.y0.expand(3, 3) + torch.tensor([[0.0], [0.1], [-0.2]], dtype=F64)
    for solver in (dxdt.AdamsBashforth(4), dxdt.AdamsBashforthMoulton(5)):
        options = {"solver": solver, "save": dxdt.Save(times=[0.13, 0.4], end=True)}
        dts = torch.tensor([0.1, 0.02, 0.1], dtype=F64)  # 20, 50 and 5 steps
        equation = dxdt.ODE(GENERIC.field)
        both = dxdt.solve(equation, y0, (0.0, ends), dt=dts, per_sample=True, **options)
        assert both.stats.steps.tolist() == [20, 50, 5]
        for i in range(3):
            solo = dxdt.solve(equation, y0[i], (0.0, float(ends[i])), dt=float(dts[i]), **options)
            assert torch.allclose(both.ys[:, i], solo.ys, rtol=0, atol=1e-13)


def test_adams_evaluations():
    for solver, per_step in ((dxdt.AdamsBashforth(3), 1), (dxdt.AdamsBashforthMoulton(3, 2), 3)):
        sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), dt=0.02, solver=solver)
        start = solver.memory - 1
        assert sol.stats.evaluations == 1 + 6 * start + per_step * (100 - start)
        assert solver.facts.stages == per_step


def test_adams_gradients_with_respect_to_everything():
    def end(y0, a, t0, t1, solver):
        field = dxdt.ODE(lambda t, y, a: torch.tanh(a * y.flip(-1)) - t * y)
        return dxdt.solve(field, y0, (t0, t1), args=(a,), dt=0.13, solver=solver).y1

    inputs = (
        torch.tensor([0.3, -0.4], dtype=F64, requires_grad=True),
        torch.tensor([1.3], dtype=F64, requires_grad=True),
        torch.tensor(0.0, dtype=F64, requires_grad=True),
        torch.tensor(1.0, dtype=F64, requires_grad=True),
    )
    for solver in (dxdt.AdamsBashforth(3), dxdt.AdamsBashforthMoulton(4)):
        a, b = (
            torch.autograd.grad(
                dxdt.solve(
                    dxdt.ODE(lambda t, y, a: torch.tanh(a * y.flip(-1)) - t * y),
                    inputs[0],
                    inputs[2:],
                    args=(inputs[1],),
                    dt=0.13,
                    solver=solver,
                    gradient=gradient,
                ).y1.sum(),
                inputs,
            )
            for gradient in (dxdt.Direct(), dxdt.Checkpointed())
        )
        assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(a, b, strict=True))
        y0, p = (x.detach().requires_grad_() for x in inputs[:2])
        assert torch.autograd.gradcheck(lambda y, p, s=solver: end(y, p, 0.0, 1.0, s), (y0, p))


def test_adams_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="order from 1 to 6"):
        dxdt.AdamsBashforth(7)
    with pytest.raises(ValueError, match="order from 2 to 6"):
        dxdt.AdamsBashforthMoulton(1)
    with pytest.raises(ValueError, match="at least one"):
        dxdt.AdamsBashforthMoulton(4, correctors=0)
    with pytest.raises(ValueError, match="error estimate"):
        dxdt.solve(
            dxdt.ODE(GENERIC.field),
            GENERIC.y0,
            (0, 1),
            solver=dxdt.AdamsBashforth(),
            controller=dxdt.PID(),
        )
    with pytest.raises(ValueError, match="known steps"):
        dxdt.HalfStep(dxdt.AdamsBashforth(2))


def test_facts_stated_as_before_still_count():
    with pytest.warns(DeprecationWarning, match="Former states order, dense_order, stages on the class"):

        class Former(dxdt.diffeq.Solver):
            order: ClassVar[float] = 1
            dense_order = 1
            stages = 1

            def init(self, eq, t, y, dense):
                return ()

            def step(self, eq, t, dt, y, state, index):
                return dxdt.Euler().step(eq, t, dt, y, state, index)

            def dense(self, step, dt, y):
                return (step.y - y).unsqueeze(0)

    assert Former().facts == Facts(order=1, stages=1)
    y = torch.ones(2, dtype=torch.float64)
    sol = dxdt.solve(dxdt.ODE(lambda t, y: -y), y, (0.0, 1.0), dt=0.1, solver=Former())
    assert torch.allclose(sol.y1, 0.9**10 * y)
    with pytest.warns(DeprecationWarning, match=r"Tsit5\(\).order is facts.order now"):
        assert dxdt.Tsit5().order == 5
    with pytest.raises(AttributeError, match="Tsit5 has no attribute 'ordr'"):
        _ = dxdt.Tsit5().ordr
