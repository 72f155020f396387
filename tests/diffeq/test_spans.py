"""Spans, save times and states at the edges: equal ends, no samples, infinite ends, times in float32."""

import math
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

import dxdt
from dxdt import ODE, PID, SDE, Backsolve, Checkpointed, Clip, Direct, Event, Grid, Save

F64 = torch.float64
RULES = [Direct(), Checkpointed(), Checkpointed(slots=2), Backsolve()]
BOTH = [False, pytest.param(True, marks=pytest.mark.slow)]
TIGHT = {"controller": PID(1e-8, 1e-10)}


def decay(t, y):
    return -y


def faster(t, y):
    return -y * (1 + (t[:, None] if t.ndim else t))


# --- equal ends


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rows_that_begin_where_they_end(rule, compile):
    """y1 = y0, dy1/dt1 = f, dy1/dt0 = -f and dy1/dy0 = 1, beside rows that step."""
    if compile and rule in (Direct(), Checkpointed(slots=2)):
        pytest.skip("has no compiled form")
    y0 = torch.ones(3, 1, dtype=F64, requires_grad=True)
    t0, t1 = (torch.tensor(x, dtype=F64, requires_grad=True) for x in ([0.0, 0.0, 0.0], [0.0, 0.5, 1.0]))
    sol = dxdt.solve(ODE(faster), y0, (t0, t1), per_sample=True, gradient=rule, compile=compile, **TIGHT)
    sol.y1.sum().backward()
    exact = torch.exp(-t1 - t1**2 / 2).detach()
    for found, right in ((y0.grad[:, 0], exact), (t0.grad, exact), (t1.grad, -(1 + t1.detach()) * exact)):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-7)
    assert sol.stats.steps[0] == 0 and sol.status[0] is dxdt.Status.SUCCESS


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("options", [{}, {"dt": 0.1, "solver": dxdt.RK4()}, {"solver": dxdt.Kvaerno3()}])
def test_a_solve_that_begins_where_it_ends(options, rule, compile):
    y0, t1 = torch.ones(1, dtype=F64, requires_grad=True), torch.tensor(0.5, dtype=F64, requires_grad=True)
    save = Save(start=True, times=[0.5, 0.5], end=True)
    sol = dxdt.solve(ODE(faster), y0, (0.5, t1), save=save, gradient=rule, compile=compile, **options)
    assert sol.ys.shape == (4, 1) and (sol.ys == 1).all() and sol.reached.all() and sol.stats.steps == 0
    sol.y1.sum().backward()
    assert t1.grad == -1.5 and y0.grad == 1
    assert dxdt.solve(ODE(faster), y0, (0.5, 0.5), save=Save(dense=True)).path(0.5) == 1


# --- no samples


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dt": 0.1, "solver": dxdt.RK4()},
        {"save": [0.1, 0.5, 1.0]},
        {"gradient": Checkpointed()},
        {"gradient": Backsolve()},
        {"solver": dxdt.Kvaerno3()},
        {"controller": PID(norm=dxdt.max_norm)},
    ],
    ids=["default", "RK4", "times", "checkpointed", "backsolve", "implicit", "largest"],
)
@pytest.mark.filterwarnings("ignore:compile=True runs eager")
def test_an_empty_batch(options, per_sample, compile):
    net = torch.nn.Linear(2, 2)
    y0 = torch.ones(0, 2, requires_grad=True)
    sol = dxdt.solve(ODE(lambda t, y: net(y)), y0, (0.0, 1.0), per_sample=per_sample, compile=compile, **options)
    assert sol.ys.shape == (3 if "save" in options else 1, 0, 2)
    assert sol.status == ([] if per_sample else dxdt.Status.SUCCESS)
    sol.ys.sum().backward()
    assert y0.grad.shape == (0, 2) and all(p.grad is None or (p.grad == 0).all() for p in net.parameters())


