"""Equations, controllers and gradients written outside the library compile like its own."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import dxdt
from dxdt.diffeq import Decision, Equation


@dataclass(frozen=True)
class Damped(Equation):
    """An equation of a user's own: dy/dt = f(t, y) - k y."""

    field: Any
    k: float = 2.0

    def drift(self, t, y, *args):
        return self.field(t, y, *args) - self.k * y

    @property
    def fields(self):
        return (self.field,)

    def with_fields(self, field):
        return Damped(field, self.k)


@dataclass(frozen=True)
class Growing(dxdt.Controller):
    """A controller of a user's own: every step is longer than the one before by a factor."""

    factor: float = 1.25

    def start(self, span, dt, order):
        return dt, ()

    def decide(self, span, error, t, dt, state):
        accept = error <= 1
        return Decision(accept, dt * self.factor, state, ~accept)


@dataclass(frozen=True)
class Mine(dxdt.Gradient):
    """A gradient of a user's own, which differentiates like another one."""

    def run(self, loop, plan, inputs, dt, recorder):
        return dxdt.Checkpointed().run(loop, plan, inputs, dt, recorder)

    def compiled(self, ways, problem):
        return ways.stored(self, problem)


class Duck:
    """An equation by its methods alone, which does not say how it looks around other fields."""

    fields = ()

    def drift(self, t, y):
        return -y


NET = torch.nn.Linear(3, 3).double()
Y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


FIELD = dxdt.ODE(lambda t, y: NET(y).tanh())
GROWING = {"controller": Growing(1.5), "dt": 0.2}


@pytest.mark.parametrize(
    ("equation", "options"),
    [
        pytest.param(Damped(FIELD.field), {**GROWING, "gradient": Mine()}, id="all"),
        pytest.param(Damped(FIELD.field), {}, id="equation", marks=pytest.mark.slow),
        pytest.param(FIELD, GROWING, id="controller", marks=pytest.mark.slow),
        pytest.param(FIELD, {"gradient": Mine()}, id="gradient", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("error")
def test_own_kinds_compile(equation, options):
    y1, grads = [], []
    for compile in (False, True):
        y0 = Y0.clone().requires_grad_()
        sol = dxdt.solve(equation, y0, (0.0, 1.0), compile=compile, solver=dxdt.Heun(), **options)
        grads.append(torch.autograd.grad(sol.y1.square().sum(), (y0, NET.weight)))
        y1.append(sol.y1.detach())
    assert torch.allclose(*y1, rtol=1e-10)
    assert all(torch.allclose(a, b, rtol=1e-8) for a, b in zip(*grads, strict=True))


def test_what_cannot_be_formed_again_runs_eager_and_is_named():
    with pytest.warns(RuntimeWarning, match="Duck has no compiled form yet: give it with_fields"):
        sol = dxdt.solve(Duck(), Y0, (0.0, 1.0), compile=True)
    assert torch.allclose(sol.y1, Y0 / torch.e, rtol=1e-3)
