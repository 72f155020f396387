"""Stochastic solves by generated code answer as the eager loop does: states, gradients, statistics.

Every method that compiles is tried on every kind of noise it admits. Most cases run the traced
programs without generating code, which takes a tenth of the time.
"""

import pytest
import torch

import dxdt
from dxdt import SDE, Additive, Diagonal, General, Increments, Ito, Scalar, Stratonovich
from dxdt.solve.solver import Solver

F64 = torch.float64
MATRIX = torch.tensor([[0.3, -0.1], [0.2, 0.4], [0.0, 0.25]], dtype=F64)


def drift(t, y, a):
    return torch.sin(a * y) - 0.3 * y * t.unsqueeze(-1)


def vector(t, y, a):
    return 0.3 * torch.cos(y) * a + 0.1


def matrix(t, y, a):
    return MATRIX * torch.sin(y + a).unsqueeze(-1) + 0.2 * MATRIX


def fixed(t, y, a):
    return (MATRIX * (1 + 0.5 * t).reshape(-1, 1, 1) * a).expand(*y.shape, 2)


KINDS = {Diagonal(): vector, Scalar(): vector, Additive(2): fixed, General(2): matrix}

QUICK = ("EulerMaruyama", Diagonal), ("Milstein", General), ("ShARK", Additive)


def compiling(kind=Solver):
    for solver in kind.__subclasses__():
        yield from compiling(solver)
        if solver.compiles and solver.noisy is not None and not solver.__name__.startswith("_"):
            yield solver


def cases():
    for solver in sorted(set(compiling()), key=lambda s: s.__name__):
        for noise, g in KINDS.items():
            if solver.stochastic and solver.noisy.admits(noise):
                quick = (solver.__name__, type(noise)) in QUICK
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(solver(), noise, g, id=f"{solver.__name__}-{noise}", marks=marks)


def equation(solver, noise, g):
    calculus = Ito() if Ito in solver.noisy.calculus else Stratonovich()
    return SDE(drift, g, noise, calculus)


def solve(eq, compile, solver, driver=None, grad=False, **options):
    y = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.7, 0.9]], dtype=F64, requires_grad=grad)
    a = torch.tensor(0.8, dtype=F64, requires_grad=grad)
    levy = None if solver.noisy is None else solver.noisy.levy
    driver = Increments(3, levy) if driver is None else driver
    options = {"per_sample": True, "dt": 0.2, "save": [0.0, 0.35, 1.0], **options}
    sol = dxdt.solve(eq, y, (0.0, 1.0), args=(a,), solver=solver, driver=driver, compile=compile, **options)
    return sol, (torch.autograd.grad(sol.ys.square().sum(), (y, a)) if grad else ())


def expect_same(eq, solver, **options):
    (one, g1), (other, g2) = (solve(eq, c, solver, **options) for c in (True, False))
    for name in ("steps", "accepted", *(() if options.get("grad") else ("evaluations",))):
        assert torch.equal(*(torch.as_tensor(getattr(s.stats, name)) for s in (one, other)))
    assert torch.equal(one.ts, other.ts)
    for a, b in zip((one.ys, *g1), (other.ys, *g2), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12), float((a - b).abs().max())


@pytest.mark.parametrize(("solver", "noise", "g"), list(cases()))
def test_every_method_on_every_noise(solver, noise, g, traced, strict):
    expect_same(equation(solver, noise, g), solver, grad=True)
    assert len(traced) == 2
