"""Gradients: exact for the discretisation, equal by every rule, and at the memory they claim."""

import gc
import weakref

import pytest
import torch
from torch import nn

import dxdt
from claims import ORDINARY, chosen, identify
from dxdt import Checkpointed, Direct
from memory import LiveBytes

RULES = (Direct(), Checkpointed())
ids = identify


class Net(nn.Module):
    """A small smooth field of time, state and one extra argument."""

    def __init__(self, n: int = 3, width: int = 8):
        super().__init__()
        self.lower = nn.Linear(n + 1, width)
        self.upper = nn.Linear(width, n)

    def forward(self, t, y, force=None):
        time = t.unsqueeze(-1).expand(*y.shape[:-1], 1)
        out = self.upper(torch.tanh(self.lower(torch.cat([y, time], -1)))) - 0.3 * y
        return out if force is None else out + force * torch.sin(t).unsqueeze(-1)


def problem(per_sample: bool):
    torch.manual_seed(0)
    net = Net().double()
    y0 = torch.randn(4, 3, dtype=torch.float64)
    force = torch.randn(3, dtype=torch.float64)
    if per_sample:
        t0 = torch.tensor([0.0, 0.1, -0.2, 1.0], dtype=torch.float64)
        t1 = torch.tensor([1.0, 1.5, 0.7, 0.2], dtype=torch.float64)
        times = t0 + torch.tensor([0.21, 0.55, 0.9])[:, None].double() * (t1 - t0)
    else:
        t0, t1 = torch.tensor(0.1, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
        times = torch.tensor([0.27, 0.6, 1.21], dtype=torch.float64)
    return net, [x.requires_grad_() for x in (y0, force, t0, t1, times)]


def gradients(rule, per_sample: bool, fixed: bool, solver, loss=None):
    net, inputs = problem(per_sample)
    y0, force, t0, t1, times = inputs
    options = dict(dt=0.13) if fixed else dict(controller=dxdt.PID(rtol=1e-5, atol=1e-7))
    sol = dxdt.solve(
        dxdt.ODE(net),
        y0,
        (t0, t1),
        args=(force,),
        solver=solver,
        save=dxdt.Save(start=True, times=times, end=True),
        gradient=rule,
        per_sample=per_sample,
        **options,
    )
    weights = torch.linspace(0.3, 1.7, sol.ys.numel(), dtype=torch.float64).reshape(sol.ys.shape)
    value = (sol.ys.sin() * weights).sum()
    wanted = [*inputs, *net.parameters()]
    return [value.detach(), *torch.autograd.grad(value, wanted)]


def assert_close(got, want, tol=1e-10):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all() and torch.isfinite(b).all()
        assert (a - b).abs().max() <= tol * (1 + b.abs().max())


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", chosen(ORDINARY))
def test_rules_agree_on_given_steps(solver, per_sample):
    """For y0, args, t0, t1, save times and parameters, to 1e-10."""
    direct, checkpointed = (gradients(r, per_sample, True, solver) for r in RULES)
    assert_close(checkpointed, direct)
    assert all(g.abs().max() > 1e-6 for g in direct[1:])


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", [dxdt.Tsit5(), dxdt.Bosh3(), dxdt.Heun()], ids=identify)
def test_rules_agree_on_adaptive_steps(solver, per_sample):
    """On the record of accepted steps both are exact."""
    direct, checkpointed = (gradients(r, per_sample, False, solver) for r in RULES)
    assert_close(checkpointed, direct)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_gradients_with_rejected_steps_are_those_of_the_accepted_ones(rule):
    """An adaptive solve has the gradient of the fixed solve on the times that it accepted."""
    net = Net().double()
    y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def stiff(t, y):
        return net(t, y) + torch.cos(30 * t**2)

    adaptive = dxdt.solve(
        dxdt.ODE(stiff),
        y0,
        (0.0, 2.0),
        dt=1.0,
        controller=dxdt.PID(rtol=1e-5, atol=1e-7),
        save=dxdt.Save(start=True, steps=True),
        gradient=rule,
        params=net.parameters(),
    )
    assert adaptive.stats.rejected > 3
    fixed = dxdt.solve(dxdt.ODE(stiff), y0, adaptive.ts, controller=dxdt.Grid(adaptive.ts), gradient=Direct())
    assert (adaptive.y1 - fixed.y1).abs().max() < 1e-12
    wanted = [y0, *net.parameters()]
    a, b = (torch.autograd.grad((s.y1**2).sum(), wanted) for s in (adaptive, fixed))
    assert_close(a, b)


def grid(t0, t1):
    """Steps whose inner times stay where they are when the ends move."""
    inner = [t0.detach() + c * (t1 - t0).detach() for c in (0.3, 0.65)]
    return [t0, *inner, t1]


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize(
    "solver", [dxdt.Tsit5(), pytest.param(dxdt.RK4(), marks=pytest.mark.slow), dxdt.Heun()], ids=identify
)
def test_gradcheck(solver, rule, per_sample):
    """Finite differences on a given grid, whose inner times are constants of the solve."""
    net, (y0, force, t0, t1, times) = problem(per_sample)
    y0 = y0[:2].detach().requires_grad_()
    if per_sample:
        t0, t1, times = (x[..., :2].detach().requires_grad_() for x in (t0, t1, times))
    fixed = [x.detach() for x in grid(t0, t1)[1:-1]]

    def run(y0, force, t0, t1, times):
        return dxdt.solve(
            dxdt.ODE(net),
            y0,
            (t0, t1),
            args=(force,),
            solver=solver,
            controller=dxdt.Grid(torch.stack([t0.detach(), *fixed, t1.detach()])),
            save=dxdt.Save(times=times, end=True),
            gradient=rule,
            per_sample=per_sample,
        ).ys

    assert torch.autograd.gradcheck(run, (y0, force, t0, t1, times), atol=1e-7)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_gradcheck_of_parameters(rule):
    net, (y0, force, *_) = problem(False)
    names, values = zip(*net.named_parameters(), strict=True)
    y0 = y0[:2].detach()

    def run(*values):
        def field(t, y, *values):
            given = dict(zip(names, values, strict=True))
            return torch.func.functional_call(net, given, (t, y, force.detach()))

        return dxdt.solve(dxdt.ODE(field), y0, (0, 1), args=values, dt=0.25, gradient=rule).y1

    assert torch.autograd.gradcheck(run, values)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_double_backward(rule):
    net, (y0, force, t0, t1, times) = problem(False)
    y0 = y0[:1].detach().requires_grad_()

    def run(y0, force, t0, t1):
        steps = dxdt.Grid([t0.item(), 0.7, t1.item()])
        options = {"solver": dxdt.Bosh3(), "controller": steps, "gradient": rule}
        return dxdt.solve(dxdt.ODE(net), y0, (t0, t1), args=(force,), **options).y1

    assert torch.autograd.gradgradcheck(run, (y0, force, t0, t1), atol=1e-7)


def test_double_backward_of_rules_agrees():
    results = []
    for rule in RULES:
        net, (y0, force, t0, t1, times) = problem(True)
        sol = dxdt.solve(
            dxdt.ODE(net),
            y0,
            (t0, t1),
            args=(force,),
            save=dxdt.Save(times=times, end=True),
            gradient=rule,
            per_sample=True,
        )
        wanted = [y0, force, t0, t1, times, *net.parameters()]
        first = torch.autograd.grad((sol.ys**3).sum(), wanted, create_graph=True)
        penalty = sum((g**2).sum() for g in first)
        results.append([*first, *torch.autograd.grad(penalty, wanted)])
    assert_close(*results)


def test_forward_mode_agrees():
    """torch.func.jvp, torch.func.grad and backward are one derivative."""
    net, (y0, *_) = problem(False)
    y0 = y0.detach()
    v = torch.randn_like(y0)

    def run(y0):
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), dt=0.1).y1.sin().sum()

    value, tangent = torch.func.jvp(run, (y0,), (v,))
    reverse = torch.func.grad(run)(y0)
    leaf = y0.clone().requires_grad_()
    (backward,) = torch.autograd.grad(run(leaf), leaf)
    assert_close([reverse], [backward])
    assert abs(tangent - (reverse * v).sum()) < 1e-10
    assert abs(value - run(y0)) < 1e-12


