"""Methods that preserve something: symplectic, reversible; and step doubling."""

from math import log2

import numpy as np
import pytest
import torch

import dxdt
from claims import SOLVERS, identify, one_step, slope
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.tree import Layout
from dxdt.paths import Brownian
from oracles import GENERIC

F64 = torch.float64
SYMPLECTIC = [s for s in SOLVERS if s.facts.separable]
REVERSIBLE = [
    dxdt.AsynchronousLeapfrog(),
    dxdt.ReversibleHeun(),
    *(dxdt.McCallumFoster(s) for s in (dxdt.Euler(), dxdt.Midpoint(), dxdt.RK4(), dxdt.Tsit5())),
]


def column(t, x):
    return t[:, None] if t.dim() else t


PENDULUM = dxdt.Separable(lambda t, p: p, lambda t, q: -torch.sin(q))
FORCED = dxdt.Separable(
    lambda t, p: p * (1 + 0.3 * torch.sin(column(t, p))) + 0.1 * torch.sin(p),
    lambda t, q: -torch.sin(q) * (1 + 0.5 * torch.cos(2 * column(t, q))),
)
Y0 = (torch.tensor([1.0, 0.3], dtype=F64), torch.tensor([0.2, -0.5], dtype=F64))


def flat(tree):
    return torch.cat([x.flatten() for x in tree])


def energy(q, p):
    return p**2 / 2 - torch.cos(q)


# Symplectic methods.


@pytest.mark.parametrize("solver", SYMPLECTIC, ids=identify)
def test_symplectic_order_also_where_the_system_depends_on_time(solver):
    exact = flat(dxdt.solve(FORCED, Y0, (0.0, 2.0), dt=0.01, solver=dxdt.Dopri8()).y1)
    counts = (8, 12, 16, 24, 32)
    errors = []
    for n in counts:
        there = dxdt.solve(FORCED, Y0, (0.0, 2.0), dt=2 / n, solver=solver)
        errors.append(float((flat(there.y1) - exact).abs().max()))
    measured = slope(1 / np.array(counts), errors)
    assert solver.facts.order - 0.2 <= measured <= solver.facts.order + 0.5


@pytest.mark.parametrize("solver", [s for s in SYMPLECTIC if s.facts.order > 1], ids=identify)
def test_symmetric_methods_return(solver):
    there = dxdt.solve(FORCED, Y0, (0.0, 2.0), dt=0.1, solver=solver)
    back = dxdt.solve(FORCED, there.y1, (2.0, 0.0), dt=0.1, solver=solver)
    assert torch.allclose(flat(back.y1), flat(Y0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", SYMPLECTIC, ids=identify)
def test_a_step_is_a_symplectic_map(solver):
    def step(y):
        q, p = dxdt.solve(FORCED, (y[:2], y[2:]), (0.3, 0.5), dt=0.2, solver=solver).y1
        return torch.cat([q, p])

    m = torch.autograd.functional.jacobian(step, flat(Y0))
    one, zero = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    form = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])
    assert torch.allclose(m.T @ form @ m, form, rtol=0, atol=1e-13)


def worst_energy(solver, t1):
    """Largest energy error of a pendulum that swings once in about 6.7."""
    y0 = (torch.tensor([1.0], dtype=F64), torch.tensor([0.0], dtype=F64))
    sol = dxdt.solve(PENDULUM, y0, (0.0, t1), dt=0.5, solver=solver, save=dxdt.Save(steps=True))
    return float((energy(*sol.ys) - energy(*y0)).abs().max())


@pytest.mark.parametrize("solver", SYMPLECTIC, ids=identify)
def test_energy_stays_bounded(solver):
    assert worst_energy(solver, 1500.0) < 1.3 * worst_energy(solver, 100.0)


def test_energy_drifts_where_a_method_is_not_symplectic():
    assert worst_energy(dxdt.RK4(), 1500.0) > 5 * worst_energy(dxdt.RK4(), 100.0)


@pytest.mark.parametrize("solver", SYMPLECTIC, ids=identify)
def test_symplectic_evaluations_and_dense_output(solver):
    plain = dxdt.solve(FORCED, Y0, (0.0, 2.0), dt=0.1, solver=solver)
    path = dxdt.solve(FORCED, Y0, (0.0, 2.0), dt=0.1, solver=solver, save=dxdt.Save(dense=True)).path
    assert plain.stats.evaluations in (20 * solver.facts.stages, 20 * solver.facts.stages + 1)
    assert torch.equal(flat(path(2.0)), flat(plain.y1))
    slopes = flat(FORCED.drift(torch.tensor(2.0, dtype=F64), plain.y1))
    assert torch.allclose(flat(path.derivative(2.0)), slopes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SYMPLECTIC, ids=identify)
