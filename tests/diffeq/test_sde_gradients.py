"""The continuous adjoint along a random path, beside gradients that are exact for the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dxdt

F64 = torch.float64
MATRIX, DIAGONAL = dxdt.General(3), dxdt.Diagonal()


class Network(nn.Module):
    """A field of time and state: an MLP of width 8 with a sigmoid at its end."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = int(torch.tensor(shape).prod())
            layers = nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, out), nn.Sigmoid()
            self.layers = nn.Sequential(*layers).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.reshape(-1, 1).expand(len(y), 1)
        return self.layers(torch.cat((time, y), -1)).unflatten(-1, self.shape)


def gradients(solver: Any, dt: float, rule: Any, noise: Any, calculus: Any, **given: Any) -> Tensor:
    """All gradients of a loss at the end, of the initial state and of both fields, in one row."""
    f, g = Network((4,), 0), Network((4, 3) if noise is MATRIX else (4,), 1)
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(32, 4, dtype=F64, generator=generator, requires_grad=True)
    field = g if noise is MATRIX else lambda t, y: g(t, y) * torch.sin(y)
    sol = dxdt.solve(
        dxdt.SDE(f, field, noise, calculus),
        y,
        (0.0, 1.0),
        dt=dt,
        solver=solver,
        gradient=rule,
        driver=dxdt.Brownian(5),
        per_sample=True,
        params=g.parameters(),
        **given,
    )
    wanted = (y, *f.parameters(), *g.parameters())
    return torch.cat([x.flatten() for x in torch.autograd.grad((sol.ys**2).sum(), wanted)])


def distance(mine: Tensor, other: Tensor) -> float:
    """The L1 norm of the difference over the larger norm."""
    return float((mine - other).abs().sum() / max(mine.abs().sum(), other.abs().sum()))


@pytest.mark.parametrize(
    ("solver", "calculus", "noise", "limit"),
    [
        (dxdt.StochasticMidpoint(), dxdt.Stratonovich(), MATRIX, 2e-3),
        (dxdt.StochasticHeun(), dxdt.Stratonovich(), MATRIX, 2e-3),
        (dxdt.EulerMaruyama(), dxdt.Ito(), MATRIX, 5e-2),
        (dxdt.Milstein(derivative_free=True), dxdt.Ito(), DIAGONAL, 2e-2),
    ],
    ids=["midpoint", "Heun", "Ito-matrix", "Ito-diagonal"],
)
def test_adjoint_along_a_path_converges_to_the_gradient(solver: Any, calculus: Any, noise: Any, limit: float):
    gaps = []
    for dt in (1 / 4, 1 / 32):
        given = dict(noise=noise, calculus=calculus, save=[0.5, 1.0])
        direct = gradients(solver, dt, dxdt.Direct(), **given)
        gaps.append(distance(gradients(solver, dt, dxdt.Backsolve(), **given), direct))
    print(gaps)
    assert gaps[1] < limit and gaps[1] < 0.6 * gaps[0]


