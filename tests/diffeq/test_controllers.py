"""Controllers: where steps begin and end, which are accepted, and how often the field is asked."""

import numpy as np
import pytest
import torch

import dxdt
from claims import ORDINARY, PAIRS, chosen, identify
from dxdt import PI, PID, Clip, Constant, Grid, I, Save, Status
from oracles import GENERIC, LINEAR

DOUBLE = torch.float64


def decay(t, y):
    return -y


def wave(t, y):
    """Slow, then fast, then slow."""
    return torch.cos(30 * torch.exp(-8 * (t - 1) ** 2) * t).unsqueeze(-1) * torch.ones_like(y)


def step_times(controller, field=decay, span=(0.0, 2.0), y0=None, **options):
    y0 = torch.ones(1, dtype=DOUBLE) if y0 is None else y0
    save = Save(start=True, steps=True)
    return dxdt.solve(dxdt.ODE(field), y0, span, controller=controller, save=save, **options)


# Constant


def test_constant_steps_do_not_accumulate_rounding():
    """Thirty thousand steps are exactly that many, and the last ends at t1."""
    n = 30_000
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: torch.ones_like(y)),
        torch.zeros(1, dtype=DOUBLE),
        (0.0, 1.0),
        dt=1 / n,
        solver=dxdt.Euler(),
        max_steps=n,
    )
    assert sol.stats.steps == n and float(sol.t1) == 1.0
    assert abs(sol.y1 - 1) < 1e-9


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("dt", [0.1, 0.3, 1 / 3, 0.7, 1e-3, 5.0])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (-3.3, 0.7), (1e6, 1e6 + 1)])
def test_constant_steps_end_where_they_should(span, dt, per_sample):
    y0 = torch.ones(2, dtype=DOUBLE)
    sol = step_times(Constant(dt), span=span, y0=y0, solver=dxdt.Euler(), per_sample=per_sample)
    ts = (sol.ts[:, 1] if per_sample else sol.ts).numpy()
    length = abs(span[1] - span[0])
    n = int(np.ceil(length / dt - 1e-6))
    sign = np.sign(span[1] - span[0])
    wanted = np.append(span[0] + sign * dt * np.arange(n), span[1])
    assert len(ts) == n + 1
    assert np.abs(ts - wanted).max() <= 1e-15 * max(1, abs(span[0])) * 4
    assert ts[0] == span[0] and ts[-1] == span[1]


def test_dt_alone_means_constant_steps_and_may_differ_by_sample():
    y0 = torch.ones(3, dtype=DOUBLE)
    dt = torch.tensor([0.5, 0.25, 0.125], dtype=DOUBLE)
    sol = dxdt.solve(dxdt.ODE(decay), y0, (0.0, 1.0), dt=dt, per_sample=True)
    assert sol.stats.steps.tolist() == [2, 4, 8]
    assert dxdt.solve(dxdt.ODE(decay), y0, (0.0, 1.0), dt=-0.25).stats.steps == 4


# Grid


@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_grid(back):
    times = [0.0, 0.1, 0.35, 1.2, 2.0]
    times = times[::-1] if back else times
    sol = dxdt.solve(
        dxdt.ODE(GENERIC.field),
        GENERIC.at(times[0]),
        times,
        controller=Grid(times),
    )
    assert sol.ts.tolist() == times and sol.stats.steps == len(times) - 1
    again = step_times(
        Grid(torch.tensor(times, dtype=DOUBLE)),
        GENERIC.field,
        (times[0], times[-1]),
        GENERIC.at(times[0]),
    )
    assert torch.equal(again.ys, sol.ys) and again.ts.tolist() == times


def test_grid_per_sample():
    times = torch.tensor([[0.0, 1.0], [0.1, 0.7], [0.5, -0.2], [2.0, -0.3]], dtype=DOUBLE)
    y0 = torch.ones(2, 1, dtype=DOUBLE)
    sol = dxdt.solve(dxdt.ODE(decay), y0, times, controller=Grid(times), per_sample=True)
    assert (sol.ts - times).abs().max() < 1e-15
    for i in range(2):
        solo = dxdt.solve(dxdt.ODE(decay), y0[i], times[:, i], controller=Grid(times[:, i]))
        assert abs(solo.y1 - sol.y1[i]) < 1e-14
    shared = dxdt.solve(dxdt.ODE(decay), y0, (0.0, 1.0), controller=Grid([0.0, 0.5, 1.0]), per_sample=True)
    assert shared.stats.steps.tolist() == [2, 2]


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0, float("nan")]])
def test_bad_grids(times):
    with pytest.raises(ValueError, match="Grid has times"):
        Grid(times)


