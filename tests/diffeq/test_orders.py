"""Orders of every exported explicit solver, of its dense output and of its error estimate.

What the facts mean, and what is measured here:

- ``order`` p: the error at the end of a span falls like dt^p;
- ``dense_order`` q: inside one step from exact data the interpolant is wrong by dt^(q+1), its
  derivative by dt^q, so that over a span the path is wrong by dt^min(p, q+1);
- ``error_order`` k: the error estimate of one step is proportional to dt^k.
"""

import numpy as np
import pytest
import torch

import dxdt
from claims import ORDINARY, PAIRS, chosen, crossed, every, identify, one_step, slope, steps_of, steps_of_order
from oracles import COMPLEX, GENERIC, LINEAR, LOGISTIC, LONG, PROBLEMS, SWELL, Problem

INSIDE = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)


def tolerance_below(order: float) -> float:
    return 0.4 if order >= 7 else 0.2


def tolerance_above(order: float) -> float:
    return 0.4 if order >= 7 else 0.5


def end_error(solver, problem: Problem, n: int) -> float:
    dt = (problem.t1 - problem.t0) / n
    sol = dxdt.solve(dxdt.ODE(problem.field), problem.y0, (problem.t0, problem.t1), dt=dt, solver=solver)
    assert sol.stats.steps == n
    return float((sol.y1 - problem.end).abs().max())


def measured(solver, problem: Problem) -> float:
    counts, errors = [], []
    for n in steps_of(solver):
        counts.append(n)
        errors.append(end_error(solver, problem, n))
        if errors[-1] < 5e-14:
            break
    value = slope(1 / np.array(counts), errors)
    print(f"{identify(solver):12} {problem!r:18} claims {solver.facts.order} measures {value:.2f}")
    return value


EACH = [(s, p) for s in ORDINARY for p in (LINEAR, LOGISTIC, SWELL)]
EACH = [pytest.param(s, p, marks=[pytest.mark.slow] if s.facts.implicit else []) for s, p in EACH]


@pytest.mark.parametrize(("solver", "problem"), EACH, ids=identify)
def test_order_is_at_least_the_claim(solver, problem):
    assert measured(solver, problem) >= solver.facts.order - tolerance_below(solver.facts.order)


@pytest.mark.parametrize("solver", ORDINARY, ids=identify)
def test_order_is_the_claim_on_a_generic_problem(solver):
    value = measured(solver, LONG if solver.facts.order >= 7 else GENERIC)
    assert value >= solver.facts.order - tolerance_below(solver.facts.order)
    assert value <= solver.facts.order + tolerance_above(solver.facts.order)


@pytest.mark.parametrize(("solver", "problem"), crossed(ORDINARY, [GENERIC, COMPLEX], COMPLEX))
def test_order_backwards_in_time(solver, problem):
    value = measured(solver, problem.reversed())
    assert value >= solver.facts.order - tolerance_below(solver.facts.order)


def path_errors(solver, dt: float, t: float) -> tuple[float, float]:
    """Largest error of the path and of its derivative inside one step from exact data."""
    y = GENERIC.at(t)
    _, c = one_step(solver, GENERIC.field, t, dt, y)
    powers = torch.arange(1, len(c) + 1, dtype=torch.float64)
    values = y + torch.einsum("tj,jn->tn", INSIDE[:, None] ** powers, c[:, 0])
    slopes = torch.einsum("tj,jn->tn", powers * INSIDE[:, None] ** (powers - 1), c[:, 0]) / dt
    times = t + dt * INSIDE
    exact = GENERIC.exact(times)
    wanted = GENERIC.field(times, exact)
    return float((values - exact).abs().max()), float((slopes - wanted).abs().max())


@pytest.mark.parametrize("solver", chosen([s for s in ORDINARY if not s.facts.known_grid]))
def test_dense_output_inside_a_step(solver):
    sizes = 0.2 * 2.0 ** -np.arange(1, 5)
    # The mean over several starts, because the leading error may vanish at one.
    starts = np.linspace(0.1, 1.5, 6)
    errors = np.array([[path_errors(solver, h, t) for t in starts] for h in sizes]).mean(1)
    value, derivative = (slope(sizes, e, 1e-13) for e in errors.T)
    q = solver.facts.dense_order
    print(f"{identify(solver):12} dense_order {q}: path {value:.2f} derivative {derivative:.2f}")
    assert q + 1 - 0.2 <= value <= q + 1 + 0.5
    assert derivative >= q - 0.2


