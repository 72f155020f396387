"""Gradients of compiled solves are those of the eager rule that stores the accepted steps."""

import warnings

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Bosh3, Checkpointed, Heun, Save
from dxdt.ops.tree import leaves
from nets import Swung

F64 = torch.float64


class Net(Swung):
    def by_name(self, t, y, rate):
        return self.forward(t, y, rate)


def start(*shape):
    return torch.linspace(-1, 1.2, torch.Size(shape).numel(), dtype=F64).reshape(shape)


def inputs(net):
    y0, rate = start(3, 2).requires_grad_(), torch.tensor(0.8, dtype=F64, requires_grad=True)
    return y0, rate, (y0, rate, *net.parameters())


def value(solution):
    """A number to which every saved value and the path contribute."""
    total = sum(
        (torch.nan_to_num(x) * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).reshape(x.shape)).sum()
        for x in leaves(solution.ys)
    )
    if solution.path is not None:
        for t in (0.1, 0.45, 0.8):
            total = total + solution.path(torch.tensor(t, dtype=F64)).square().sum()
    return total


def pulled(field, net, compile, **options):
    y0, rate, tensors = inputs(net)
    gradient = None if compile else Checkpointed()
    sol = dxdt.solve(ODE(field), y0, (0.0, 1.0), args=(rate,), compile=compile, gradient=gradient, **options)
    return torch.autograd.grad(value(sol), tensors), sol


LOOSE = PID(rtol=1e-3, atol=1e-4)
ADAPTIVE = dict(per_sample=True, solver=Bosh3(), controller=PID(rtol=1e-5, atol=1e-6))
EVERY = dict(solver=Heun(), dt=0.07, save=Save(steps=True, every=2, end=True))
CASES = {
    "dense-rows": dict(per_sample=True, solver=Heun(), dt=0.11, save=Save(dense=True, end=True)),
    "steps-joint": EVERY,
    "times-rows": dict(**ADAPTIVE, save=[0.0, 0.3, 0.77, 1.0]),
    "default-joint": dict(),
    "dopri8-rows": dict(per_sample=True, solver=dxdt.Dopri8(), save=[0.2, 0.9]),
    "many-chunks": dict(solver=dxdt.Euler(), dt=0.001, save=torch.linspace(0, 1, 7)),
    "end-only-rk4": dict(solver=dxdt.RK4(), dt=0.1),
    "dense-dopri5": dict(solver=dxdt.Dopri5(), save=Save(dense=True)),
}


def expect_same_gradients(field, net, **options):
    given, a = pulled(field, net, True, **options)
    wanted, b = pulled(field, net, False, **options)
    assert torch.equal(torch.as_tensor(a.stats.steps), torch.as_tensor(b.stats.steps))
    for g, w in zip(given, wanted, strict=True):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)


def some(names, quick):
    """The names of a table, all but the quick ones behind the slow marker."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", some(CASES, ["dense-rows"]))
def test_compiled_gradients(name, strict):
    net = Net()
    expect_same_gradients(net, net, **CASES[name])


@pytest.mark.parametrize("kind", some(["module", "method", "lambda", "helper"], ["method"]))
def test_kinds_of_fields(kind, traced, strict):
    """A module, a bound method, and lambdas that close over a module or call a function that does."""
    net = Net()

    def helper(t, y, rate):
        return net(t, y, rate)

    fields = {
        "module": net,
        "method": net.by_name,
        "lambda": lambda t, y, r: net(t, y, r),
        "helper": lambda t, y, r: 2 * helper(t, y, r),
    }
    expect_same_gradients(fields[kind], net, **EVERY)
    assert len(traced) == 2


def test_unused_and_frozen_inputs(traced, strict):
    """What the field does not use has a zero gradient, and what needs none gets none."""
    net = Net()
    net.outer.bias.requires_grad_(False)
    y0, rate, idle = start(3, 2).requires_grad_(), torch.tensor(0.8, dtype=F64), start(2)
    idle.requires_grad_()

    def helper(t, y, rate):
        return net(t, y, rate)

    field = ODE(lambda t, y, r, idle: helper(t, y, r))
    sol = dxdt.solve(field, y0, (0.0, 1.0), args=(rate, idle), solver=Heun(), dt=0.25, compile=True)
    sol.ys.sum().backward()
    assert net.outer.bias.grad is None and rate.grad is None
    assert idle.grad is None or not idle.grad.any()
    assert y0.grad.any() and net.inner.weight.grad.any()


def hazard(t, y, kind, rate):
    """Rows of kind 1 are NaN after t = 0.5, and so are their derivatives; rows of kind 2 blow up."""
    kind, t = kind.unsqueeze(-1), t.unsqueeze(-1)
    inside = torch.where((kind == 1) & (t > 0.5), -1 - y * y, 1 + y * y)
    bad = torch.cos(t) - rate * y * torch.sqrt(inside)
    return torch.where(kind == 2, y * y * 30 * rate + 30, bad)


HAZARDS = dict(solver=Heun(), per_sample=True, controller=LOOSE, save=[0.02, 0.3, 1.0], max_steps=120)


def pull_hazard(kinds, part, compile):
    """The statuses, and the gradients of a part of the values."""
    y0, rate = start(4, 2).requires_grad_(), torch.tensor(0.8, dtype=F64, requires_grad=True)
    gradient = None if compile else Checkpointed()
    options = dict(HAZARDS, args=(kinds, rate), compile=compile, gradient=gradient)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*samples failed")
        sol = dxdt.solve(ODE(hazard), y0, (0.0, 1.0), **options)
    return sol, torch.autograd.grad(part(sol).square().sum(), (y0, rate))


def expect_failures_apart():
    """Cotangents of a failed row's values leave no trace, but values that were reached still have gradients."""

    def of_good_rows(sol):
        return sol.ys[:, [0, 3]]

    def reached(sol):
        return torch.where(sol.reached.unsqueeze(-1), sol.ys, 0.0)

    kinds, good = torch.tensor([0, 1, 2, 0]), [0, 3]
    sol, (gy, grate) = pull_hazard(kinds, of_good_rows, True)
    assert [s.ok for s in sol.status] == [True, False, False, True]
    assert sol.reached[:, 1].tolist() == [True, True, False]
    _, (quiet_y, quiet_rate) = pull_hazard(kinds * 0, of_good_rows, True)
    assert torch.equal(gy[good], quiet_y[good]) and not gy[[1, 2]].any()
    assert torch.equal(grate, quiet_rate)
    (_, given), (_, wanted) = (pull_hazard(kinds, reached, c) for c in (True, False))
    assert given[0][1].any()
    for g, w in zip((gy, grate, *given), (*pull_hazard(kinds, of_good_rows, False)[1], *wanted), strict=True):
        assert torch.isfinite(g).all() and torch.allclose(g, w, rtol=1e-10, atol=1e-10)


