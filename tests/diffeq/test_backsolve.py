"""The continuous adjoint: its gradient converges to the exact one with the tolerance."""

from collections import Counter

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Status

D = torch.float64


class Net(nn.Module):
    def __init__(self, n: int = 3, width: int = 8):
        super().__init__()
        self.lower, self.upper = nn.Linear(n, width), nn.Linear(width, n)

    def forward(self, t, y, force=0.0, extra=0.0):
        wave = torch.sin(2 * t).unsqueeze(-1)
        return self.upper(torch.tanh(self.lower(y))) - 0.3 * y + (force + extra) * wave


NAMES = ("y0", "args", "t0", "t1", "save times", "params", "parameters")


def gradients(rule, per_sample, tol):
    """Gradients by name of one loss, at one tolerance of both passes."""
    torch.manual_seed(0)
    net = Net().double()
    y0 = torch.randn(4, 3, dtype=D, requires_grad=True)
    force = torch.randn(3, dtype=D, requires_grad=True)
    extra = torch.randn(3, dtype=D, requires_grad=True)
    start = torch.tensor([0.0, 0.3, -0.2, 2.0], dtype=D)
    end = torch.tensor([1.0, 2.1, 0.4, 0.5], dtype=D)  # the last row runs backwards
    t0, t1 = ((x if per_sample else x[1]).clone().requires_grad_() for x in (start, end))
    share = torch.tensor([0.21, 0.55, 0.9], dtype=D)
    times = share[:, None] * (end - start) + start if per_sample else share * 1.8 + 0.3
    times.requires_grad_()
    equation = dxdt.ODE(_WithExtra(net, extra))
    sol = dxdt.solve(
        equation,
        y0,
        (t0, t1),
        args=(force,),
        params=(extra,),
        save=dxdt.Save(times=times, end=True),
        gradient=rule,
        per_sample=per_sample,
        controller=dxdt.PID(rtol=tol, atol=tol / 10),
    )
    weights = torch.linspace(0.3, 1.7, sol.ys.numel(), dtype=D).reshape(sol.ys.shape)
    value = (sol.ys.sin() * weights).sum()
    wanted = [y0, force, t0, t1, times, extra]
    *first, bias = torch.autograd.grad(value, [*wanted, net.upper.bias])
    return dict(zip(NAMES, [*first, bias], strict=True))


class _WithExtra(nn.Module):
    def __init__(self, net, extra):
        super().__init__()
        self.net, self.extra = net, [extra]

    def forward(self, t, y, force):
        return self.net(t, y, force, self.extra[0])