@pytest.mark.parametrize("solver", chosen(ORDINARY))
def test_dense_output_over_a_span(solver):
    """Path and derivative, at the same places of every step."""
    counts = steps_of_order(min(solver.facts.order, solver.facts.dense_order + 1))
    counts = counts[2:7] if solver.facts.dense_order >= 5 else counts[-5:] if not solver.facts.implicit else counts[:3]
    errors = []
    for n in counts:
        times = ((torch.arange(n)[:, None] + INSIDE) * (2 / n)).flatten()
        exact = GENERIC.exact(times)
        wanted = GENERIC.field(times, exact)
        sol = dxdt.solve(
            dxdt.ODE(GENERIC.field),
            GENERIC.y0,
            (0, 2),
            dt=2 / n,
            solver=solver,
            save=dxdt.Save(dense=True),
        )
        path = sol.path
        assert float(path.t0) == 0 and float(path.t1) == 2
        errors.append(
            [
                float((path(times) - exact).abs().max()),
                float((path.derivative(times) - wanted).abs().max()),
            ]
        )
    value, derivative = (slope(1 / np.array(counts), e) for e in np.array(errors).T)
    print(f"{identify(solver):12} over a span: path {value:.2f} derivative {derivative:.2f}")
    assert value >= min(solver.facts.order, solver.facts.dense_order + 1) - 0.2
    assert derivative >= min(solver.facts.order, solver.facts.dense_order) - 0.2


@pytest.mark.parametrize("solver", PAIRS, ids=identify)
def test_error_estimate_scales(solver):
    # A pair may estimate as a quotient of two methods, which needs small steps to show its power.
    sizes = 0.16 * 2.0 ** -np.arange(0, 5)
    starts = np.linspace(0.1, 1.5, 6)
    errors = []
    for h in sizes:
        steps = [one_step(solver, GENERIC.field, t, h, GENERIC.at(t))[0] for t in starts]
        errors.append(np.mean([float(s.error.abs().max()) for s in steps]))
    value = slope(sizes, errors, 1e-15)
    print(f"{identify(solver):12} error_order {solver.facts.error_order}: measures {value:.2f}")
    assert solver.facts.error_order - 0.3 <= value <= solver.facts.error_order + 0.5


ENDS = [(p, back) for p in PROBLEMS for back in (False, True)]


@pytest.mark.parametrize(("solver", "case"), every(PAIRS, ENDS, (GENERIC, True)))
def test_adaptive_solves_meet_their_tolerance(solver, case):
    """Local error per step is controlled, so the global one may be a small multiple of it."""
    problem, back = case
    problem = problem.reversed() if back else problem
    tol = 1e-8 if solver.facts.order >= 4 else 1e-6 if solver.facts.order >= 3 else 1e-4
    sol = dxdt.solve(
        dxdt.ODE(problem.field),
        problem.y0,
        (problem.t0, problem.t1),
        solver=solver,
        controller=dxdt.PID(rtol=tol, atol=tol),
    )
    error = float((sol.y1 - problem.end).abs().max())
    # A method of order 1 takes some hundred steps more.
    assert error <= (50 if solver.facts.order > 1 else 1000) * tol
    assert sol.status is dxdt.Status.SUCCESS
    assert sol.t1 == problem.t1


@pytest.mark.parametrize("solver", chosen(PAIRS))
def test_a_tighter_tolerance_gives_a_smaller_error(solver):
    tols = [1e-4, 1e-6, 1e-8] if solver.facts.order >= 4 else [1e-3, 1e-4, 1e-5]
    errors = [
        float(
            (
                dxdt.solve(
                    dxdt.ODE(GENERIC.field),
                    GENERIC.y0,
                    (0, 2),
                    solver=solver,
                    controller=dxdt.PID(rtol=t, atol=t),
                ).y1
                - GENERIC.end
            )
            .abs()
            .max()
        )
        for t in tols
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_orders_hold_per_sample():
    """Rows with steps of their own converge like joint ones."""
    solver, counts = dxdt.RK4(), (16, 24, 32, 48)
    y0 = GENERIC.y0.expand(3, 3) + 0.0
    ends = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    errors = []
    for n in counts:
        sol = dxdt.solve(dxdt.ODE(GENERIC.field), y0, (0.0, ends), dt=ends / n, solver=solver, per_sample=True)
        assert sol.stats.steps.tolist() == [n] * 3
        errors.append((sol.y1 - GENERIC.exact(ends)).abs().amax(1).numpy())
    for column in np.array(errors).T:
        assert 3.8 <= slope(1 / np.array(counts), column) <= 4.5
