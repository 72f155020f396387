"""Rows that failed contribute exactly zero by the gradients that keep no states, as they do in the eager loop."""

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Backsolve, Heun, Reversible, ReversibleHeun

D = torch.float64
RULES = {
    "backsolve": (40.0, 1.0, dict(gradient=Backsolve(), solver=Heun(), controller=PID(1e-3, 1e-4), max_steps=100)),
    "reversible": (80.0, 3.0, dict(gradient=Reversible(), solver=ReversibleHeun(), dt=0.05, max_steps=300)),
}


@pytest.mark.filterwarnings("ignore:.*samples failed")
@pytest.mark.parametrize("rule", RULES)
def test_rows_that_failed_contribute_zero(traced, strict, rule):
    rate, t1, options = RULES[rule]
    blow = torch.tensor([0.0, rate, 0.0], dtype=D)[:, None]
    found = []
    for compile in (True, False):
        y0 = torch.full((3, 2), 0.4, dtype=D, requires_grad=True)
        theta = torch.tensor([0.5, 0.8], dtype=D, requires_grad=True)

        def field(t, y, theta):
            return torch.tanh(y * theta) + blow * y**3 * theta

        options = {**options, "per_sample": True, "throw": False, "compile": compile}
        sol = dxdt.solve(ODE(field), y0, (0.0, t1), args=(theta,), **options)
        assert [s.ok for s in sol.status] == [True, False, True]
        loss = torch.where(sol.reached[..., None], sol.ys, 0.0).sum()
        found.append(torch.autograd.grad(loss, (y0, theta)))
    for one, other in zip(*found, strict=True):
        assert torch.isfinite(one).all() and torch.allclose(one, other, rtol=1e-9, atol=1e-11)
    assert not found[0][0][1].any() and found[0][0][0].all()