def test_forward_mode_through_parameters_and_adaptive_steps():
    net, (y0, force, *_) = problem(False)
    y0, force = y0.detach(), force.detach()
    values = {k: v.detach() for k, v in net.named_parameters()}
    tangents = {k: torch.randn_like(v) for k, v in values.items()}

    def run(values):
        def field(t, y):
            return torch.func.functional_call(net, values, (t, y, force))

        return dxdt.solve(dxdt.ODE(field), y0, (0.0, 1.0)).y1.sum()

    _, tangent = torch.func.jvp(run, (values,), (tangents,))
    gradient = torch.func.grad(run)(values)
    assert abs(tangent - sum((gradient[k] * tangents[k]).sum() for k in values)) < 1e-10


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_dense_paths_are_differentiable(rule):
    net, (y0, force, t0, t1, _) = problem(False)
    times = torch.tensor([0.2, 0.5, 1.1], dtype=torch.float64)
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.1, 1.3), args=(force,), save=dxdt.Save(dense=True), gradient=rule)
    saved = dxdt.solve(dxdt.ODE(net), y0, (0.1, 1.3), args=(force,), save=times)
    wanted = [y0, force, *net.parameters()]
    a = torch.autograd.grad(sol.path(times).sin().sum(), wanted)
    b = torch.autograd.grad(saved.ys.sin().sum(), wanted)
    assert_close(a, b)


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_the_derivative_for_the_ends_is_the_field(rule):
    """dy(t1)/dt1 = f(t1, y1): to the order of the method."""
    net, (y0, *_) = problem(False)
    t1 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, t1), dt=0.02, gradient=rule)
    seed = torch.randn_like(sol.y1)
    (slope,) = torch.autograd.grad((sol.y1 * seed).sum(), t1)
    assert abs(slope - (net(t1.detach(), sol.y1.detach()) * seed).sum()) < 1e-6


