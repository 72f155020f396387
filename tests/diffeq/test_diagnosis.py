"""What a solve that took too many steps says of the cause."""

import pytest
import torch

import dxdt
from dxdt import ODE

Y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)


def van_der_pol(t, y):
    return torch.stack([y[..., 1], 1000 * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)


def fast_spring(t, y):
    return torch.stack([y[..., 1], -1e4 * y[..., 0]], -1)


def jumping(t, y):
    return torch.sign(torch.sin(400 * t)) * torch.ones_like(y)


@pytest.mark.parametrize("solver", [dxdt.Tsit5(), dxdt.Bosh3(), dxdt.Dopri8()], ids=repr)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stiff_equation_is_called_so(solver, compile):
    with pytest.raises(dxdt.SolveError, match=r"looks stiff there.*solver=dxdt\.Kvaerno5\(\)"):
        dxdt.solve(ODE(van_der_pol), Y0, (0.0, 3000.0), solver=solver, max_steps=500, compile=compile)
    assert dxdt.solve(ODE(van_der_pol), Y0, (0.0, 3000.0), solver=dxdt.Kvaerno5()).ok


def test_rows_are_told_of_the_first_that_failed():
    with pytest.warns(RuntimeWarning, match="1 of 2 samples failed; sample 1 .*looks stiff"):
        rates = torch.tensor([[1.0], [1e5]], dtype=torch.float64)
        dxdt.solve(
            ODE(lambda t, y, k: -k * (y - torch.cos(t)[:, None])),
            torch.ones(2, 1, dtype=torch.float64),
            (0.0, 10.0),
            args=(rates,),
            per_sample=True,
            max_steps=300,
        )


def test_jumps_of_the_field():
    with pytest.raises(dxdt.SolveError, match=r"steps were rejected, as where the field jumps.*jumps=\["):
        dxdt.solve(ODE(jumping), Y0, (0.0, 100.0), max_steps=500, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", [{"rtol": 1e-6, "atol": 1e-8}, {}, {"dt": 1e-3, "max_steps": 20}], ids=str)
def test_a_fast_oscillation_is_neither(options):
    with pytest.raises(dxdt.SolveError) as caught:
        dxdt.solve(ODE(fast_spring), Y0, (0.0, 1000.0), **{"max_steps": 500, **options})
    assert "stiff" not in str(caught.value) and "jumps" not in str(caught.value)


def test_what_it_asks_is_not_counted():
    sol = dxdt.solve(ODE(van_der_pol), Y0, (0.0, 3000.0), max_steps=50, throw=False)
    assert (
        sol.stats.evaluations
        == dxdt.solve(ODE(van_der_pol), Y0, (0.0, 3000.0), max_steps=50, throw=False).stats.evaluations
    )
    with pytest.raises(dxdt.SolveError) as caught:
        dxdt.solve(ODE(van_der_pol), Y0, (0.0, 3000.0), max_steps=50)
    assert caught.value.solution.stats.evaluations == sol.stats.evaluations