# PID


@pytest.mark.parametrize("make", [PID, PI, I], ids=["PID", "PI", "I"])
def test_adaptive_controllers_meet_the_tolerance(make):
    sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), controller=make(rtol=1e-7, atol=1e-7))
    assert (sol.y1 - GENERIC.end).abs().max() < 1e-6
    custom = PID(1e-7, 1e-7, p=0.2, i=0.5, d=0.05)
    sol = dxdt.solve(dxdt.ODE(GENERIC.field), GENERIC.y0, (0, 2), controller=custom)
    assert (sol.y1 - GENERIC.end).abs().max() < 1e-6


def test_i_is_pid_by_default():
    a, b = (step_times(c, wave) for c in (I(1e-6, 1e-6), PID(1e-6, 1e-6)))
    assert torch.equal(a.ts, b.ts)
    assert not torch.equal(a.ts, step_times(PI(1e-6, 1e-6), wave).ts[: len(a.ts)])


def test_dtmax():
    ts = step_times(PID(dtmax=0.07)).ts
    assert ts.diff().max() <= 0.07 + 1e-15
    assert step_times(PID()).ts.diff().max() > 0.07


def test_dtmin_fails_and_says_so():
    sol = step_times(PID(1e-10, 1e-10, dtmin=0.05), wave, throw=False)
    assert sol.status is Status.STEP_TOO_SMALL
    with pytest.raises(dxdt.SolveError, match="step below the smallest allowed"):
        step_times(PID(1e-10, 1e-10, dtmin=0.05), wave)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_force_dtmin_goes_on(per_sample):
    controller = PID(1e-10, 1e-10, dtmin=0.05, force_dtmin=True)
    sol = step_times(controller, wave, y0=torch.ones(1, 1, dtype=DOUBLE), per_sample=per_sample)
    assert sol.status == ([Status.SUCCESS] if per_sample else Status.SUCCESS)
    steps = sol.ts.flatten().diff()
    assert (steps[:-1] >= 0.05 - 1e-12).all() and abs(steps.min() - 0.05) < 0.05
    assert sol.ts.flatten()[-1] == 2


def test_force_dtmin_gives_up_on_values_that_are_not_finite():
    controller = PID(dtmin=0.05, force_dtmin=True)
    sol = step_times(controller, lambda t, y: torch.sqrt(0.7 - t) * y, throw=False, max_steps=500)
    assert sol.status is Status.NOT_FINITE
    assert sol.stats.steps < 100


def test_factors_bound_the_change_of_a_step():
    steps = step_times(PID(1e-5, 1e-5, factor_max=1.5), wave, dt=1e-4).ts.diff()
    assert (steps[1:] / steps[:-1]).max() <= 1.5 + 1e-9
    assert abs(steps[1] / steps[0] - 1.5) < 1e-9
    sol = step_times(PID(1e-9, 1e-9, factor_min=0.9), wave, dt=1.0)
    assert sol.stats.rejected > 10


def test_safety():
    few, many = (step_times(PID(1e-6, 1e-6, safety=s), wave) for s in (0.95, 0.5))
    assert many.stats.accepted > 1.3 * few.stats.accepted
    assert many.stats.rejected <= few.stats.rejected


def test_the_first_step_is_ours_to_choose():
    assert abs(step_times(PID(), dt=1e-3).ts[1] - 1e-3) < 1e-15
    assert step_times(PID(), dt=100.0).ts[-1] == 2.0
    backwards = step_times(PID(), span=(2.0, 0.0), dt=1e-3)
    assert abs(backwards.ts[1] - 1.999) < 1e-15