def test_symplectic_rows_are_solo_solves(solver):
    q, p = (x[:, None] for x in Y0)
    ends = torch.tensor([2.0, 1.0], dtype=F64)
    both = dxdt.solve(FORCED, (q, p), (0.0, ends), dt=0.1, solver=solver, per_sample=True)
    for i in range(2):
        y0 = (q[i], p[i])
        solo = dxdt.solve(FORCED, y0, (0.0, float(ends[i])), dt=0.1, solver=solver)
        assert torch.allclose(both.y1[0][i], solo.y1[0], rtol=0, atol=1e-14)
        assert torch.allclose(both.y1[1][i], solo.y1[1], rtol=0, atol=1e-14)


def test_symplectic_methods_refuse_other_equations():
    with pytest.raises(TypeError, match="Separable"):
        dxdt.solve(dxdt.ODE(lambda t, y: y), Y0[0], (0, 1), dt=0.1, solver=dxdt.StoermerVerlet())
    wrong = dxdt.Separable(lambda t, p: p[:1], lambda t, q: q)
    with pytest.raises(ValueError, match="dq's value"):
        dxdt.solve(wrong, Y0, (0.0, 1.0), dt=0.1, solver=dxdt.StoermerVerlet())


# Reversible methods.


def close(a, b):
    return all(torch.allclose(x, y, rtol=0, atol=1e-14) for x, y in zip(a, b, strict=True))


def walk(solver, eq, y, h, n):
    """The steps of n steps from t = 0, each with where it began."""
    state, seen = solver.init(eq, np.float64(0), y, False), []
    for i in range(n):
        step = solver.step(eq, i * h, h, y, state, i)
        seen.append((y, state, step))
        y, state = step.y, step.state
    return seen


@pytest.mark.parametrize("h", [0.1, -0.07])
@pytest.mark.parametrize("solver", REVERSIBLE, ids=repr)
def test_reverse_inverts_steps(solver, h):
    layout = Layout.of(GENERIC.y0, per_sample=False)
    eq, y0 = Rows(dxdt.ODE(GENERIC.field), layout), layout.pack(GENERIC.y0)
    h, n = np.float64(h), 20
    seen = walk(solver, eq, y0, h, n)
    for i, (y, state, step) in enumerate(seen):
        again, before = solver.reverse(eq, i * h, h, step.y, step.state, i)
        assert torch.allclose(again, y, rtol=0, atol=1e-14)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(before, state, strict=True))
    y, state = seen[-1][2].y, seen[-1][2].state
    for i in reversed(range(n)):
        y, state = solver.reverse(eq, i * h, h, y, state, i)
    assert torch.allclose(y, y0, rtol=0, atol=2e-14)


@pytest.mark.parametrize("solver", REVERSIBLE, ids=repr)
def test_reverse_inverts_rows_of_their_own_lengths(solver):
    y0 = GENERIC.y0.expand(3, 3) + torch.tensor([[0.0], [0.1], [-0.2]], dtype=F64)
    layout = Layout.of(y0, per_sample=True)
    eq = Rows(dxdt.ODE(GENERIC.field), layout)
    for clock in (np.array, lambda x: torch.tensor(x, dtype=F64)):
        t, dt = clock([0.0, 0.3, 0.5]), clock([0.1, -0.05, 0.0])
        state = solver.init(eq, t, y0, False)
        step = solver.step(eq, t, dt, y0, state, 0)
        y, before = solver.reverse(eq, t, dt, step.y, step.state, 0)
        assert torch.allclose(y, y0, rtol=0, atol=1e-14)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(before, state, strict=True))
        assert torch.allclose(step.y[2], y0[2], rtol=0, atol=1e-15)


def test_reversible_heun_inverts_steps_with_noise():
    sde = dxdt.SDE(lambda t, y: -torch.sin(y), lambda t, y: 0.3 * torch.cos(y))
    y0 = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    layout = Layout.of(y0, per_sample=True)
    noise = Brownian(0).bind(np.zeros(4), np.ones(4), 4, 3, F64)
    eq, solver, h = Rows(sde, layout, noise=noise), dxdt.ReversibleHeun(), np.full(4, 0.05)
    state, y = solver.init(eq, np.zeros(4), y0, False), y0
    for i in range(20):
        step = solver.step(eq, i * h, h, y, state, i)
        y, state = step.y, step.state
    for i in reversed(range(20)):
        y, state = solver.reverse(eq, i * h, h, y, state, i)
    assert torch.allclose(y, y0, rtol=0, atol=1e-14)
    assert float((step.y - y0).abs().min()) > 1e-3