# Relative L1 errors at dt = 2^-1, 2^-3, 2^-5, 2^-7, of one random instance of this problem.
TABLE = {
    "midpoint": (dxdt.StochasticMidpoint(), dxdt.Backsolve(), (9.9e-3, 2.4e-3, 5.5e-4, 1.9e-4)),
    "Heun": (dxdt.StochasticHeun(), dxdt.Backsolve(), (4.5e-3, 1.0e-3, 2.5e-4, 6.8e-5)),
    "reversible Heun": (dxdt.ReversibleHeun(), dxdt.Reversible(), (5e-16,) * 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_table_of_gradient_errors(name: str):
    solver, rule, known = TABLE[name]
    for k, expected in zip((1, 3, 5, 7), known, strict=True):
        given = dict(noise=MATRIX, calculus=dxdt.Stratonovich())
        direct = gradients(solver, 2.0**-k, dxdt.Direct(), **given)
        found = distance(gradients(solver, 2.0**-k, rule, **given), direct)
        print(f"{name} 2^-{k}: {found:.1e} ({expected:.1e})")
        assert found < 4 * expected + 1e-14


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_adaptive_backsolve_converges_along_the_path(per_sample: bool):
    """To the gradient of small fixed steps, though the noise does not commute; the first step is found."""

    def value(rule: Any, controller: Any, dt: float | None = None) -> Tensor:
        y = torch.linspace(-1, 1, 64, dtype=F64).reshape(32, 2).requires_grad_()
        a = torch.tensor(0.6, dtype=F64)
        equation = dxdt.SDE(
            lambda t, y, a: -a * y,
            lambda t, y, a: torch.stack((a * y.flip(-1), 0.4 * torch.cos(a * y)), -1),
            dxdt.General(2),
            dxdt.Stratonovich(),
        )
        given = dict[str, Any](args=(a,), dt=dt, controller=controller, per_sample=per_sample, save=[0.4, 1.0])
        sol = dxdt.solve(
            equation, y, (0.0, 1.0), solver=dxdt.StochasticHeun(), driver=dxdt.Brownian(5), gradient=rule, **given
        )
        return torch.autograd.grad((sol.ys**2).sum(), y)[0]

    fine = value(dxdt.Checkpointed(), None, 2.0**-9)
    errors = [
        float((value(dxdt.Backsolve(), dxdt.PID(x, x, p=0.1, i=0.3)) - fine).square().mean().sqrt())
        for x in (1e-1, 3e-3)
    ]
    assert errors[1] < 0.5 * errors[0], errors


def test_backsolve_refuses_what_it_cannot_follow():
    def solve(solver: Any, driver: Any, rule: Any, **given: Any) -> None:
        y = torch.ones(2, dtype=F64, requires_grad=True)
        equation = dxdt.SDE(lambda t, y: -y, lambda t, y: 0.1 * y, calculus=dxdt.Stratonovich())
        given = dict[str, Any](dt=0.1, t=(0.0, 1.0)) | given
        dxdt.solve(equation, y, solver=solver, driver=driver, gradient=rule, **given)

    heun, path = dxdt.StochasticHeun(), dxdt.Brownian(0)
    with pytest.raises(ValueError, match=r"Increments does not give: .*dxdt.Brownian\(seed\)"):
        solve(heun, dxdt.Increments(0), dxdt.Backsolve())
    with pytest.raises(ValueError, match="StochasticMidpoint.*not by EulerHeun"):
        solve(heun, path, dxdt.Backsolve(solver=dxdt.EulerHeun()))
    with pytest.raises(ValueError, match="no derivative in time"):
        end = torch.tensor(1.0, dtype=F64, requires_grad=True)
        solve(heun, path, dxdt.Backsolve(), t=(0.0, end))


@pytest.mark.filterwarnings("ignore:1 of 3 samples failed")
@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    ("solver", "rule"),
    [
        (dxdt.ReversibleHeun(), dxdt.Direct()),
        (dxdt.ReversibleHeun(), dxdt.Checkpointed()),
        (dxdt.ReversibleHeun(), dxdt.Checkpointed(3)),
        (dxdt.ReversibleHeun(), dxdt.Reversible()),
        (dxdt.StochasticHeun(), dxdt.Backsolve()),
    ],
    ids=repr,
)
def test_samples_that_overflow_leave_the_others_alone(solver: Any, rule: Any, adaptive: bool):
    def value(odd: float) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.tensor([[0.5, 0.2], [odd, odd], [0.1, -0.3]], dtype=F64, requires_grad=True)
        a = torch.tensor(0.4, dtype=F64, requires_grad=True)
        equation = dxdt.SDE(
            lambda t, y, a: a * y**3,
            lambda t, y, a: 0.2 * torch.sin(a * y),
            calculus=dxdt.Stratonovich(),
        )
        sol = dxdt.solve(
            equation,
            y,
            (0.0, 1.0),
            args=(a,),
            dt=0.02,
            solver=solver,
            controller=dxdt.PID(1e-2, 1e-2) if adaptive else None,
            driver=dxdt.Brownian(1),
            per_sample=True,
            gradient=rule,
        )
        fine = torch.tensor([0, 2])
        dy, da = torch.autograd.grad(sol.ys[-1, fine].sum(), (y, a))
        return sol.ys[-1, fine].detach(), dy, da

    (mild, dy, da), (wild, other_dy, other_da) = value(0.3), value(1e3)
    assert torch.equal(mild, wild) and torch.equal(da, other_da)
    assert torch.equal(dy[[0, 2]], other_dy[[0, 2]]) and torch.equal(other_dy[1], 0 * dy[1])