@pytest.mark.parametrize(
    "options",
    [
        dict(rtol=-1e-3),
        dict(atol=float("nan")),
        dict(rtol=float("inf")),
        dict(rtol=0, atol=0),
        dict(rtol=0.0, atol=0.0),
        dict(safety=0.0),
        dict(safety=1.5),
        dict(factor_min=1.5),
        dict(factor_max=0.5),
        dict(dtmin=1.0, dtmax=0.1),
        dict(dtmin=-1.0),
        dict(dtmax=0.0),
        dict(force_dtmin=True),
        dict(rtol={"a": -1.0}),
        dict(rtol=torch.tensor(-1.0)),
        dict(rtol={"a": 0.0}, atol=0.0),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=r"PID.*"):
        controller = PID(**options)
        # Tolerances that are trees are read when the state is known.
        dxdt.solve(
            dxdt.ODE(lambda t, y: {"a": -y["a"]}),
            {"a": torch.ones(2)},
            (0, 1),
            controller=controller,
        )


# Clip


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)], ids=str)
@pytest.mark.parametrize("inner", [PID(1e-5, 1e-5), Constant(0.3)], ids=["PID", "Constant"])
def test_steps_end_at_given_times(inner, span, per_sample):
    stops = [0.1234, 0.5, 0.50001, 1.7]
    sol = step_times(Clip(inner, steps=stops), span=span, y0=torch.ones(2, dtype=DOUBLE), per_sample=per_sample)
    ts = sol.ts[:, 0].tolist() if per_sample else sol.ts.tolist()
    assert all(min(abs(t - s) for t in ts) < 1e-14 for s in stops)
    assert ts[-1] == span[1]
    tol = 1e-4
    assert (sol.ys[-1] - torch.exp(torch.tensor(span[0] - span[1]))).abs().max() < 20 * tol


@pytest.mark.parametrize("inner", [dxdt.Grid([0.0, 0.5, 1.0, 2.0]), Constant(0.5)], ids=["Grid", "Constant"])
def test_steps_that_were_known_are_kept_between_given_times(inner):
    """A stop divides a step and moves none of the others."""
    nodes = [0.5, 1.0, 2.0] if isinstance(inner, dxdt.Grid) else [0.5, 1.0, 1.5, 2.0]
    stops = [0.1, 0.2, 0.3, 1.0, 1.9]
    sol = step_times(Clip(inner, steps=stops), span=(0.0, 2.0), y0=torch.ones(2, dtype=DOUBLE))
    assert torch.allclose(sol.ts[1:], torch.tensor(sorted({*nodes, *stops}), dtype=DOUBLE), rtol=1e-13, atol=0)


def test_clipping_does_not_keep_steps_short():
    """After a stop the controller goes on with the step it had wanted."""
    free = step_times(PID(1e-6, 1e-6)).stats.accepted
    clipped = step_times(Clip(PID(1e-6, 1e-6), steps=[1.0, 1.0001])).stats.accepted
    assert clipped <= free + 4