@pytest.mark.parametrize("seminorm", [True, False], ids=["seminorm", "full"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_it_converges_with_the_tolerance(per_sample, seminorm):
    exact = gradients(Direct(), per_sample, 1e-11)
    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        found = gradients(Backsolve(seminorm=seminorm), per_sample, tol)
        errors.append({k: float((found[k] - exact[k]).abs().max()) for k in NAMES})
    print("\n" + "".join(f"{k:>12}" for k in NAMES))
    for row in errors:
        print("".join(f"{row[k]:>12.1e}" for k in NAMES))
    for k in NAMES:
        size = 1 + float(exact[k].abs().max())
        assert exact[k].abs().max() > 1e-3
        assert errors[0][k] < 3e-2 * size
        assert errors[1][k] < 3e-4 * size
        assert errors[2][k] < 3e-6 * size


def test_it_uses_the_solver_and_the_controller_that_it_is_given():
    """A coarse forward solve with a fine backward one, and the other way round."""
    net = Net().double()
    y0 = torch.randn(3, dtype=D, requires_grad=True)

    def gradient(rule):
        y1 = dxdt.solve(dxdt.ODE(net), y0, (0, 1), dt=1 / 64, gradient=rule).y1
        return torch.autograd.grad(y1.sum(), y0)[0]

    exact = gradient(Direct())
    fine, coarse = (
        (gradient(Backsolve(solver, controller)) - exact).abs().max()
        for solver, controller in (
            (dxdt.Tsit5(), dxdt.PID(rtol=1e-9, atol=1e-11)),
            (dxdt.Euler(), dxdt.Constant(0.25)),
        )
    )
    assert fine < 1e-8 < 1e-4 < coarse


# How often the field is evaluated on the way back


class Steep(nn.Module):
    """A field whose parameters have integrals that vary faster than the state."""

    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(3, 32), nn.Linear(32, 2)

    def forward(self, t, y):
        time = t.expand(*y.shape[:-1], 1)
        return self.upper(torch.tanh(3 * self.lower(torch.cat([y, time], -1))))


def backward_evaluations(seminorm, tol):
    torch.manual_seed(0)
    net = Steep().double()
    y0 = torch.randn(16, 2, dtype=D, requires_grad=True)
    counts = Counter()
    sol = dxdt.solve(
        dxdt.ODE(net),
        y0,
        (0.0, 10.0),
        gradient=Backsolve(seminorm=seminorm, counts=counts),
        controller=dxdt.PID(rtol=tol, atol=tol / 1000),
    )
    assert not counts
    sol.y1.square().sum().backward()
    return sol.stats.evaluations, counts["evaluations"]


def test_the_seminorm_needs_fewer_backward_evaluations():
    print(f"\n{'tolerance':>10}{'forward':>9}{'full':>7}{'seminorm':>10}{'fewer':>7}")
    for tol in (1e-3, 1e-4, 1e-5):
        forward, full = backward_evaluations(False, tol)
        _, semi = backward_evaluations(True, tol)
        print(f"{tol:>10.0e}{forward:>9}{full:>7}{semi:>10}{1 - semi / full:>7.0%}")
        assert semi < 0.75 * full


@pytest.mark.parametrize("seminorm", [True, False], ids=["seminorm", "full"])
def test_tolerances_for_each_entry(seminorm):
    """Tolerances given as tensors hold for the entries of the adjoint too."""
    net = Net().double()
    y0 = torch.randn(3, dtype=D, requires_grad=True)

    def gradient(rule):
        controller = dxdt.PID(rtol=1e-8, atol=torch.tensor([1e-8, 1e-9, 1e-10]))
        y1 = dxdt.solve(dxdt.ODE(net), y0, (0, 1), controller=controller, gradient=rule).y1
        return torch.autograd.grad(y1.sum(), [y0, *net.parameters()])

    for a, b in zip(gradient(Backsolve(seminorm=seminorm)), gradient(Direct()), strict=True):
        assert (a - b).abs().max() < 1e-6


# What it must refuse, and rows that fail


def test_double_backward_is_refused_with_a_remedy():
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    sol = dxdt.solve(dxdt.ODE(lambda t, y: -(y**3)), y0, (0, 1), gradient=Backsolve())
    with pytest.raises(RuntimeError, match="Backsolve has no second.*Checkpointed"):
        (g,) = torch.autograd.grad(sol.y1.sum(), y0, create_graph=True)
        torch.autograd.grad(g.sum(), y0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(save=dxdt.Save(dense=True)), "dense output.*Checkpointed"),
        (dict(event=dxdt.Event(lambda t, y: y.sum())), "events.*Checkpointed"),
        (dict(controller=dxdt.Grid([0.0, 0.2, 1.0])), "no steps for its backward solve.*controller"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    options = {"t": (0.0, 1.0), **options}
    with pytest.raises(ValueError, match=message):
        dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, gradient=Backsolve(), **options)


def test_a_captured_tensor_is_refused():
    w = torch.tensor(0.5, dtype=D, requires_grad=True)
    y0 = torch.ones(2, dtype=D)
    with pytest.raises(ValueError, match="not an input of the solve"):
        dxdt.solve(dxdt.ODE(lambda t, y: -w * y), y0, (0, 1), gradient=Backsolve())


def test_without_gradients_it_only_solves():
    y0 = torch.ones(2, dtype=D)
    a = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0, 1), gradient=Backsolve())
    b = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0, 1))
    assert torch.equal(a.y1, b.y1) and not a.y1.requires_grad


@pytest.mark.parametrize("seminorm", [True, False], ids=["seminorm", "full"])
def test_rows_that_fail_contribute_zero(seminorm):
    y0 = torch.full((3, 2), 0.4, dtype=D, requires_grad=True)
    theta = torch.tensor([0.5, 0.8], dtype=D, requires_grad=True)
    blow = torch.tensor([0.0, 40.0, 0.0], dtype=D)[:, None]
    tight = dxdt.PID(rtol=1e-8, atol=1e-10)

    def run(rule, rows):
        def field(t, y, theta):
            return torch.tanh(y * theta) + blow[rows] * y**3 * theta

        sol = dxdt.solve(
            dxdt.ODE(field),
            y0[rows],
            (0.0, torch.tensor([1.0, 1.0, 0.4], dtype=D)[rows]),
            args=(theta,),
            gradient=rule,
            per_sample=True,
            throw=False,
            controller=tight,
            max_steps=200,
        )
        return sol, torch.autograd.grad(torch.where(sol.reached[..., None], sol.ys, 0.0).sum(), (y0, theta))

    sol, found = run(Backsolve(seminorm=seminorm), [0, 1, 2])
    assert [s.ok for s in sol.status] == [True, False, True]
    assert sol.status[2] is Status.SUCCESS
    _, exact = run(Direct(), [0, 2])
    for a, b in zip(found, exact, strict=True):
        assert torch.isfinite(a).all() and (a - b).abs().max() < 1e-6
    assert (found[0][1] == 0).all()