def test_failing_rows(traced, strict):
    expect_failures_apart()


@pytest.mark.slow
def test_failing_rows_of_generated_code(strict):
    expect_failures_apart()


def timed(t, y):
    t = t.reshape(t.shape + (1,) * (y.ndim - t.ndim))
    return torch.sin(3 * t) * y + torch.cos(y)


def pulled_times(per_sample, ends, times, compile, save=None, **options):
    """Gradients of the state, the ends of the span and the save times, where wanted."""
    y0, rows = start(3, 2).requires_grad_(), 3 if per_sample else 1
    t0 = torch.tensor([0.0, 0.1, 0.2][:rows], dtype=F64).squeeze()
    t1 = torch.tensor([1.0, 1.2, -0.9][:rows], dtype=F64).squeeze()
    inputs = [y0, *((t0.requires_grad_(), t1.requires_grad_()) if ends else ())]
    if save is None:
        span = (t1 - t0).detach()
        save = t0.detach() + span * torch.linspace(0, 1, 5, dtype=F64).reshape((5,) + (1,) * span.dim())
        if times:
            inputs.append(save.requires_grad_())
    gradient = None if compile else Checkpointed()
    options = dict(per_sample=per_sample, compile=compile, gradient=gradient, save=save, **options)
    sol = dxdt.solve(ODE(timed), y0, (t0, t1), **options)
    return torch.autograd.grad(value(sol), inputs)


TIMES = {
    "ends-and-times-rows": (True, True, True, dict(solver=Heun(), controller=LOOSE)),
    "times-joint": (False, False, True, dict(solver=Heun(), dt=0.1)),
    "ends-saved-inside": (False, True, False, dict(solver=Bosh3())),
    "ends-every-step": (True, True, False, dict(solver=Heun(), dt=0.3, save=Save(steps=True, end=True))),
    "ends-dense": (
        False,
        True,
        False,
        dict(solver=Heun(), controller=LOOSE, save=Save(dense=True, end=True)),
    ),
    "more-than-a-chunk": (False, True, True, dict(solver=Heun(), dt=0.0035)),
    "one-step": (True, True, True, dict(solver=dxdt.RK4(), dt=5.0)),
}


def expect_same_time_gradients(name):
    per_sample, ends, times, options = TIMES[name]
    given, wanted = (pulled_times(per_sample, ends, times, c, **options) for c in (True, False))
    for g, w in zip(given, wanted, strict=True):
        assert torch.allclose(g, w, rtol=1e-10, atol=1e-10)


QUICK_TIMES = ("ends-and-times-rows", "ends-dense", "more-than-a-chunk")


@pytest.mark.parametrize("name", some(TIMES, QUICK_TIMES))
def test_gradients_of_times(name, traced, strict):
    expect_same_time_gradients(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TIMES))
def test_compiled_gradients_of_times(name, strict):
    expect_same_time_gradients(name)


def test_parameters_changed_before_the_backward_pass(traced, strict):
    """An error as in eager code, never the gradient at other parameters."""
    net = Net()
    sol = dxdt.solve(ODE(lambda t, y: net(t, y, 1.0)), start(3, 2), (0.0, 1.0), solver=Heun(), dt=0.25, compile=True)
    with torch.no_grad():
        net.inner.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.ys.sum().backward()