def switch(t, y):
    """Discontinuous at 1 and 1.5."""
    return torch.where(t < 1, 1.0, torch.where(t < 1.5, -3.0, 10.0)).to(y) * torch.ones_like(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", chosen(PAIRS))
def test_jumps(solver, dtype):
    """With the jumps known the error is rounding; without it is that of the tolerance or worse."""
    y0, exact = torch.zeros(1, dtype=dtype), 1 - 1.5 + 5
    known = Clip(PID(1e-3, 1e-3), jumps=[1.0, 1.5])
    errors, steps = [], []
    for controller in (known, PID(1e-3, 1e-3)):
        sol = dxdt.solve(
            dxdt.ODE(switch),
            y0,
            (0.0, 2.0),
            solver=solver,
            controller=controller,
            max_steps=1000,
            throw=False,
        )
        # A method with memory of the slope may never get over a jump that it does not know.
        errors.append(abs(float(sol.y1) - exact) if sol.ok else float("inf"))
        steps.append(sol.stats.steps)
    # Rosenbrock coefficients above one hundred multiply rounding.
    assert errors[0] < (5e-5 if solver.facts.implicit else 2e-5)
    assert errors[0] < errors[1] / 10 and steps[0] < steps[1]


def test_jumps_backwards_and_per_sample():
    y0 = torch.zeros(2, dtype=DOUBLE)
    controller = Clip(PID(1e-3, 1e-3), jumps=[1.0, 1.5])
    sol = dxdt.solve(
        dxdt.ODE(switch),
        y0,
        (torch.tensor([0.0, 2.0]).double(), torch.tensor([2.0, 0.0]).double()),
        controller=controller,
        per_sample=True,
    )
    assert (sol.y1 - torch.tensor([4.5, -4.5], dtype=DOUBLE)).abs().max() < 1e-5


def test_the_slope_is_taken_again_after_a_jump():
    """First same as last would carry the old slope across."""
    seen = []

    def field(t, y):
        seen.append(float(t))
        return switch(t, y)

    dxdt.solve(
        dxdt.ODE(field),
        torch.zeros(1, dtype=DOUBLE),
        (0.0, 2.0),
        controller=Clip(PID(1e-3, 1e-3), jumps=[1.0]),
    )
    seen = np.array(seen)
    near = seen[abs(seen - 1) < 1e-5]
    assert (near < 1).any() and (near > 1).any() and not (near == 1).any()


@pytest.mark.parametrize("rule", [dxdt.Direct(), dxdt.Checkpointed()], ids=identify)
def test_gradients_across_jumps(rule):
    theta = torch.tensor([0.7, -0.4], dtype=DOUBLE, requires_grad=True)
    y0 = torch.tensor([1.3], dtype=DOUBLE, requires_grad=True)

    def field(t, y, theta):
        return torch.where(t < 1, theta[0], theta[1]) * y

    sol = dxdt.solve(
        dxdt.ODE(field),
        y0,
        (0.0, 2.0),
        args=(theta,),
        controller=Clip(PID(1e-8, 1e-8), jumps=[1.0]),
        gradient=rule,
    )
    exact = y0 * torch.exp(theta.sum())
    assert (sol.y1 - exact).abs() < 1e-5
    got = torch.autograd.grad(sol.y1.sum(), (y0, theta))
    want = torch.autograd.grad(exact.sum(), (y0, theta))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(got, want, strict=True))


def test_bad_clip():
    with pytest.raises(ValueError, match="Clip.steps is not a vector of finite times"):
        Clip(PID(), steps=[0.0, float("nan")])
    with pytest.raises(ValueError, match="Clip.jumps"):
        Clip(PID(), jumps=torch.zeros(2, 2))


# Evaluation counts


# Those that iterate take as many evaluations as they need.
COUNTED = [s for s in ORDINARY if not hasattr(s, "newton")]


def count(solver, **options):
    calls = []

    def field(t, y):
        calls.append(1)
        return LINEAR.field(t, y)

    sol = dxdt.solve(dxdt.ODE(field), LINEAR.y0, (0.0, 2.0), solver=solver, **options)
    assert sol.stats.evaluations == len(calls)
    return sol


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", COUNTED, ids=identify)
def test_evaluations_of_fixed_steps(solver, per_sample):
    """``stages`` a step, and at most one before the first."""
    counts = [count(solver, dt=2 / n, per_sample=per_sample).stats.evaluations for n in (10, 20)]
    assert counts[1] - counts[0] == 10 * solver.facts.stages
    if not solver.facts.known_grid:
        assert counts[0] - 10 * solver.facts.stages in (0, 1)


@pytest.mark.parametrize("solver", [s for s in COUNTED if s in PAIRS], ids=identify)
def test_evaluations_of_adaptive_steps(solver):
    """Rejected steps cost as much as accepted ones; an automatic first step costs up to two."""
    given = count(solver, dt=1.0, controller=PID(1e-6, 1e-6))
    assert given.stats.rejected > 0
    assert given.stats.evaluations - given.stats.steps * solver.facts.stages in (0, 1)
    free = count(solver, controller=PID(1e-6, 1e-6))
    assert free.stats.evaluations - free.stats.steps * solver.facts.stages == 2


@pytest.mark.parametrize("solver", [s for s in COUNTED if not s.facts.known_grid], ids=identify)
def test_evaluations_of_dense_output(solver):
    """Free, but for one evaluation before the first step."""
    for save in (Save(dense=True), [0.3, 0.77, 1.9]):
        sol = count(solver, dt=0.1, save=save)
        extra = sol.stats.evaluations - 20 * solver.facts.stages
        assert extra in (0, 1)