# Rows that end early or fail


def fates(y0, theta, rule, fixed=False, start=True):
    """Rows: fine, ends early, overflows, returns NaN on its way, exceeds max_steps."""
    t1 = torch.tensor([1.0, 0.2, 1.0, 1.0, 1.0], dtype=torch.float64)
    blow = torch.tensor([0.0, 0.0, 40.0, 0.0, 0.0], dtype=torch.float64)
    edge = torch.tensor([9.0, 9.0, 9.0, 0.5, 9.0], dtype=torch.float64)
    fast = torch.tensor([1.0, 1.0, 1.0, 1.0, 3e4], dtype=torch.float64)

    def field(t, y, theta):
        s = t.unsqueeze(-1)
        bent = torch.sqrt(edge - t).unsqueeze(-1) * theta
        wave = torch.cos(fast * t).unsqueeze(-1)
        return torch.tanh(y * theta) + blow[:, None] * y**3 * theta + 0.1 * bent + wave + 0 * s

    options = dict(dt=0.01, max_steps=300) if fixed else dict(max_steps=200)
    return dxdt.solve(
        dxdt.ODE(field),
        y0,
        (0.0, t1),
        args=(theta,),
        gradient=rule,
        per_sample=True,
        throw=False,
        save=dxdt.Save(times=torch.linspace(0.05, 1, 5)[:, None].double() * t1, end=True),
        **options,
    )


