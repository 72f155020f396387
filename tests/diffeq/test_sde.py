"""Equations with noise: conversion, sums, trees, paths, adaptive steps, gradients, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from claims import SOLVERS, identify
from dxdt.ops.tree import tree_map

F64 = torch.float64


def drift(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(2 * y) - 0.3 * y


def componentwise(t: Tensor, y: Tensor) -> Tensor:
    return 0.4 + 0.5 * torch.sin(y)


def matrix(t: Tensor, y: Tensor) -> Tensor:
    first = torch.stack((torch.cos(y[..., 1]), 0.5 * y[..., 0]), -1)
    second = torch.stack((0.4 * y[..., 0] * y[..., 1], torch.sin(y[..., 0])), -1)
    return 0.5 * torch.stack((first, second), -1)


def y0(rows: int = 5) -> Tensor:
    return torch.linspace(-1, 1, 2 * rows, dtype=F64).reshape(rows, 2)


def solve(equation: Any, y: Any, solver: Any, **given: Any) -> Any:
    own: dict[str, Any] = dict(driver=dxdt.Brownian(7, dxdt.SpaceTime), dt=1 / 32)
    own = own | dict(per_sample=True, solver=solver) | given
    return dxdt.solve(equation, y, (0.0, 1.0), **own)


def end(*problem: Any, **given: Any) -> Any:
    return tree_map(lambda leaf: leaf[-1], solve(*problem, **given).ys)


def test_converted_equation_has_the_correction_of_the_formula():
    t, y = torch.zeros(5, dtype=F64), y0()
    for noise, g in ((dxdt.General(2), matrix), (dxdt.Diagonal(), componentwise)):
        ito = dxdt.SDE(drift, g, noise)
        other = dxdt.to_stratonovich(ito)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, g=g: g(t[0], x)))(y)
        if isinstance(noise, dxdt.General):
            turn = torch.einsum("rijk,rkj->ri", jacobian, g(t, y))
        else:
            turn = torch.diagonal(jacobian, dim1=1, dim2=2) * g(t, y)
        torch.testing.assert_close(other.drift(t, y), drift(t, y) - 0.5 * turn)
        assert isinstance(other.calculus, dxdt.Stratonovich)
        assert dxdt.to_ito(other) is ito and dxdt.to_ito(ito) is ito
    still = dxdt.to_stratonovich(dxdt.SDE(drift, matrix, dxdt.Additive(2)))
    assert torch.equal(still.drift(t, y), drift(t, y))


def test_equations_in_both_calculi_have_one_solution():
    ito = dxdt.SDE(drift, componentwise)
    fine = end(ito, y0(), dxdt.SRIW1(), dt=1 / 512)
    other = end(dxdt.to_stratonovich(ito), y0(), dxdt.SPaRK(), dt=1 / 512)
    torch.testing.assert_close(fine, other, rtol=0, atol=2e-3)


def test_sum_of_noises_is_the_matrix_of_all_columns():
    def whole(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat((torch.diag_embed(componentwise(t, y)), matrix(t, y)), -1)

    def parts(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return componentwise(t, y), matrix(t, y)

    both = dxdt.Sum(dxdt.Diagonal(), dxdt.General(2))
    for calculus, solver in (
        (dxdt.Ito(), dxdt.EulerMaruyama()),
        (dxdt.Ito(), dxdt.Milstein()),
        (dxdt.Ito(), dxdt.Milstein(derivative_free=True)),
        (dxdt.Stratonovich(), dxdt.ReversibleHeun()),
        (dxdt.Stratonovich(), dxdt.SPaRK()),
    ):
        one = end(dxdt.SDE(drift, parts, both, calculus), y0(), solver)
        other = end(dxdt.SDE(drift, whole, dxdt.General(4), calculus), y0(), solver)
        torch.testing.assert_close(one, other)
    ito = dxdt.SDE(drift, parts, both), dxdt.SDE(drift, whole, dxdt.General(4))
    t = torch.zeros(5, dtype=F64)
    one, other = (dxdt.to_stratonovich(eq).drift(t, y0()) for eq in ito)
    torch.testing.assert_close(one, other)


def test_trees_of_real_and_complex_leaves_take_diagonal_noise():
    def halves(t: Tensor, y: Any) -> Any:
        return {"a": drift(t, y["a"]), "b": -y["b"]}

    def noise(t: Tensor, y: Any) -> Any:
        return {"a": componentwise(t, y["a"]), "b": 0.2 * y["b"]}

    tree = {"a": y0(), "b": torch.ones(5, 3, dtype=torch.complex128)}
    sol = solve(dxdt.SDE(halves, noise), tree, dxdt.Milstein(derivative_free=True))
    assert sol.ys["b"].dtype == torch.complex128 and sol.ys["b"].shape == (1, 5, 3)
    real = dict(a=y0(), b=torch.ones(5, 3, dtype=F64))
    ito = dxdt.SDE(halves, noise)
    one = end(dxdt.to_stratonovich(ito), real, dxdt.SPaRK(), dt=1 / 256)
    two = end(ito, real, dxdt.SRIW1(), dt=1 / 256)
    torch.testing.assert_close(one["a"], two["a"], rtol=0, atol=5e-3)
    torch.testing.assert_close(one["b"], two["b"], rtol=0, atol=5e-3)


def brownian_motion(**given: Any) -> Any:
    still = dxdt.SDE(lambda t, y: 0 * y, lambda t, y: torch.ones_like(y), dxdt.Additive())
    rows = given.pop("rows", 3)
    given = dict[str, Any](save=[0.25, 0.5, 1.0], solver=dxdt.EulerMaruyama()) | given
    return solve(still, torch.zeros(rows, 2, dtype=F64), **given).ys


def test_noise_does_not_depend_on_the_batch_size():
    for driver in (dxdt.Brownian(3), dxdt.Increments(3)):
        few, many = (brownian_motion(rows=r, driver=driver) for r in (3, 70))
        assert torch.equal(few, many[:, :3])


def test_every_step_size_sees_the_same_path():
    coarse = brownian_motion(dt=1 / 4)
    for dt in (1 / 8, 1 / 16, 1 / 100):
        grid = brownian_motion(dt=dt)
        torch.testing.assert_close(grid, coarse, rtol=0, atol=1e-12)
    adaptive = brownian_motion(
        solver=dxdt.StochasticHeun(),
        controller=dxdt.Clip(dxdt.PI(), steps=[0.25, 0.5]),
        dt=0.1,
    )
    torch.testing.assert_close(adaptive, coarse, rtol=0, atol=1e-12)


def test_samples_have_spans_of_their_own_and_may_run_backwards():
    ends = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    equation = dxdt.SDE(drift, componentwise, calculus=dxdt.Stratonovich())
    given: Any = dict(solver=dxdt.StochasticHeun(), driver=dxdt.Brownian(3, span=(0.0, 2.0)), dt=1 / 64)
    all_rows = dxdt.solve(equation, y0(3), (0.0, ends), per_sample=True, **given)
    first = dxdt.solve(equation, y0(3), (0.0, 1.0), per_sample=True, **given)
    assert torch.equal(all_rows.ys[-1, 0], first.ys[-1, 0])
    back = dxdt.solve(equation, all_rows.ys[-1], (ends, 0.0), per_sample=True, **given)
    torch.testing.assert_close(back.ys[-1], y0(3), rtol=0, atol=5e-2)


@pytest.mark.parametrize("solver", [dxdt.StochasticHeun(), dxdt.SPaRK(), dxdt.HalfStep(dxdt.Milstein(True))])
def test_adaptive_steps_follow_the_tolerance(solver: Any):
    y, size = torch.ones(20, 2, dtype=F64), 0.8
    equation = dxdt.SDE(lambda t, y: 0.3 * y, lambda t, y: size * y, calculus=dxdt.Stratonovich())
    driver = dxdt.Brownian(5, dxdt.SpaceTime)
    w = driver.bind(0.0, 1.0, 20, 2, F64).value(1.0)
    errors, steps = [], []
    for tol in (1e-1, 1e-2, 1e-3):
        controller = dxdt.PID(tol, tol, p=0.1, i=0.3)
        sol = solve(equation, y, solver, controller=controller, dt=0.02, driver=driver, max_steps=10**5)
        errors.append((sol.ys[-1] - torch.exp(0.3 + size * w)).abs().mean())
        steps.append(sol.stats.accepted.double().mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize(
    "solver",
    [dxdt.EulerMaruyama(), dxdt.Milstein(), dxdt.Milstein(derivative_free=True), dxdt.SRIW1()],
)
def test_gradients_are_those_of_the_discretisation(solver: Any):
    def value(y: Tensor, a: Tensor, gradient: Any = None) -> Tensor:
        equation = dxdt.SDE(lambda t, y, a: -a * y, lambda t, y, a: a * torch.sin(y))
        return end(equation, y, solver, dt=0.25, args=(a,), gradient=gradient)

    y = y0(2).requires_grad_()
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (y, a))
    for slots in (None, 2):
        mine = torch.autograd.grad(value(y, a, dxdt.Checkpointed(slots)).sum(), (y, a))
        direct = torch.autograd.grad(value(y, a).sum(), (y, a))
        torch.testing.assert_close(mine, direct, rtol=1e-12, atol=1e-12)


ITO = dxdt.SDE(drift, componentwise)
STRATONOVICH = dxdt.SDE(drift, componentwise, calculus=dxdt.Stratonovich())
GENERAL = dxdt.SDE(drift, matrix, dxdt.General(2), dxdt.Stratonovich())

BAD: dict[str, tuple[Callable[[], dict[str, Any]], type, str]] = {
    "Ito solver": (
        lambda: dict(equation=STRATONOVICH, solver=dxdt.EulerMaruyama()),
        ValueError,
        r"converges to Ito .* equation is Stratonovich: solve dxdt.to_ito\(equation\)",
    ),
    "Stratonovich solver": (
        lambda: dict(equation=ITO, solver=dxdt.StochasticHeun()),
        ValueError,
        r"converges to Stratonovich .* is Ito: solve dxdt.to_stratonovich\(equation\)",
    ),
    "no Levy area": (
        lambda: dict(equation=ITO, solver=dxdt.SRIW1(), driver=dxdt.Increments(0)),
        ValueError,
        r"SRIW1 needs space-time Levy areas.*dxdt.Increments\(seed, dxdt.SpaceTime\)",
    ),
    "noise not admitted": (
        lambda: dict(equation=GENERAL, solver=dxdt.SRIW1()),
        ValueError,
        r"SRIW1 is made for Diagonal, Scalar noise but the equation has General\(m=2\)",
    ),
    "additive solver": (
        lambda: dict(equation=ITO, solver=dxdt.ShARK()),
        ValueError,
        "ShARK is made for Additive noise",
    ),
    "Increments with adaptive steps": (
        lambda: dict(
            equation=STRATONOVICH,
            solver=dxdt.StochasticHeun(),
            controller=dxdt.PID(),
            driver=dxdt.Increments(0),
        ),
        ValueError,
        r"known grid but PID chooses its steps: give driver=dxdt.Brownian\(seed\)",
    ),
    "Increments inside steps": (
        lambda: dict(equation=ITO, solver=dxdt.HalfStep(dxdt.EulerMaruyama()), driver=dxdt.Increments(0)),
        ValueError,
        "HalfStep asks for the noise of parts of a step",
    ),
    "no estimate": (
        lambda: dict(equation=ITO, solver=dxdt.EulerMaruyama(), controller=dxdt.PID()),
        ValueError,
        "PID adapts steps to an error estimate that EulerMaruyama does not make",
    ),
    "no driver": (
        lambda: dict(equation=ITO, solver=dxdt.EulerMaruyama(), driver=None),
        ValueError,
        r"no driver: give driver=dxdt.Brownian\(seed=0\)",
    ),
    "driver class": (
        lambda: dict(equation=ITO, solver=dxdt.EulerMaruyama(), driver=dxdt.Brownian),
        TypeError,
        "driver is Brownian, not a random path",
    ),
    "ODE solver": (
        lambda: dict(equation=ITO, solver=dxdt.Tsit5()),
        ValueError,
        "Tsit5 solves equations without noise",
    ),
    "SDE solver": (
        lambda: dict(equation=dxdt.ODE(drift), solver=dxdt.SPaRK()),
        ValueError,
        "SPaRK solves stochastic equations",
    ),
    "diagonal shape": (
        lambda: dict(equation=dxdt.SDE(drift, matrix), solver=dxdt.EulerMaruyama()),
        ValueError,
        r"the diffusion's value has shape \(5, 2, 2\)",
    ),
    "matrix shape": (
        lambda: dict(equation=dxdt.SDE(drift, matrix, dxdt.General(3)), solver=dxdt.EulerMaruyama()),
        ValueError,
        r"matrix noise of 3 components needs \(5, 2, 3\): return one column",
    ),
    "parts of a sum": (
        lambda: dict(
            equation=dxdt.SDE(drift, matrix, dxdt.Sum(dxdt.Diagonal(), dxdt.General(2))),
            solver=dxdt.EulerMaruyama(),
        ),
        TypeError,
        "not a tuple of 2: return one value for each part",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_cause_and_remedy(case: str):
    given, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        solve(y=y0(), **given())


def test_conversion_and_sums_refuse_what_they_are_not_for():
    with pytest.raises(TypeError, match="no noise, so it has no calculus"):
        dxdt.to_ito(dxdt.ODE(drift))
    with pytest.raises(TypeError, match="Sum takes noises"):
        dxdt.Sum(dxdt.Diagonal(), 2)  # pyright: ignore[reportArgumentType]


def test_driver_of_another_size_is_refused():
    driver = dxdt.Correlated(dxdt.Brownian(0), torch.eye(3, dtype=F64))
    with pytest.raises(ValueError, match="3 rows but the noise has size 2"):
        solve(ITO, y0(), dxdt.EulerMaruyama(), driver=driver)


def test_steps_cost_what_they_should():
    equation = dxdt.SDE(lambda t, y: -y, lambda t, y: 0.1 * y)
    y = torch.ones(2, dtype=torch.float32)
    for driver in (dxdt.Brownian(0), dxdt.Increments(0)):
        sol = dxdt.solve(equation, y, (0.0, 1.0), dt=0.01, solver=dxdt.EulerMaruyama(), driver=driver)
        assert sol.stats.accepted == sol.stats.evaluations == 100
    assert np.isfinite(sol.ys.numpy()).all()


def table_of_solvers() -> str:
    """The facts of the solvers, as the guide shows them."""
    head = "| solver | calculus | strong | weak | needs | noise | evaluations of f | error estimate |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for solver in (s for s in SOLVERS if s.facts.noise is not None and not s.facts.semilinear):
        n = solver.facts.noise
        assert n is not None
        calculus = " or ".join(kind.__name__ for kind in n.calculus)
        kinds = dxdt.General(1), dxdt.Diagonal(), dxdt.Additive()
        orders = [f"{n.strong(k):g}" if n.admits(k) else "-" for k in kinds]
        strong, loud = " / ".join(orders), n.admits(dxdt.Diagonal())
        kinds = "any" if dxdt.General in n.noises else ", ".join(k.__name__ for k in n.noises)
        needs = "W" if n.levy is None else "W, H"
        estimate = "yes" if n.error else "no"
        quiet = f"{n.weak_additive:g}" if n.admits(dxdt.Additive()) else "-"
        weak = f"{n.weak:g} / {quiet}" if loud else f"- / {quiet}"
        row = (f"`{identify(solver)}`", calculus, strong, weak, needs, kinds, str(solver.facts.stages), estimate)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def test_guide_tells_the_facts_of_the_solvers():
    guide = Path(__file__).parents[2] / "docs" / "stochastic.md"
    _, rest = guide.read_text().split("<!-- table of solvers: begin -->\n")
    assert rest.split("\n<!-- table of solvers: end -->")[0] == table_of_solvers()


@pytest.mark.parametrize("driver", [dxdt.Brownian(7), dxdt.Increments(7)], ids=["tree", "grid"])
@pytest.mark.parametrize("solver", [dxdt.EulerMaruyama(), dxdt.Milstein()], ids=identify)
def test_transforms_see_the_same_path(solver: Any, driver: Any):
    equation = dxdt.SDE(drift, componentwise)

    def value(y: Tensor) -> Tensor:
        return end(equation, y, solver, dt=0.25, driver=driver).sum()

    y, v = y0().requires_grad_(), torch.ones_like(y0())
    (direct,) = torch.autograd.grad(value(y), y)
    torch.testing.assert_close(torch.func.grad(value)(y0()), direct)
    _, pushed = torch.func.jvp(value, (y0(),), (v,))
    torch.testing.assert_close(pushed, (direct * v).sum())
