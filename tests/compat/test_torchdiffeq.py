"""The drop-in for torchdiffeq: its contract, and defects of torchdiffeq that must not be here."""

import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn

from dxdt.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event
from dxdt.diffeq import SolveError, Status

F64 = torch.float64
SPIN = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64)
ADAPTIVE = ("dopri5", "dopri8", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")


def spin(t, y):
    return y @ SPIN


def spun(y0, t):
    return torch.stack([y0 @ torch.linalg.matrix_exp(SPIN * s) for s in t])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y):
        return self.inner(y) * torch.cos(t)


def two():
    return torch.tensor([1.0, -0.5], dtype=F64)


# --- the contract


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("reverse", [False, True])
def test_adaptive_methods_reach_their_tolerance(method, reverse):
    t = torch.linspace(0, 2, 5, dtype=F64)
    t = t.flip(0) if reverse else t
    ys = odeint(spin, two(), t, method=method, rtol=1e-6, atol=1e-8)
    # Between steps a quartic gives dopri8 less than its ends have; fehlberg2 underestimates.
    within = 1e-3 if method in ("dopri8", "fehlberg2") else 1e-4
    assert (ys - spun(two(), t - t[0])).abs().max() < within


ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


@pytest.mark.parametrize(("method", "order"), [*ORDERS.items(), ("explicit_adams", 4)])
def test_fixed_methods_have_their_order(method, order):
    t = torch.tensor([0.0, 2.0], dtype=F64)
    errors = []
    for steps in (40, 80):
        y = odeint(spin, two(), t, method=method, options={"step_size": 2 / steps})[-1]
        errors.append((y - spun(two(), t)[-1]).norm().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.35


IMPLICIT = {
    **{"implicit_euler": 1, "implicit_midpoint": 2, "trapezoid": 2, "sdirk2": 2, "trbdf2": 2},
    **{"radauIIA3": 3, "gl4": 4, "radauIIA5": 5, "gl6": 6},
}
STIFF = ("kvaerno3", "kvaerno4", "kvaerno5", "adaptive_gl4", "adaptive_gl6")


@pytest.mark.parametrize(("method", "order"), IMPLICIT.items())
def test_implicit_methods_have_their_order(method, order):
    t, errors = torch.tensor([0.0, 2.0], dtype=F64), []
    for steps in (5, 10) if order > 3 else (20, 40):
        y = odeint(spin, two(), t, method=method, options={"step_size": 2 / steps})[-1]
        errors.append((y - spun(two(), t)[-1]).norm().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.35


@pytest.mark.parametrize("method", STIFF)
def test_adaptive_implicit_methods_on_a_stiff_equation(method):
    t = torch.tensor([0.0, 3.0], dtype=F64)
    calls = []

    def f(t, y):
        calls.append(1)
        return -1e4 * (y - torch.cos(t)) - torch.sin(t)

    ys = odeint(f, torch.tensor([2.0], dtype=F64), t, method=method, rtol=1e-4, atol=1e-6)
    assert (ys[-1, 0] - torch.cos(t[-1])).abs() < 1e-3 and len(calls) < 6000


@pytest.mark.parametrize("method", [*IMPLICIT, "kvaerno5"])
def test_gradients_of_implicit_methods(method):
    net, t = Net(), torch.linspace(0, 1, 21, dtype=F64)
    found = []
    for solver, name in ((odeint, "dopri8"), (odeint, method), (odeint_adjoint, method)):
        y0 = two().requires_grad_()
        solver(net, y0, t, method=name, rtol=1e-8, atol=1e-10)[-1].square().sum().backward()
        found.append(torch.cat([y0.grad, *(p.grad.flatten() for p in net.parameters())]))
        net.zero_grad()
    exact, *others = found
    within = 0.1 if method == "implicit_euler" else 1e-2
    assert all((x - exact).norm() < within * exact.norm() for x in others)


def test_stages_of_a_field_of_time_alone_whose_times_want_a_gradient():
    t = torch.linspace(1, 2, 5, dtype=F64, requires_grad=True)
    y = odeint(lambda t, y: torch.exp(-t), torch.tensor(0.0, dtype=F64), t, method="gl4")
    (slope,) = torch.autograd.grad(y[-1], t)
    assert (slope[-1] - torch.exp(-t[-1])).abs() < 1e-5


def test_values_and_steps_are_those_of_torchdiffeq():
    peer = pytest.importorskip("torchdiffeq")
    t = torch.linspace(0, 5, 11, dtype=F64)
    calls = [0, 0]

    def counted(i):
        def f(t, y):
            calls[i] += 1
            return spin(t, y)

        return f

    ours = odeint(counted(0), two(), t, rtol=1e-6, atol=1e-8)
    theirs = peer.odeint(counted(1), two(), t, rtol=1e-6, atol=1e-8)
    assert (ours - theirs).abs().max() < 1e-5
    assert abs(calls[0] - calls[1]) <= 12
    for method in ("euler", "midpoint", "rk4"):
        ours = odeint(spin, two(), t, method=method, options={"step_size": 0.1})
        theirs = peer.odeint(spin, two(), t, method=method, options={"step_size": 0.1})
        assert (ours - theirs).abs().max() < 1e-13


def test_shapes_of_tensors_and_tuples():
    t = torch.linspace(0, 1, 3)
    assert odeint(lambda t, y: -y, torch.ones(4, 1, 2), t).shape == (3, 4, 1, 2)
    a, b = odeint(lambda t, y: (-y[0], y[1]), (torch.ones(()), torch.ones(2, 3)), t)
    assert a.shape == (3,) and b.shape == (3, 2, 3)
    assert odeint(lambda t, y: -y, torch.ones(4), t[:1]).shape == (1, 4)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": "adams"}, ValueError),
        ({"y0": [1.0]}, AssertionError),
        ({"t": torch.tensor([0, 1])}, TypeError),
        ({"t": torch.tensor([0.0, 1.0, 1.0])}, AssertionError),
        ({"t": torch.zeros(2, 2)}, AssertionError),
        ({"rtol": torch.tensor(0.1, requires_grad=True)}, AssertionError),
        ({"event_fn": lambda t, y: y[0], "t": torch.linspace(0, 1, 3)}, ValueError),
        (
            {
                "method": "rk4",
                "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t},
            },
            ValueError,
        ),
        ({"method": "rk4", "options": {"interp": "quintic"}}, ValueError),
        ({"options": {"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])}}, ValueError),
    ],
)
def test_bad_input_raises_what_torchdiffeq_raises(change, error):
    given = {"y0": torch.ones(2), "t": torch.tensor([0.0, 1.0]), **change}
    with pytest.raises(error):
        odeint(lambda t, y: -y, given.pop("y0"), given.pop("t"), **given)


def test_unknown_options_and_callbacks_warn():
    def f(t, y):
        return -y

    f.callback_accept_step = lambda t0, y0, dt: None
    t = torch.tensor([0.0, 1.0])
    with pytest.warns(UserWarning, match="^dopri5: Unexpected arguments"):
        odeint(spin, two(), t, options={"stepsize": 0.1})
    with pytest.warns(UserWarning, match="does not support callbacks"):
        odeint(f, torch.ones(1), t, method="rk4")


def test_callbacks_see_steps_in_either_direction():
    seen = []

    def f(t, y):
        return (-y[0], y[1])

    f.callback_step = lambda t0, y0, dt: seen.append((float(t0), len(y0), float(dt)))
    y0 = (torch.ones(1), torch.ones(2))
    odeint(f, y0, torch.tensor([1.0, 0.0]), method="rk4", options={"step_size": 0.25})
    assert seen == [(1.0, 2, 0.25), (0.75, 2, 0.25), (0.5, 2, 0.25), (0.25, 2, 0.25)]


def test_adjoint_needs_parameters_and_cannot_guess_options():
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="nn.Module"):
        odeint_adjoint(lambda t, y: -y, torch.ones(1), t)
    with pytest.raises(ValueError, match="infer"):
        odeint_adjoint(
            *(Net(), two(), t),
            method="rk4",
            options={"step_size": 0.1},
            adjoint_method="dopri5",
        )


def test_adjoint_gradients_are_those_of_the_solution():
    net, t = Net(), torch.linspace(0, 2, 4, dtype=F64)
    weights = torch.randn(4, 2, dtype=F64)
    grads = []
    for solver in (odeint, odeint_adjoint):
        y0, ts = two().requires_grad_(), t.clone().requires_grad_()
        loss = (solver(net, y0, ts, rtol=1e-9, atol=1e-10) * weights).sum()
        grads.append(torch.autograd.grad(loss, (y0, ts, *net.parameters())))
    for direct, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(direct, adjoint, rtol=1e-5, atol=2e-6)


def test_seminorm_needs_no_more_evaluations():
    net, calls = Net(), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for options in ({}, {"norm": "seminorm"}):
        out = odeint_adjoint(net, two(), torch.tensor([0.0, 3.0]), adjoint_options=options)
        calls.clear()
        out.sum().backward()
        counts.append(len(calls))
    assert counts[1] <= counts[0]


def test_jump_is_stepped_over():
    def run(**options):
        calls = []

        def f(t, y):
            calls.append(1)
            return -0.5 * y if t < 0.5 else y**2

        y0 = torch.tensor([0.5], dtype=F64)
        t = torch.tensor([0.0, 1.0], dtype=F64)
        return odeint(f, y0, t, rtol=1e-8, atol=1e-8, options=options)[-1], len(calls)

    (_, plain), (y, better) = run(), run(jump_t=torch.tensor([0.5]))
    middle = 0.5 * math.exp(-0.25)
    assert better < plain
    assert abs(y.item() - middle / (1 - 0.5 * middle)) < 1e-6


def test_scipy_solver_agrees_and_says_where_it_stopped():
    pytest.importorskip("scipy")
    t = torch.linspace(0, 2, 5, dtype=F64)
    for name in ("RK45", "LSODA", "Radau"):
        ys = odeint(spin, two(), t, method="scipy_solver", options={"solver": name})
        assert (ys - spun(two(), t)).abs().max() < 1e-4
    with pytest.warns(UserWarning, match="min_step"):
        ys = odeint(spin, two(), t, method="scipy_solver", options={"min_step": 1.0})
    assert ys[-1].isnan().all()


def test_dense_output_takes_any_method_and_tuples():
    t = torch.tensor([0.3, 0.9], dtype=F64)
    path = odeint_dense(lambda t, y: (spin(t, y[0]),), (two(),), 0.0, 1.0, method="tsit5")
    assert (path(t)[0] - spun(two(), t)).abs().max() < 1e-6
    assert path(torch.tensor(0.3))[0].shape == (2,)


# --- defects of torchdiffeq


def test_a_field_that_returns_nan_is_not_called_an_underflow():
    def f(t, y):
        return torch.where(t > 0.5, y * float("nan"), -y)

    with pytest.raises(AssertionError, match="not finite") as caught:
        odeint(f, two(), torch.tensor([0.0, 1.0]))
    assert isinstance(caught.value, SolveError)
    assert caught.value.solution.status is Status.NOT_FINITE


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_a_tuple_of_mixed_dtypes_keeps_them(solver):
    y0 = (torch.ones(2, requires_grad=True), torch.ones(3, dtype=F64))
    extra = {} if solver is odeint else {"adjoint_params": ()}
    a, b = solver(lambda t, y: (-y[0], -y[1]), y0, torch.tensor([0.0, 1.0]), **extra)
    assert (a.dtype, b.dtype) == (torch.float32, F64)
    (a.sum() + b.sum()).backward()
    assert y0[0].grad is not None and y0[0].grad.dtype == torch.float32


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "explicit_adams", "implicit_adams"])
def test_vmap_over_a_solve(method):
    y0 = torch.randn(3, 2, dtype=F64)
    t = torch.linspace(0, 1, 6, dtype=F64)
    mapped = torch.vmap(lambda y: odeint(spin, y, t, method=method))(y0)
    alone = torch.stack([odeint(spin, y, t, method=method) for y in y0])
    assert (mapped - alone).abs().max() < 1e-7