@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_rows_that_fail_contribute_zero(rule, fixed):
    y0 = torch.full((5, 2), 0.4, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    sol = fates(y0, theta, rule, fixed)
    fine = torch.tensor([True, True, False, False, fixed])
    assert sol.ok.tolist() == fine.tolist()
    loss = torch.where(sol.reached[..., None], sol.ys, 0.0)[:, fine].sum()
    gy, gtheta = torch.autograd.grad(loss, (y0, theta))
    assert torch.isfinite(gy).all() and torch.isfinite(gtheta).all()
    assert (gy[~fine] == 0).all() and (gy[fine] != 0).all()


@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_values_not_reached_pass_no_gradient(rule, fixed):
    """A loss over everything, NaN included, gives zero to what was not reached."""
    y0 = torch.full((5, 2), 0.4, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    sol = fates(y0, theta, rule, fixed)
    assert torch.equal(torch.isnan(sol.ys).any(-1), ~sol.reached)
    gy, gtheta = torch.autograd.grad(sol.ys, (y0, theta), torch.ones_like(sol.ys))
    seen = torch.where(sol.reached[..., None], sol.ys, 0.0).sum()
    again = torch.autograd.grad(fates_sum(y0, theta, rule, fixed), (y0, theta))
    assert torch.isfinite(seen)
    assert_close((gy, gtheta), again)


def fates_sum(y0, theta, rule, fixed):
    sol = fates(y0, theta, rule, fixed)
    return torch.where(sol.reached[..., None], sol.ys, 0.0).sum()


# What a recomputing rule must refuse


def test_captured_tensor_is_refused_under_checkpointing():
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    equation = dxdt.ODE(lambda t, y: -w.exp() * y)
    with pytest.raises(ValueError, match="requires a gradient but is not an input.*params="):
        dxdt.solve(equation, y0, (0, 1), gradient=Checkpointed())
    for options in (dict(gradient=Direct()), dict(gradient=Checkpointed(), params=[w])):
        sol = dxdt.solve(equation, y0, (0, 1), **options)
        (g,) = torch.autograd.grad(sol.y1.sum(), w)
        assert abs(g + 2 * w.exp() * torch.exp(-w.exp())) < 1e-3


def test_captured_tensor_is_refused_even_where_nothing_else_needs_a_gradient():
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient but is not an input"):
        dxdt.solve(dxdt.ODE(lambda t, y: -w * y), torch.ones(2).double(), (0, 1), gradient=Checkpointed())


def test_a_module_that_the_field_closes_over_is_found_and_counted_once():
    """Listed in params as well or not, its gradients are those of Direct."""
    net = Net().double()
    y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    equation = dxdt.ODE(lambda t, y: net(t, y))
    twice = [*net.parameters(), *net.parameters()]
    results = []
    for options in (
        dict(gradient=Direct()),
        dict(gradient=Checkpointed()),
        dict(gradient=Checkpointed(), params=net.parameters()),
        dict(gradient=Checkpointed(), params=twice),
    ):
        sol = dxdt.solve(equation, y0, (0, 1), **options)
        results.append(torch.autograd.grad(sol.y1.sum(), [y0, *net.parameters()]))
    for got in results[1:]:
        assert_close(got, results[0])


def test_dropout_is_refused_under_checkpointing():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

        def forward(self, t, y):
            return self.drop(self.linear(y))

    net = Dropping()
    y0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match="random numbers.*eval"):
        dxdt.solve(dxdt.ODE(net), y0, (0, 1), dt=0.1, gradient=Checkpointed())
    dxdt.solve(dxdt.ODE(net.eval()), y0, (0, 1), dt=0.1, gradient=Checkpointed())


# Memory


WIDTH = 64


def kept_bytes(rule, steps: int):
    """Bytes that a solve of n float64 numbers keeps for its gradient, and the peak of backward."""
    net = Net(WIDTH, WIDTH).double()
    y0 = torch.randn(1, WIDTH, dtype=torch.float64, requires_grad=True)
    live = LiveBytes()
    with live:
        sol = dxdt.solve(
            dxdt.ODE(net),
            y0,
            (0.0, 1.0),
            dt=1 / steps,
            solver=dxdt.Tsit5(),
            gradient=rule,
            max_steps=steps + 1,
        )
        loss = sol.y1.sum()
        forward = live.now
        live.restart()
        loss.backward()
        backward = live.peak
    return forward, backward


def check_growth(counts):
    state = WIDTH * 8
    print(f"\n{'rule':14}{'steps':>8}{'kept':>12}{'a step':>9}{'backward peak - kept':>22}")
    for rule in RULES:
        rows = [(n, *kept_bytes(rule, n)) for n in counts]
        for n, kept, peak in rows:
            print(f"{identify(rule):14}{n:>8}{kept:>12}{kept / n:>9.0f}{peak - kept:>22}")
        (n0, first, peak0), (n1, last, peak1) = rows[0], rows[-1]
        growth = (last - first) / (n1 - n0)
        if isinstance(rule, Direct):
            # Six stages, each with the network's input and its activations.
            assert growth >= 6 * 2 * state
        else:
            # The state and the slope that the next step begins with.
            assert growth <= 2 * state + 64
            # On the way back: one step's graph, however many steps there were.
            assert peak1 - last <= 1.1 * (peak0 - first)


def test_memory_grows_with_the_graph_or_with_the_states():
    check_growth((12, 40))


@pytest.mark.slow
def test_memory_over_many_steps():
    """The table of live bytes (run with ``-m slow -s``)."""
    check_growth((100, 1000, 10_000))


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_nothing_outlives_a_solve(rule):
    """Without the cycle collector: solution, graph and arguments die with their last name."""
    net = Net().double()
    live = LiveBytes()
    gc.collect()
    gc.disable()
    try:
        with live:
            y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
            sol = dxdt.solve(
                dxdt.ODE(net),
                y0,
                (0.0, 1.0),
                save=dxdt.Save(times=[0.5], end=True, dense=True),
                gradient=rule,
            )
            (gradient,) = torch.autograd.grad(sol.ys.sum(), y0)
            dead = [weakref.ref(x) for x in (y0, sol, sol.ys, gradient)]
            assert live.now > 0
            del y0, sol, gradient
            assert [r() for r in dead] == [None] * 4
            assert live.now == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_solve_that_is_never_differentiated_is_freed(rule):
    net = Net().double()
    live = LiveBytes()
    gc.collect()
    gc.disable()
    try:
        with live:
            y0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
            sol = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), gradient=rule)
            del sol, y0
            assert live.now == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_without_gradients_nothing_is_kept(rule):
    net = Net(WIDTH, WIDTH).double()
    y0 = torch.randn(1, WIDTH, dtype=torch.float64)
    live = LiveBytes()
    with torch.no_grad(), live:
        sol = dxdt.solve(dxdt.ODE(net), y0, (0, 1), dt=0.005, gradient=rule)
    assert live.peak < 60 * WIDTH * 8
    assert sol.stats.steps == 200