def test_an_empty_batch_along_a_random_path_and_an_empty_leaf():
    sde = SDE(decay, lambda t, y: 0.1 * y)
    for per_sample in (False, True):
        sol = dxdt.solve(sde, torch.ones(0, 2), (0.0, 1.0), dt=0.1, driver=dxdt.Brownian(0), per_sample=per_sample)
        assert sol.y1.shape == (0, 2)
    state = {"a": torch.ones(2, dtype=F64), "b": torch.ones(0, dtype=F64)}
    sol = dxdt.solve(ODE(lambda t, y: {k: -v for k, v in y.items()}), state, (0.0, 1.0), **TIGHT)
    assert sol.y1["b"].shape == (0,) and (sol.y1["a"] - math.exp(-1)).abs().max() < 1e-7


# --- infinite ends


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("end", [math.inf, -math.inf, 1e14, -1e14])
def test_an_event_ends_a_solve_without_end(end, per_sample, compile):
    goal = 0.5 if end > 0 else 1.5
    y0 = torch.ones(3, 2, dtype=F64) if per_sample else torch.ones(2, dtype=F64)
    for options in (TIGHT, {"dt": 0.01, "solver": dxdt.RK4()}):
        event = Event(lambda t, y: y[..., 0] - goal)
        sol = dxdt.solve(ODE(decay), y0, (0.0, end), event=event, per_sample=per_sample, compile=compile, **options)
        assert (sol.t1 + math.log(goal)).abs().max() < 1e-7 and (sol.y1 - goal).abs().max() < 1e-7


def test_an_infinite_end_without_an_event_is_refused():
    with pytest.raises(ValueError, match="no event ends the solve"):
        dxdt.solve(ODE(decay), torch.ones(1), (0.0, math.inf))
    with pytest.raises(ValueError, match="a random path needs a finite span"):
        sde = SDE(decay, lambda t, y: y)
        dxdt.solve(sde, torch.ones(1), (0.0, math.inf), dt=0.1, driver=dxdt.Brownian(0), event=Event(lambda t, y: y[0]))


# --- times in float32, and far from zero


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("per_sample", [False, True])
def test_times_in_float32_fit_spans_in_numbers_and_the_other_way_round(per_sample, sign):
    y0 = torch.ones(2, 1, dtype=F64)
    for k in range(1, 101):
        end, times = sign * k / 100, torch.linspace(0, sign * k / 100, 11)
        for t, save in (((0.0, end), times), ((times[0], times[-1]), [sign * x * k / 1000 for x in range(11)])):
            sol = dxdt.solve(ODE(decay), y0, t, save=save, per_sample=per_sample, dt=0.1, solver=dxdt.Euler())
            assert sol.ts.shape[0] == 11
        grid = dxdt.solve(ODE(decay), y0, (0.0, end), controller=Grid(times), solver=dxdt.RK4(), per_sample=per_sample)
        assert grid.stats.steps.max() == 10 if per_sample else grid.stats.steps == 10
        path = dxdt.solve(ODE(decay), y0, (0.0, end), save=Save(dense=True), per_sample=per_sample, dt=0.1).path
        assert (path(times)[-1] - math.exp(-end)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="outside the span"):
        dxdt.solve(ODE(decay), y0, (0.0, 1.0), save=torch.tensor([0.0, 1.001]))


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("t0", "dtype"), [(1e7, torch.float32), (0.0, torch.bfloat16), (1.7e9, torch.float32)])
def test_fields_see_time_in_enough_digits(t0, dtype, per_sample, compile):
    seen = []

    def field(t, y):
        seen.append(t.dtype)
        return torch.sin(3 * t).reshape(-1, *(1,) * (y.ndim - 1)).expand_as(y)

    y0 = torch.zeros(2, 1, dtype=dtype)
    sol = dxdt.solve(ODE(field), y0, (t0, t0 + 10), per_sample=per_sample, compile=compile, controller=PID(1e-6, 1e-6))
    exact = (math.cos(3 * t0) - math.cos(3 * t0 + 30)) / 3
    assert (sol.y1.double() - exact).abs().max() < 1e-5 + 2 * torch.finfo(dtype).eps * abs(exact)
    assert sol.y1.dtype is dtype and set(seen) == {F64 if t0 else torch.float32}