@pytest.mark.parametrize("method", ["rk4", "dopri5", "implicit_adams"])
def test_forward_mode_derivatives(method):
    t, v = torch.linspace(0, 1, 6, dtype=F64), torch.randn(2, dtype=F64)
    _, tangent = torch.func.jvp(lambda y: odeint(spin, y, t, method=method), (two(),), (v,))
    assert (tangent - odeint(spin, v, t, method=method)).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_derivatives_of_torch_func(method):
    t = torch.linspace(0, 1, 3, dtype=F64)

    def end(y):
        return odeint(spin, y, t, method=method)[-1]

    jacobian = torch.linalg.matrix_exp(SPIN).T
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert (transform(end)(two()) - jacobian).abs().max() < 2e-2
    assert torch.allclose(torch.func.grad(lambda y: end(y).sum())(two()), torch.func.jacrev(end)(two()).sum(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_half_precision_keep_their_clock(dtype):
    """Times that the dtype of the state cannot tell apart stay apart."""
    t = 1 + torch.linspace(0, 1e-3, 3, dtype=F64)
    seen = set()

    def f(t, y):
        seen.add(y.dtype)
        return torch.full_like(y, 1000.0)

    ys = odeint(f, torch.zeros(2, dtype=dtype), t)
    assert ys.dtype == dtype and seen == {dtype}
    assert torch.allclose(ys[:, 0].float(), torch.tensor([0.0, 0.5, 1.0]), atol=1e-2)


def test_second_derivatives_through_the_adjoint():
    net, t = Net(), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    found = []
    for solver in (odeint, odeint_adjoint):
        y0 = two().requires_grad_()
        loss = solver(net, y0, t, rtol=1e-9, atol=1e-10).square().sum()
        first = torch.autograd.grad(loss, (y0, *net.parameters()), create_graph=True)
        total = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(total, (y0, *net.parameters()), allow_unused=True))
    for direct, adjoint in zip(*found, strict=True):
        if direct is not None and adjoint is not None:
            torch.testing.assert_close(direct, adjoint, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_nothing_is_left_in_circles(solver):
    gc.collect()
    gc.disable()
    try:
        net = Net()
        out = solver(net, two().requires_grad_(), torch.tensor([0.0, 1.0]))
        out.sum().backward()
        held = weakref.ref(net.inner[0].weight), weakref.ref(out)
        del net, out
        assert [h() for h in held] == [None, None]
    finally:
        gc.enable()


def test_max_num_steps_counts_the_solve_and_not_each_interval():
    t = torch.linspace(0, 10, 200, dtype=F64)
    with pytest.raises(AssertionError, match="max_num_steps exceeded"):
        odeint(spin, two(), t, options={"max_num_steps": 20})


def test_explicit_adams_is_stable_by_default():
    def f(t, y):
        return torch.cos(t) - (y - torch.sin(t))

    errors = []
    for steps in (20, 40, 80):
        t = torch.linspace(0, 2, steps + 1, dtype=F64)
        y = odeint(f, torch.zeros(1, dtype=F64), t, method="explicit_adams")[-1]
        errors.append(abs(y.item() - math.sin(2.0)))
    assert errors[0] < 1e-4 and errors[2] < errors[1] < errors[0]


def test_adams_methods_keep_their_order_on_unequal_steps():
    errors = []
    for steps in (40, 80):
        s = torch.linspace(0, 1, steps + 1, dtype=F64)
        t = 2 * (s + 0.3 * torch.sin(3 * s) / (1 + 0.3 * math.sin(3.0))) / s.new_tensor(1.0)
        t = t / t[-1] * 2
        y = odeint(spin, two(), t, method="explicit_adams")[-1]
        errors.append((y - spun(two(), t[-1:])[0]).norm().item())
    assert math.log2(errors[0] / errors[1]) > 3.5


def test_the_corrector_of_adams_looks_at_atol():
    def iterations(atol):
        calls = []

        def f(t, y):
            calls.append(1)
            return spin(t, y)

        t = torch.linspace(0, 1, 11, dtype=F64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            odeint(f, two(), t, method="implicit_adams", rtol=0.0, atol=atol)
        return len(calls)

    assert iterations(1e-1) < iterations(1e-12)


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_parameters_of_an_event_need_not_be_in_the_state(solver):
    gravity, height, level = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (9.81, 10.0, 1.0))

    def fall(t, y):
        return y[1], -gravity

    extra = {} if solver is odeint else {"adjoint_params": (gravity,)}
    when, (_, speed) = odeint_event(
        *(fall, (height, torch.zeros_like(height)), torch.tensor(0.0, dtype=F64)),
        event_fn=lambda t, y: y[0] - level,
        odeint_interface=solver,
        **extra,
    )
    exact = (2 * (height - level) / gravity).sqrt()
    for value, truth in ((when, exact), (speed[-1], -gravity * exact)):
        torch.testing.assert_close(value, truth, rtol=1e-7, atol=1e-7)
        inputs = (gravity, height, level)
        found = torch.autograd.grad(value, inputs, retain_graph=True)
        wanted = torch.autograd.grad(truth, inputs, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_an_event_that_is_zero_at_the_start_is_the_next_one():
    def f(t, y):
        return torch.stack([y[1], -y[0]])

    t0, y0 = torch.tensor(0.0, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    when, _ = odeint_event(f, y0, t0, event_fn=lambda t, y: y[0])
    assert abs(when.item() - math.pi) < 1e-6


def test_complex_states_and_their_adjoint():
    y0 = torch.ones(2, dtype=torch.complex128, requires_grad=True)
    speed = torch.tensor(1.5, dtype=F64, requires_grad=True)
    grads = []
    for solver, extra in ((odeint, {}), (odeint_adjoint, {"adjoint_params": (speed,)})):
        t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
        y = solver(lambda t, y: 1j * speed * y, y0, t, **extra)[-1]
        assert (y - torch.exp(1j * speed)).abs().max() < 1e-6
        grads.append(torch.autograd.grad((y.real * 2 + y.imag).sum(), (y0, speed, t)))
    for direct, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(direct, adjoint, rtol=1e-5, atol=1e-6)


def test_a_small_step_in_float32_rounds_once():
    # torchdiffeq's fixed grids add y last; a sum that begins with y would round at every stage.
    t = torch.tensor([1.0, 8.0])
    y = odeint(
        *(lambda t, y: torch.full_like(y, 0.2), torch.tensor(3.2), t),
        method="rk4",
        options={"step_size": 0.01},
    )
    assert abs(y[-1].item() - 4.6) < 2e-5


def test_callbacks_of_the_adjoint_are_called_where_nothing_else_looks():
    """The backward solve saves its end alone, so that no other observer is there."""
    seen = []

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.ones(2))

        def forward(self, t, y):
            return -y * self.rate

        def callback_step_adjoint(self, t, y, dt):
            seen.append(float(t))

    for method in ("dopri5", "rk4"):
        seen.clear()
        odeint_adjoint(Field(), torch.ones(2), torch.tensor([0.0, 1.0]), method=method)[-1].sum().backward()
        assert seen and abs(seen[0]) == 1.0