@pytest.mark.parametrize("base", [dxdt.Euler(), dxdt.Midpoint(), dxdt.Bosh3(), dxdt.RK4()], ids=repr)
@pytest.mark.parametrize("coupling", [0.99, 0.999, 1.0])
def test_mccallum_foster_keeps_the_order(base, coupling):
    solver = dxdt.McCallumFoster(base, coupling)
    errors = []
    for n in (40, 80, 160):
        sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), dt=2 / n, solver=solver)
        errors.append(float((sol.y1 - GENERIC.end).abs().max()))
        assert sol.stats.evaluations == solver.facts.stages * n
    assert log2(errors[1] / errors[2]) >= base.facts.order - 0.2
    adaptive = dxdt.McCallumFoster(dxdt.Bosh3())
    sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), solver=adaptive)
    assert float((sol.y1 - GENERIC.end).abs().max()) < 1e-3


@pytest.mark.parametrize("solver", [dxdt.AsynchronousLeapfrog(), dxdt.ReversibleHeun()], ids=repr)
def test_stability_is_the_imaginary_segment(solver):
    def grows(rate):
        y0 = torch.ones(1, dtype=torch.complex128)
        field = dxdt.ODE(lambda t, y: rate * y)
        end = dxdt.solve(field, y0, (0.0, 400.0), dt=1.0, solver=solver).y1
        return float(end.abs()) > 100

    assert not grows(0.95j) and not grows(-0.5j)
    assert grows(1.05j) and grows(-0.2 + 0j)


def test_mccallum_foster_refuses_other_solvers():
    with pytest.raises(TypeError, match="explicit Runge-Kutta"):
        dxdt.McCallumFoster(dxdt.ReversibleHeun())
    with pytest.raises(ValueError, match="coupling"):
        dxdt.McCallumFoster(dxdt.RK4(), 0.0)


# Step doubling.

DOUBLED = [
    dxdt.HalfStep(base, extrapolate)
    for base in (dxdt.Euler(), dxdt.Midpoint(), dxdt.RK4(), dxdt.LowStorage4())
    for extrapolate in (False, True)
] + [dxdt.HalfStep(dxdt.AsynchronousLeapfrog())]


@pytest.mark.parametrize("solver", DOUBLED, ids=repr)
def test_half_steps_claim_what_they_measure(solver):
    counts = (16, 24, 32, 48, 64)
    errors, paths, estimates = [], [], []
    inside = torch.linspace(0.05, 0.95, 10, dtype=F64)
    for n in counts:
        h = 2 / n
        sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), dt=h, solver=solver)
        errors.append(float((sol.y1 - GENERIC.end).abs().max()))
        assert sol.stats.evaluations in (solver.facts.stages * n, solver.facts.stages * n + 1)
        path, estimate = 0.0, 0.0
        for t in np.linspace(0.1, 1.5, 6):
            y = GENERIC.at(t)
            step, c = one_step(solver, GENERIC.field, t, h, y)
            powers = torch.arange(1, len(c) + 1, dtype=F64)
            values = y + torch.einsum("tj,jn->tn", inside[:, None] ** powers, c[:, 0])
            path += float((values - GENERIC.exact(t + h * inside)).abs().max())
            estimate += float(step.error.abs().max())
        paths.append(path)
        estimates.append(estimate)
    for values, claim in (
        (errors, solver.facts.order),
        (paths, solver.facts.dense_order + 1),
        (estimates, solver.facts.error_order),
    ):
        assert claim - 0.2 <= slope(1 / np.array(counts), values) <= claim + 0.5


@pytest.mark.parametrize("solver", DOUBLED, ids=repr)
@pytest.mark.parametrize("per_sample", [False, True])
def test_half_steps_choose_their_steps(solver, per_sample):
    y0 = GENERIC.y0.expand(2, 3) if per_sample else GENERIC.y0
    tol = 1e-4 if solver.solver.facts.order == 1 else 1e-7
    sol = dxdt.solve(
        dxdt.ODE(GENERIC.field),
        y0,
        (0, 2),
        solver=solver,
        controller=dxdt.PID(rtol=tol, atol=tol),
        per_sample=per_sample,
    )
    assert float((sol.y1 - GENERIC.end).abs().max()) < 200 * tol