@pytest.mark.parametrize("wrap", [Grid, lambda times: Clip(Grid(times), steps=[1.7e9 + 500.0])])
def test_a_grid_that_begins_elsewhere_is_refused_however_far_from_zero(wrap):
    """Half a minute off at 1.7e9 is less than float32 resolves, and no rounding where both are given in float64."""
    t0 = 1.7e9
    for shift in (30.0, 1e-3):
        with pytest.raises(ValueError, match="begin it at t0 and end it at t1"):
            times = t0 + np.linspace(shift, 1000.0, 5)
            dxdt.solve(ODE(decay), torch.ones(1, dtype=F64), (t0, t0 + 1000), controller=wrap(times), solver=dxdt.RK4())


# --- no absolute constants of time


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_a_solve_does_not_depend_on_the_unit_of_time(unit):
    field = lambda t, y: torch.stack([y[1], -y[0]]) / unit  # noqa: E731
    options = {"controller": Clip(PID(1e-6, 1e-8), steps=[0.3 * unit], jumps=[0.5 * unit]), "dt": 0.01 * unit}
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    sol = dxdt.solve(ODE(field), y0, (0.0, unit), save=Save(dense=True, steps=True), **options)
    one = dxdt.solve(
        ODE(lambda t, y: torch.stack([y[1], -y[0]])),
        y0,
        (0.0, 1.0),
        save=Save(dense=True, steps=True),
        controller=Clip(PID(1e-6, 1e-8), steps=[0.3], jumps=[0.5]),
        dt=0.01,
    )
    torch.testing.assert_close(sol.ts / unit, one.ts, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sol.path(0.77 * unit), one.path(0.77), rtol=1e-9, atol=1e-12)
    for outside in (10 * unit, -0.01 * unit, 1.001 * unit):
        with pytest.raises(ValueError, match="path asked at times outside"):
            sol.path(outside)


def test_a_stop_far_below_the_resolution_of_the_span():
    sol = dxdt.solve(
        ODE(decay), torch.ones(1), (0.0, 1.0), controller=Clip(PID(), steps=[5e-15]), save=Save(steps=True)
    )
    assert sol.ts[0] == 5e-15


# --- tolerances, parameters, errors


@pytest.mark.parametrize("compile", BOTH)
@pytest.mark.parametrize("atol", [0.0, torch.zeros(2, dtype=F64), torch.tensor([0.0, 1e-6], dtype=F64)], ids=str)
def test_no_absolute_tolerance_and_an_entry_that_stays_zero(atol, compile):
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    sol = dxdt.solve(ODE(decay), y0, (0.0, 1.0), controller=PID(1e-6, atol), compile=compile)
    assert abs(sol.y1[0] - math.exp(-1)) < 1e-5 and sol.y1[1] == 0


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("per_sample", [False, True])
def test_listed_parameters_may_have_a_graph_of_their_own(per_sample, rule):
    base = torch.full((2, 2), 0.5, dtype=F64, requires_grad=True)
    weights = [(2 * base) for _ in range(2)]
    y0 = torch.ones(3, 2, dtype=F64) if per_sample else torch.ones(2, dtype=F64)
    for gradient, w in zip((Direct(), rule), weights, strict=True):
        field = ODE(lambda t, y, w=w: -(y @ w))
        dxdt.solve(
            field, y0, (0.0, 1.0), params=[w], gradient=gradient, per_sample=per_sample, **TIGHT
        ).y1.sum().backward()
        found, base.grad = base.grad, None
        right = found if gradient is not rule else right  # noqa: F821
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-8)


def failing(_):
    dxdt.solve(ODE(lambda t, y: y**2), torch.ones(2, dtype=F64), (0.0, 3.0), save=Save(end=True, dense=True))


def test_every_exception_of_the_library_survives_a_pool():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(dxdt.SolveError) as caught:
        pool.apply_async(failing, (0,)).get(timeout=60)
    assert not caught.value.solution.ok and "the solve" in str(caught.value)