def test_memory_is_freed_and_backward_can_be_repeated():
    net = Net().double()
    y0 = torch.randn(2, 3, dtype=D, requires_grad=True)
    sol = dxdt.solve(dxdt.ODE(net), y0, (0, 1), gradient=Backsolve())
    first = torch.autograd.grad(sol.y1.sum(), [y0, *net.parameters()], retain_graph=True)
    again = torch.autograd.grad(sol.y1.sum(), [y0, *net.parameters()])
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_a_grid_of_steps_between_saved_times(per_sample):
    """The part of the grid that lies in each interval, which a saved time may cut."""
    net = Net().double()
    y0 = torch.linspace(-1, 1, 6, dtype=D).reshape(2, 3).requires_grad_()
    grid = dxdt.Grid(torch.linspace(1, 0, 41, dtype=D))

    def gradient(rule):
        save = torch.tensor([0.21, 0.5, 1.0], dtype=D)
        options = dict(per_sample=per_sample, controller=dxdt.PID(rtol=1e-9, atol=1e-10))
        ys = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), save=save, gradient=rule, **options).ys
        return torch.autograd.grad(ys.sin().sum(), [y0, *net.parameters()])

    for a, b in zip(gradient(Backsolve(dxdt.RK4(), grid)), gradient(Direct()), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_a_backward_solve_that_fails_is_an_error():
    y0 = torch.ones(3, dtype=D, requires_grad=True)
    sol = dxdt.solve(dxdt.ODE(Net().double()), y0, (0.0, 3.0), gradient=Backsolve(max_steps=2))
    with pytest.raises(RuntimeError, match="backward solve of Backsolve failed: took max_steps.*Checkpointed"):
        sol.y1.sum().backward()


def test_rows_that_wait_keep_their_step():
    """Rows that reach a saved time before others begin the next interval with the step that they had."""
    counts, rate = Counter(), torch.tensor([0.1, 20.0], dtype=D)[:, None]
    y0 = torch.ones(2, 1, dtype=D, requires_grad=True)
    times = torch.linspace(0, 1, 11, dtype=D)
    sol = dxdt.solve(
        *(dxdt.ODE(lambda t, y: torch.sin(rate * t.unsqueeze(-1)) * y), y0, (0.0, 1.0)),
        **dict(save=times, per_sample=True, gradient=Backsolve(counts=counts)),
    )
    sol.ys.sum().backward()
    assert counts["evaluations"] < 11 * 6 * 4


def test_complex_arguments_keep_their_imaginary_parts():
    w = torch.tensor(0.7 + 0.2j, dtype=torch.complex128, requires_grad=True)
    z0 = torch.tensor([1.0 + 0.3j], dtype=torch.complex128, requires_grad=True)

    def gradient(rule):
        field = dxdt.ODE(lambda t, z, w: w * z * 1j)
        options = dict(args=(w,), controller=dxdt.PID(rtol=1e-9, atol=1e-11))
        return torch.autograd.grad(dxdt.solve(field, z0, (0, 1), gradient=rule, **options).y1.abs().sum(), (z0, w))

    for a, b in zip(gradient(Backsolve()), gradient(Direct()), strict=True):
        assert (a - b).abs().max() < 1e-7


def test_complex_and_tree_states():
    """Leaves of several kinds: the adjoint acts on real rows."""
    w = torch.tensor(0.7, dtype=D, requires_grad=True)
    z0 = torch.tensor([1.0 + 0.3j], dtype=torch.complex128, requires_grad=True)
    x0 = torch.tensor([0.5, -0.2], dtype=D, requires_grad=True)

    def field(t, y, w):
        return {"z": y["z"] * (1j * w - 0.1), "x": torch.tanh(y["x"]) * y["z"].real * w}

    def run(rule):
        sol = dxdt.solve(
            dxdt.ODE(field),
            {"z": z0, "x": x0},
            (0, 1),
            args=(w,),
            gradient=rule,
            controller=dxdt.PID(rtol=1e-9, atol=1e-11),
        )
        return torch.autograd.grad(sol.y1["x"].sum() + sol.y1["z"].abs().sum(), (z0, x0, w))

    for a, b in zip(run(Backsolve()), run(Checkpointed()), strict=True):
        assert (a - b).abs().max() < 1e-7
