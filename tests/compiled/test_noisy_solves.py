"""Stochastic solves by generated code answer as the eager loop does: states, gradients, statistics.

Every method that compiles is tried on every kind of noise it admits. Most cases run the traced
programs without generating code, which takes a tenth of the time.
"""

from importlib import import_module

import pytest
import torch

import dxdt
from claims import SOLVERS, identify
from dxdt import (
    PID,
    SDE,
    Additive,
    Brownian,
    Correlated,
    Diagonal,
    EulerMaruyama,
    General,
    Increments,
    Ito,
    Milstein,
    Scalar,
    StochasticHeun,
    Stratonovich,
)

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

QUICK = ("Milstein", General), ("ShARK", Additive)


def cases():
    for solver in (s for s in SOLVERS if s.facts.stochastic and s.facts.compiles):
        for noise, g in KINDS.items():
            if solver.facts.noise.admits(noise):
                quick = (identify(solver), type(noise)) in QUICK
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(solver, noise, g, id=f"{identify(solver)}-{noise}", marks=marks)


def equation(solver, noise, g):
    calculus = Ito() if Ito in solver.facts.noise.calculus else Stratonovich()
    return SDE(drift, g, noise, calculus)


def solve(eq, compile, solver, driver=None, grad=False, **options):
    y = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.7, 0.9]], dtype=F64, requires_grad=grad)
    a = torch.tensor(0.8, dtype=F64, requires_grad=grad)
    levy = None if solver.facts.noise is None else solver.facts.noise.levy
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


def test_training_with_new_seeds_is_one_program(traced, strict):
    """Seeds, noise and numbers of steps are inputs."""
    eq, answers = SDE(drift, vector), set()
    expect_same(eq, EulerMaruyama(), grad=True)
    for seed in range(10):
        options = {"driver": Increments(seed), "grad": True, "dt": 0.5 / (2 + seed % 5)}
        sol, _ = solve(eq, True, EulerMaruyama(), **options)
        answers.add(float(sol.ys.detach().sum()))
    assert len(traced) == 2 and len(answers) == 10


@pytest.mark.slow
def test_runs_longer_than_a_chunk(traced, strict, monkeypatch):
    """The noise of a step does not depend on how the solve is cut into runs."""
    monkeypatch.setattr(import_module("dxdt.diffeq.programs.predrawn"), "_NUMBERS", 6 * 7)
    eq = SDE(drift, vector)
    expect_same(eq, EulerMaruyama(), dt=1 / 40)
    (a, _), (b, _) = (solve(eq, True, EulerMaruyama(), dt=1 / 40, save=save) for save in (None, [0.0, 1.0]))
    assert torch.equal(a.ys[-1], b.ys[-1])


@pytest.mark.slow
def test_trees_of_noise_with_adaptive_steps(traced, strict):
    eq = SDE(drift, vector, Diagonal(), Stratonovich())
    for driver in (Brownian(5), Correlated(Brownian(5), torch.eye(3, dtype=F64) * 0.5)):
        options = {"driver": driver, "controller": PID(rtol=1e-2, atol=1e-2), "save": None}
        expect_same(eq, StochasticHeun(), grad=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("driver", [Increments(3), Brownian(3), Correlated(Increments(3), torch.eye(3, dtype=F64))])
def test_generated_code(driver, strict, fresh):
    """The law with real code, and backwards in time."""
    eq = SDE(drift, vector)
    expect_same(eq, EulerMaruyama(), driver=driver, grad=True)
    y0, a = torch.ones(5, 3, dtype=F64), torch.tensor(0.7, dtype=F64)
    options = dict(args=(a,), solver=Milstein(), driver=driver, dt=0.1, per_sample=True)
    one, other = (dxdt.solve(eq, y0, (0.5, -0.7), compile=c, **options).y1 for c in (True, False))
    assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def times_pulled(compile, driver, per_sample):
    net = torch.nn.Linear(2, 2, dtype=F64)
    net.load_state_dict({"weight": torch.tensor([[0.3, -0.5], [0.7, 0.2]]), "bias": torch.tensor([0.1, -0.2])})
    y0 = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    inputs = [y0, torch.tensor(0.1, dtype=F64), torch.tensor(1.0, dtype=F64), *net.parameters()]
    y, t0, t1, *_ = (x.requires_grad_() for x in inputs)
    equation = SDE(lambda t, y: torch.tanh(net(y)), lambda t, y: 0.3 + 0.1 * torch.sin(y), Diagonal(), Stratonovich())
    options = dict(dt=0.17, solver=StochasticHeun(), driver=driver, save=[0.3, 0.6, 1.0], per_sample=per_sample)
    rule = None if compile else dxdt.Checkpointed()
    sol = dxdt.solve(equation, y, (t0, t1), gradient=rule, compile=compile, **options)
    return torch.autograd.grad(sol.ys.sin().sum(), inputs)


@pytest.mark.parametrize(
    ("driver", "per_sample"), [(Increments(3), True), pytest.param(Brownian(3), False, marks=pytest.mark.slow)]
)
def test_gradients_of_the_ends_of_the_span(driver, per_sample, strict, fresh):
    """By generated code, for a field of a module: products inside a derivative that is traced."""
    for one, other in zip(*(times_pulled(c, driver, per_sample) for c in (True, False)), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