def test_half_steps_adapt_symplectic_and_stochastic_methods():
    solver = dxdt.HalfStep(dxdt.StoermerVerlet())
    tight = dxdt.PID(rtol=1e-6, atol=1e-6)
    sol = dxdt.solve(PENDULUM, Y0, (0.0, 5.0), solver=solver, controller=tight)
    exact = dxdt.solve(PENDULUM, Y0, (0.0, 5.0), dt=0.01, solver=dxdt.Dopri8())
    assert torch.allclose(flat(sol.y1), flat(exact.y1), rtol=0, atol=2e-4)
    for inner in (dxdt.StoermerVerlet(), dxdt.ReversibleHeun(), dxdt.EulerMaruyama()):
        with pytest.raises(ValueError, match="extrapolate"):
            dxdt.HalfStep(inner, extrapolate=True)
    noisy = dxdt.HalfStep(dxdt.EulerMaruyama())
    assert noisy.facts.stochastic and noisy.facts.error_order == 1


# Gradients.


@pytest.mark.parametrize(
    "solver",
    [*REVERSIBLE[:3], *DOUBLED[3:5], *SYMPLECTIC, dxdt.LowStorage3(), dxdt.Vern7(), dxdt.Dopri8()],
    ids=repr,
)
def test_direct_and_checkpointed_gradients_agree(solver):
    if solver.facts.separable:
        equation = dxdt.Separable(lambda t, p, a: a * p + 0.1 * t, lambda t, q, a: -torch.sin(a * q) * (1 + t))
        y0, spread = flat(Y0), lambda y: (y[:2], y[2:])
    else:
        equation = dxdt.ODE(lambda t, y, a: torch.tanh(a * y.flip(-1)) - t * y)
        y0, spread = GENERIC.y0, lambda y: y
    inputs = [y0.clone(), *(torch.tensor(x, dtype=F64) for x in (1.3, 0.1, 1.0))]
    inputs = [x.requires_grad_() for x in inputs]
    answers = []
    for gradient in (dxdt.Direct(), dxdt.Checkpointed()):
        y, a, t0, t1 = inputs
        sol = dxdt.solve(equation, spread(y), (t0, t1), args=(a,), dt=0.2, solver=solver, gradient=gradient)
        end = sol.y1 if isinstance(sol.y1, torch.Tensor) else flat(sol.y1)
        answers.append(torch.autograd.grad(end.sin().sum(), inputs))
    assert all(torch.allclose(x, y, rtol=0, atol=1e-11) for x, y in zip(*answers, strict=True))


# Clocks.


@pytest.mark.parametrize(
    "solver",
    [*REVERSIBLE[:3], *DOUBLED[4:6], *SYMPLECTIC, dxdt.LowStorage4(), dxdt.AdamsBashforth(4)]
    + [dxdt.AdamsBashforthMoulton(3, 2), dxdt.Vern7(), dxdt.Dopri8()],
    ids=repr,
)
@pytest.mark.parametrize("dense", [False, True])
def test_clocks_on_the_host_and_beside_the_data_agree(solver, dense):
    """Also where a row does not move."""
    if solver.facts.separable:
        equation, tree = FORCED, tuple(x.expand(3, 2) + 0.1 * torch.arange(3)[:, None] for x in Y0)
    else:
        equation, tree = dxdt.ODE(GENERIC.field), GENERIC.y0.expand(3, 3)
    layout = Layout.of(tree, per_sample=True)
    eq, ends = Rows(equation, layout), []
    for clock in (
        np.array,
        lambda x: torch.tensor(x, dtype=torch.int64 if isinstance(x[0], int) else F64),
    ):
        t, dt, y = clock([0.0, 0.3, 0.5]), clock([0.1, -0.05, 0.0]), layout.pack(tree)
        state = solver.init(eq, t, y, dense)
        for i in range(6):
            begin, step = y, solver.step(eq, t, dt, y, state, clock([i, i, i]))
            t, y, state = t + dt, step.y, step.state
        ends.append(solver.dense(step, dt, begin) if dense else y)
        assert not dense or len(ends[-1]) == solver.facts.degree
    assert torch.allclose(*ends, rtol=0, atol=1e-14)
    still = layout.pack(tree)[2] if not dense else torch.zeros_like(ends[0][:, 2])
    assert torch.allclose(ends[0][..., 2, :], still, rtol=0, atol=1e-15)
