"""Penalties against direct quadrature of the same integrands."""

import numpy as np
import pytest
import torch
from torch import nn

import dxdt
from claims import one_step
from dxdt.diffeq.problem.density import augment as follow_density
from dxdt.models.regularise import Jacobian, Kinetic, augment, random_end, step_terms
from dxdt.ops.autodiff import Exact, Hutchinson

D = torch.float64
TIGHT = dxdt.PID(rtol=1e-9, atol=1e-11)


class Net(nn.Module):
    def __init__(self, n=2, width=8):
        super().__init__()
        self.lower, self.upper = nn.Linear(n, width), nn.Linear(width, n)

    def forward(self, t, y, force=0.0):
        wave = torch.sin(2 * t).reshape(-1, *[1] * (y.dim() - 1))
        return self.upper(torch.tanh(2 * self.lower(y))) - 0.2 * y + force * wave


def parts(batch=5):
    torch.manual_seed(3)
    net = Net().double()
    return net, torch.randn(batch, 2, dtype=D, requires_grad=True)


def quadrature(net, y0, density, t1=1.5):
    """int density(t, y(t)) dt along the solution, by Gauss-Legendre on its dense output."""
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, t1), controller=TIGHT, save=dxdt.Save(dense=True))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (torch.tensor(x, dtype=D) * t1 / 2 for x in (nodes + 1, weights))
    return sum(w * density(t, sol.path(t)) for t, w in zip(nodes, weights, strict=True))


@pytest.mark.parametrize("probe", [Hutchinson(3, seed=4), Hutchinson(seed=1), Exact()], ids=repr)
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_integrals_equal_quadrature(probe, per_sample):
    net, y0 = parts()
    equation, state = augment(dxdt.ODE(net), y0, Kinetic(), Jacobian(), probe=probe)
    y1, q = dxdt.solve(equation, state, (0.0, 1.5), controller=TIGHT, per_sample=per_sample).y1
    e = probe.directions(y0)

    def kinetic(t, y):
        return net(t, y).square().sum(-1)

    def jacobian(t, y):
        full = torch.func.vmap(torch.func.jacrev(lambda z: net(t, z[None])[0]))(y)
        return torch.einsum("pbi,bij->pbj", e, full).square().sum(-1).mean(0)

    assert (q[:, 0] - quadrature(net, y0, kinetic)).abs().max() < 1e-7
    assert (q[:, 1] - quadrature(net, y0, jacobian)).abs().max() < 1e-7
    plain = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.5), controller=TIGHT).y1
    assert (y1 - plain).abs().max() < 1e-8


def test_the_density_shares_the_pass():
    """The same divergence as the density's own equation, from one transposed pass."""
    net, y0 = parts()
    probe = Hutchinson(2, seed=7)
    both, state = augment(dxdt.ODE(net), y0, Kinetic(), Jacobian(), probe=probe, density=True)
    _, change, q = dxdt.solve(both, state, (0.0, 1.0), controller=TIGHT).y1
    alone, start = follow_density(dxdt.ODE(net), y0, probe)
    want = dxdt.solve(alone, start, (0.0, 1.0), controller=TIGHT).y1[1]
    assert change.shape == want.shape == (5, 2) and (change - want).abs().max() < 1e-8
    assert q.shape == (5, 2)


@pytest.mark.parametrize("rule", [dxdt.Direct(), dxdt.Checkpointed(), dxdt.Backsolve()], ids=repr)
def test_gradients_of_penalties(rule):
    """By every rule, and against finite differences of the quadrature."""
    net, y0 = parts(3)

    def penalty(rule):
        equation, state = augment(dxdt.ODE(net), y0, Kinetic(), Jacobian(), probe=Exact())
        sol = dxdt.solve(equation, state, (0.0, 1.5), controller=TIGHT, gradient=rule)
        return sol.y1[1].sum()

    wanted = [y0, *net.parameters()]
    found = torch.autograd.grad(penalty(rule), wanted)
    v = torch.randn_like(y0)
    with torch.no_grad():
        start, step = y0.clone(), 1e-5
        y0.copy_(start + step * v)
        ahead = penalty(None)
        y0.copy_(start - step * v)
        behind = penalty(None)
        y0.copy_(start)
    assert abs((ahead - behind) / (2 * step) - (found[0] * v).sum()) < 1e-5
    for a, b in zip(found, torch.autograd.grad(penalty(None), wanted), strict=True):
        assert (a - b).abs().max() < 1e-6 * (1 + b.abs().max())


def test_training_with_the_kinetic_term_slows_solutions():
    """Same map, shorter way: the penalty falls while the fit stays."""
    torch.manual_seed(0)
    y0 = torch.randn(32, 2)
    goal = y0 + torch.tensor([1.0, 0.0])

    def train(weight):
        torch.manual_seed(1)
        net = Net(width=16)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(60):
            equation, state = augment(dxdt.ODE(net), y0, Kinetic())
            y1, q = dxdt.solve(equation, state, (0.0, 1.0), dt=0.25, solver=dxdt.RK4()).y1
            loss = (y1 - goal).square().mean() + weight * q.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float((y1 - goal).square().mean().detach()), float(q.mean().detach())

    _, free = train(0.0)
    fit, slow = train(0.02)
    assert slow < free and fit < 0.1