def exceptions():
    import importlib
    import pkgutil

    found = {}
    for module in pkgutil.walk_packages(dxdt.__path__, "dxdt."):
        if "__main__" in module.name or ".lab." in module.name:
            continue
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        for value in members.values():
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__.startswith("dxdt"):
                found[value.__qualname__] = value
    return found


def test_exceptions_with_arguments_of_their_own_say_how_they_are_made_again():
    classes = exceptions()
    assert "SolveError" in classes
    for cls in classes.values():
        plain = cls.__init__ in (Exception.__init__, *(b.__init__ for b in cls.__mro__ if b.__module__ == "builtins"))
        assert plain or cls.__reduce__ is not BaseException.__reduce__, cls
        if plain:
            assert str(pickle.loads(pickle.dumps(cls("said")))) == str(cls("said"))


# --- what a solve chooses, and says


@pytest.mark.parametrize(
    ("equation", "driver", "dt", "solver"),
    [
        (SDE(decay, lambda t, y: 0.1 * y), dxdt.Brownian(0), 0.1, dxdt.EulerMaruyama()),
        (SDE(decay, lambda t, y: 0.1 * y, calculus=dxdt.Stratonovich()), dxdt.Brownian(0), 0.1, dxdt.StochasticHeun()),
        (SDE(decay, lambda t, y: 0.1 * y), dxdt.Brownian(0, dxdt.SpaceTime), None, dxdt.SRIW1()),
        (
            SDE(decay, lambda t, y: 0.1 * y, calculus=dxdt.Stratonovich()),
            dxdt.Brownian(0, dxdt.SpaceTime),
            None,
            dxdt.SPaRK(),
        ),
        (
            SDE(decay, lambda t, y: torch.full_like(y, 0.1), noise=dxdt.Additive()),
            dxdt.Brownian(0, dxdt.SpaceTime),
            None,
            dxdt.ShARK(),
        ),
        (
            SDE(decay, lambda t, y: torch.full_like(y, 0.1), noise=dxdt.Additive()),
            dxdt.Brownian(0),
            None,
            dxdt.StochasticHeun(),
        ),
        (ODE(decay), None, None, dxdt.Tsit5()),
    ],
)
def test_the_method_of_a_solve_that_names_none(equation, driver, dt, solver):
    y0 = torch.ones(2, dtype=F64)
    ends = [dxdt.solve(equation, y0, (0.0, 1.0), driver=driver, dt=dt, **s).y1 for s in ({}, {"solver": solver})]
    assert torch.equal(*ends)


def test_no_method_chooses_its_steps_for_an_ito_equation_without_areas():
    with pytest.raises(ValueError, match=r"give dt, or driver=dxdt.Brownian\(seed, dxdt.SpaceTime\)"):
        dxdt.solve(SDE(decay, lambda t, y: y), torch.ones(2), (0.0, 1.0), driver=dxdt.Brownian(0))


@pytest.mark.parametrize(
    "options", [{}, {"gradient": Checkpointed()}, {"per_sample": True}, {"compile": True}], ids=str
)
def test_weights_of_another_dtype_are_named(options):
    net = torch.nn.Linear(2, 2).double()
    with pytest.raises(TypeError, match=r"weights in torch\.float64 but the state is in torch\.float32: give y0\.to"):
        dxdt.solve(ODE(lambda t, y: net(y)), torch.ones(3, 2), (0.0, 1.0), **options)
    narrow = torch.nn.Linear(3, 2)
    with pytest.raises(TypeError, match="mixes t, which is torch.float64 so far from zero"):
        field = ODE(lambda t, y: narrow(torch.cat([y, t.reshape(-1, 1).expand(3, 1)], -1)))
        dxdt.solve(field, torch.ones(3, 2), (1e7, 1e7 + 1), **options)


def test_numpy_times_and_spans():
    times = np.linspace(0, 1, 5, dtype=np.float32)
    assert dxdt.solve(ODE(decay), torch.ones(2), (0.0, 1.0), save=times).ys.shape == (5, 2)
