"""Controllers around controllers, compiled: stops between known steps, and rejected ends that are met again."""

import pytest
import torch

import dxdt
from dxdt import ODE, SDE, Clip, Constant, Grid, Heun, Revisit, Save

F64 = torch.float64
Y0 = torch.linspace(-1, 1.2, 6, dtype=F64).reshape(2, 3)


def jumpy(t, y):
    return torch.where(t.reshape(t.shape + (1,) * (y.ndim - t.ndim)) > 0.4, -3 * y, torch.sin(y))


def both(equation, **options):
    """The compiled and the eager solution, which must agree in their steps."""
    found, wanted = (dxdt.solve(equation, Y0, (0.0, 1.0), compile=c, **options) for c in (True, False))
    assert torch.equal(torch.as_tensor(found.stats.steps), torch.as_tensor(wanted.stats.steps))
    return found.ys, wanted.ys


@pytest.mark.parametrize("per_sample", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_known_steps_between_stops(per_sample, traced, strict):
    """Times of the grid and of the stops are inputs, also their numbers up to a size."""
    for count in (9, 14):
        grid = torch.linspace(0, 1, count, dtype=F64) ** 1.3
        if per_sample:
            grid = torch.stack([grid, grid.square()], 1)
        controller = Clip(Grid(grid), steps=[0.15, 0.7][: count - 8], jumps=[0.4])
        options = dict(solver=Heun(), per_sample=per_sample, save=Save(steps=True))
        found, wanted = both(ODE(jumpy), controller=controller, **options)
        assert torch.allclose(found, wanted, rtol=1e-13, atol=1e-13, equal_nan=True)
    assert len(traced) == 1


def switched(t, y, theta):
    """Two rates on the two sides of a jump at 0.4; a float of neither dtype is the jump itself."""
    return torch.where(t < 0.4, theta[0], theta[1]).reshape((-1,) + (1,) * (y.dim() - 1)).squeeze(0) * y


JUMPED = [
    (dxdt.Heun(), False, None),
    pytest.param(dxdt.AsynchronousLeapfrog(), True, None, marks=pytest.mark.slow),
    pytest.param(dxdt.Heun(), True, dxdt.Backsolve(), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("solver", "per_sample", "gradient"), JUMPED)
def test_steps_see_their_own_side_of_a_jump(solver, per_sample, gradient, traced, strict):
    """No time is lost, forwards and backwards, and gradients follow, also for the ends of the span."""
    for ends in ((0.0, 1.0), (1.0, 0.4)):
        theta = torch.tensor([0.7, -0.4], dtype=F64, requires_grad=True)
        t0, t1 = (torch.tensor(x, dtype=F64, requires_grad=True) for x in ends)
        sol = dxdt.solve(
            *(ODE(switched), Y0, (t0, t1)),
            args=(theta,),
            solver=solver,
            controller=Clip(dxdt.PID(1e-6, 1e-8), jumps=[0.4]),
            gradient=gradient,
            per_sample=per_sample,
            compile=True,
        )
        before, after = (0.4 - t0, t1 - 0.4) if t1 > t0 else (t1 * 0, t1 - t0)
        exact = Y0 * torch.exp(theta[0] * before + theta[1] * after)
        got, want = (torch.autograd.grad(x.square().sum(), (theta, t0, t1)) for x in (sol.y1, exact))
        assert torch.allclose(sol.y1, exact, rtol=1e-4)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(got, want, strict=True))


NOISY = SDE(lambda t, y: -y, lambda t, y: 0.4 * torch.cos(y), dxdt.Diagonal())


def test_noise_of_known_steps_between_stops(traced, strict):
    path = dxdt.Increments(seed=3)
    controller = Clip(Constant(0.13), steps=[0.2, 0.55])
    found, wanted = both(NOISY, solver=dxdt.EulerMaruyama(), controller=controller, driver=path, save=[0.2, 0.55, 1.0])
    assert torch.allclose(found, wanted, rtol=1e-13, atol=1e-13)


def stiffening(t, y):
    return torch.sin(20 * t.reshape(t.shape + (1,) * (y.ndim - t.ndim)).square()) * 10 - y


@pytest.mark.parametrize("per_sample", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rejected_ends_are_met_again(per_sample, traced, strict):
    controller = Clip(Revisit(dxdt.PID(1e-4, 1e-5), depth=16), steps=[0.3])
    found, wanted = both(
        ODE(stiffening), solver=dxdt.Bosh3(), controller=controller, dt=0.9, per_sample=per_sample, save=[0.3, 1.0]
    )
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_adaptive_steps_along_a_path(traced, strict):
    """Noise that does not commute: the rule is wrapped at the front door.

    A path moves by the root of a time's rounding, so that long solves part.
    """
    mixing = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    noise = dxdt.General(2)
    equation = SDE(lambda t, y: -y, lambda t, y: torch.sin(y).unsqueeze(-1) * mixing, noise, dxdt.Stratonovich())
    options = dict(solver=dxdt.ReversibleHeun(), controller=dxdt.PI(0.1, 0.1), driver=dxdt.Brownian(3))
    grads = []
    for compile, gradient in ((True, None), (False, dxdt.Direct())):
        y0 = Y0.clone().requires_grad_()
        sol = dxdt.solve(equation, y0, (0.0, 1.0), dt=0.4, compile=compile, gradient=gradient, **options)
        grads.append((sol.ys.detach(), sol.stats.steps, sol.stats.rejected, *torch.autograd.grad(sol.ys.sum(), y0)))
    (found, steps, rejected, g), (wanted, *counts, w) = grads
    assert [steps, rejected] == counts and rejected > 1
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6) and torch.allclose(g, w, rtol=1e-6, atol=1e-6)


def test_what_revisit_has_no_room_for_fails(traced, strict):
    controller = Revisit(dxdt.PID(1e-9, 1e-9), depth=1)
    for compile in (True, False):
        with pytest.raises(dxdt.SolveError, match="raise its depth"):
            dxdt.solve(
                ODE(stiffening), Y0, (0.0, 1.0), solver=dxdt.Bosh3(), controller=controller, dt=0.9, compile=compile
            )