def test_random_ends():
    ends = torch.tensor([random_end((0.0, 1.0), 0.25)[1] for _ in range(400)])
    assert ends.min() >= 0.75 and ends.max() <= 1.25
    assert abs(ends.mean() - 1) < 0.03 and abs(ends.var() - 0.25**2 / 3) < 0.005
    generator = torch.Generator().manual_seed(0)
    t0, each = random_end((2.0, 1.0), 0.5, size=5, generator=generator)
    assert t0 == 2.0 and each.shape == (5,) and (each < 2).all() and len(each.unique()) == 5
    again = random_end((2.0, 1.0), 0.5, size=5, generator=torch.Generator().manual_seed(0))[1]
    assert torch.equal(each, again)
    net, y0 = parts()
    sol = dxdt.solve(dxdt.ODE(net), y0, (t0, each), per_sample=True)
    assert torch.equal(sol.t1, each)
    assert random_end((0.0, 1.0), 0.0)[1] == 1.0


STEPS = dxdt.Save(start=True, steps=True)


@pytest.mark.parametrize(
    "solver",
    [dxdt.Tsit5(), dxdt.Dopri5(), dxdt.Bosh3(), dxdt.Heun()],
    ids=lambda s: type(s).__name__,
)
def test_step_terms_are_the_solver_s_estimates(solver):
    net, y0 = parts()
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.5), solver=solver, save=STEPS)
    terms = step_terms(dxdt.ODE(net), sol, solver=solver)
    error = 0.0
    for t, end, y in zip(sol.ts[:-1], sol.ts[1:], sol.ys[:-1], strict=True):
        step, _ = one_step(solver, net, float(t), float(end - t), y.detach())
        error += step.error.norm() * (end - t)
    assert abs(terms.error - error) < 1e-10 * (1 + error)
    assert all(
        g is not None and torch.isfinite(g).all()
        for term in terms
        for g in torch.autograd.grad(term, [y0, *net.parameters()], retain_graph=True)
    )


def test_stiffness_is_the_modulus_of_the_eigenvalue():
    """On y' = lambda y every step estimates |lambda|."""
    rate = torch.tensor(-7.0, dtype=D, requires_grad=True)
    equation = dxdt.ODE(lambda t, y: rate * y)
    for per_sample in (False, True):
        sol = dxdt.solve(equation, torch.ones(3, 1, dtype=D), (0.0, 1.0), save=STEPS, per_sample=per_sample)
        terms = step_terms(equation, sol, per_sample=per_sample)
        assert (terms.stiffness / sol.stats.accepted - 7).abs().max() < 1e-8
        (slope,) = torch.autograd.grad(terms.stiffness.sum(), rate)
        count = sol.stats.accepted.sum() if per_sample else sol.stats.accepted
        assert abs(slope + float(count)) < 1e-7


def test_step_terms_of_samples_with_different_steps():
    net, y0 = parts()
    ends = torch.tensor([0.3, 1.0, 2.0, 0.7, 1.5], dtype=D)
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, ends), save=STEPS, per_sample=True)
    terms = step_terms(dxdt.ODE(net), sol, per_sample=True)
    assert terms.error.shape == (5,) and torch.isfinite(terms.error).all()
    for i in range(5):
        one = dxdt.solve(dxdt.ODE(net), y0[i : i + 1], (0.0, ends[i : i + 1]), save=STEPS, per_sample=True)
        alone = step_terms(dxdt.ODE(net), one, per_sample=True)
        assert abs(alone.error[0] - terms.error[i]) < 1e-10
        assert abs(alone.stiffness[0] - terms.stiffness[i]) < 1e-8
    (g,) = torch.autograd.grad(terms.error.sum() + terms.stiffness.sum(), y0)
    assert torch.isfinite(g).all()


def test_bad_input():
    net, y0 = parts()
    with pytest.raises(ValueError, match="no terms.*Kinetic"):
        augment(dxdt.ODE(net), y0)
    with pytest.raises(ValueError, match="no batch axis"):
        augment(dxdt.ODE(net), y0[0, 0], Kinetic())
    with pytest.raises(ValueError, match="SDE has noise"):
        augment(dxdt.SDE(net, net), y0, Kinetic())
    with pytest.raises(ValueError, match="reaches beyond t0"):
        random_end((0.0, 1.0), 1.0)
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0))
    with pytest.raises(ValueError, match="steps=True"):
        step_terms(dxdt.ODE(net), sol)
    with pytest.raises(ValueError, match="no error estimate"):
        step_terms(dxdt.ODE(net), sol, solver=dxdt.RK4())
