"""Methods with a memory, compiled: values, and gradients that pass through their state from step to step."""

from importlib import import_module

import pytest
import torch

import dxdt
from dxdt import ODE, PID, AdamsBashforth, AdamsBashforthMoulton, Clip, Constant, Direct, Grid, Save

F64 = torch.float64
WEIGHT = torch.linspace(-1, 1, 9, dtype=F64).reshape(3, 3)


def field(t, y, w):
    return torch.tanh(y @ w) - y * torch.sin(3 * t).reshape(t.shape + (1,) * (y.ndim - t.ndim))


def start(*shape):
    return torch.linspace(-1, 1.2, torch.Size(shape).numel(), dtype=F64).reshape(shape)


def solved(compile, ends=False, t=(0.0, 1.0), grads=True, **options):
    """The values and the gradients of the state, the weights and, if wanted, the ends of the span."""
    y0, w = start(2, 3).requires_grad_(grads), WEIGHT.clone().requires_grad_(grads)
    inputs, t = [y0, w], [torch.as_tensor(x, dtype=F64) for x in t] if ends else t
    inputs += [x.requires_grad_() for x in t] if ends else []
    gradient = None if compile or not grads else Direct()
    sol = dxdt.solve(ODE(field), y0, t, args=(w,), compile=compile, gradient=gradient, **options)
    if not grads:
        return sol, ()
    total = (sol.ys * torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=F64).reshape(sol.ys.shape)).sum()
    if sol.path is not None:
        total = total + sum(sol.path(torch.tensor(s, dtype=F64)).square().sum() for s in (0.1, 0.45, 0.8))
    return sol, torch.autograd.grad(total, inputs)


UNEVEN = torch.linspace(0, 1, 10, dtype=F64) ** 1.5
CASES = {
    "bashforth": dict(solver=AdamsBashforth(3), dt=0.11, ends=True),
    "moulton-dense-rows": dict(
        solver=AdamsBashforthMoulton(3, 2), controller=Grid(UNEVEN), per_sample=True, save=Save(dense=True, end=True)
    ),
    "no-memory": dict(solver=AdamsBashforthMoulton(2), dt=0.11),
    "jumps": dict(solver=AdamsBashforth(2), controller=Clip(Constant(0.07), jumps=[0.4])),
    "reversible-adaptive-rows": dict(
        solver=dxdt.ReversibleHeun(), controller=PID(1e-4, 1e-5), per_sample=True, t=([0.0, 0.3], [1.0, 0.9]), ends=True
    ),
    "asynchronous-jumps": dict(
        solver=dxdt.AsynchronousLeapfrog(), controller=Clip(PID(1e-3, 1e-3), jumps=[0.4]), save=[0.3, 0.7, 1.0]
    ),
}


def expect_same(name):
    (a, given), (b, wanted) = (solved(c, **CASES[name]) for c in (True, False))
    assert torch.equal(torch.as_tensor(a.stats.steps), torch.as_tensor(b.stats.steps))
    assert torch.allclose(a.ys, b.ys, rtol=1e-12, atol=1e-12)
    for g, w in zip(given, wanted, strict=True):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)


QUICK = ("reversible-adaptive-rows",)  # and the start, below


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_gradients_through_memory(name, traced, strict):
    expect_same(name)
    assert len(traced) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_compiled_gradients_through_memory(name, strict):
    expect_same(name)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [AdamsBashforth(k) for k in range(1, 7)] + [AdamsBashforthMoulton(6, 2)])
def test_all_orders(solver, strict):
    for options in (dict(dt=0.1), dict(controller=Grid(UNEVEN), per_sample=True, save=[0.3, 1.0])):
        (a, _), (b, _) = (solved(c, grads=False, solver=solver, **options) for c in (True, False))
        assert torch.allclose(a.ys, b.ys, rtol=1e-13, atol=1e-13)


def test_the_start_costs_no_more_than_it_is(traced, strict, monkeypatch):
    """Only the first steps are the starter's, also over several chunks, and their number is no part of the program."""
    monkeypatch.setattr(import_module("dxdt.diffeq.programs.engine"), "_SLOTS", 16)
    for steps in (12, 40):
        options = dict(solver=AdamsBashforth(3), dt=1 / steps, save=Save(steps=True))
        (a, given), (b, wanted) = (solved(c, **options) for c in (True, False))
        assert a.stats.evaluations == b.stats.evaluations == 1 + 2 * 6 + (steps - 2)
        assert torch.allclose(a.ys, b.ys, rtol=1e-12, atol=1e-12)
        for g, w in zip(given, wanted, strict=True):
            assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)
    assert len(traced) == 3  # the first chunk, later ones, and the way back
