"""What a solution keeps: start, end, times, steps, functions, dense paths."""

import numpy as np
import pytest
import torch

import dxdt
from claims import ORDINARY, chosen, identify
from dxdt import Save
from oracles import GENERIC, LINEAR, SWELL

TIGHT = dxdt.PID(1e-9, 1e-9)


def go(save, problem=LINEAR, **options):
    options = dict(controller=TIGHT) | options if "dt" not in options else options
    return dxdt.solve(dxdt.ODE(problem.field), problem.y0, (problem.t0, problem.t1), save=save, **options)


def test_the_default_is_the_end():
    sol = go(None)
    assert sol.ts.tolist() == [2.0] and sol.ys.shape == (1, 3)
    assert sol.reached.tolist() == [True]
    assert (sol.y1 - LINEAR.end).abs().max() < 1e-7


def test_order_is_start_middle_end():
    sol = go(Save(start=True, times=[0.5, 1.5], end=True))
    assert sol.ts.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert torch.equal(sol.ys[0], LINEAR.y0)
    assert (sol.ys - LINEAR.exact(sol.ts)).abs().max() < 1e-7


@pytest.mark.parametrize("problem", [LINEAR, SWELL.reversed()], ids=identify)
def test_times_at_both_ends_and_repeated(problem):
    t0, t1 = problem.t0, problem.t1
    middle = 0.3 * t0 + 0.7 * t1
    sol = go([t0, t0, middle, middle, t1, t1], problem)
    assert sol.ts.tolist() == [t0, t0, middle, middle, t1, t1]
    for i in (0, 2, 4):
        assert torch.equal(sol.ys[i], sol.ys[i + 1])
    assert torch.equal(sol.ys[0], problem.y0)
    assert torch.equal(sol.ys[-1], go(None, problem).y1)
    assert (sol.ys - problem.exact(sol.ts)).abs().max() < 1e-7
    assert sol.reached.all()


def test_asking_for_times_does_not_change_the_steps():
    few, many = go(None), go(torch.linspace(0, 2, 301))
    assert few.stats.accepted == many.stats.accepted
    assert torch.equal(few.y1, many.y1)
    assert (many.ys - LINEAR.exact(many.ts)).abs().max() < 1e-7


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", chosen(ORDINARY))
def test_a_time_at_the_end_of_a_step_is_the_value_of_the_step(solver, per_sample):
    y0 = LINEAR.y0[None]
    options = dict(dt=0.125, solver=solver, per_sample=per_sample)
    equation = dxdt.ODE(LINEAR.field)
    steps = dxdt.solve(equation, y0, (0.0, 1.0), save=Save(steps=True), **options)
    times = steps.ts[:, 0] if per_sample else steps.ts
    assert times.tolist() == [i / 8 for i in range(1, 9)]
    saved = dxdt.solve(equation, y0, (0.0, 1.0), save=times, **options)
    # Solvers without a slope at hand take one more where they must interpolate: the same values.
    assert torch.equal(saved.ys, steps.ys)


def test_steps_and_every():
    steps = go(Save(start=True, steps=True, end=True))
    n = steps.stats.accepted
    assert len(steps.ts) == n + 2 and steps.ts[-1] == steps.ts[-2] == 2.0
    assert (steps.ts[1:-1].diff() > 0).all()
    third = go(Save(steps=True, every=3))
    assert torch.equal(third.ts, steps.ts[1:-1][2::3])
    assert torch.equal(third.ys, steps.ys[1:-1][2::3])
    none = go(Save(steps=True, every=10_000))
    assert none.ts.shape == (0,) and none.ys.shape == (0, 3)


def test_steps_per_sample():
    """Samples that took fewer steps hold NaN and are not reached."""
    y0 = LINEAR.y0.expand(3, 3)
    ends = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    sol = dxdt.solve(
        dxdt.ODE(LINEAR.field),
        y0,
        (0.0, ends),
        dt=0.25,
        save=Save(steps=True),
        per_sample=True,
    )
    assert sol.ts.shape == (8, 3) and sol.ys.shape == (8, 3, 3)
    assert sol.reached.sum(0).tolist() == [8, 2, 4]
    assert torch.equal(sol.ys.isnan().all(-1), ~sol.reached)
    assert torch.equal(sol.ts.isnan(), ~sol.reached)
    for i in range(3):
        mine = sol.reached[:, i]
        assert (sol.ys[mine, i] - LINEAR.exact(sol.ts[mine, i])).abs().max() < 1e-4


def test_times_per_sample():
    y0 = GENERIC.y0.expand(3, 3)
    t0 = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    t1 = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)
    times = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None] * t1
    sol = dxdt.solve(
        dxdt.ODE(GENERIC.field),
        y0,
        (t0, t1),
        controller=TIGHT,
        save=Save(times=times, end=True),
        per_sample=True,
    )
    assert torch.equal(sol.ts[:-1], times) and torch.equal(sol.ts[-1], t1)
    for i in range(3):
        assert (sol.ys[:, i] - GENERIC.exact(sol.ts[:, i])).abs().max() < 1e-7
    assert torch.equal(sol.ys[-2], sol.ys[-1])
    common = dxdt.solve(dxdt.ODE(GENERIC.field), y0, (0.0, 2.0), controller=TIGHT, save=[0.5, 1.0], per_sample=True)
    assert common.ts.shape == (2, 3)
    assert (common.ys[:, 0] - GENERIC.exact(common.ts[:, 0])).abs().max() < 1e-7


def test_function_of_the_state():
    def fn(t, y, factor):
        assert t.dtype == torch.float64
        return {"norm": factor * y.norm(), "t": t}

    sol = dxdt.solve(
        dxdt.ODE(lambda t, y, factor: LINEAR.field(t, y)),
        LINEAR.y0,
        (0, 2),
        args=(3.0,),
        save=Save(start=True, times=[0.5], end=True, fn=fn),
        controller=TIGHT,
    )
    assert sol.ys["t"].tolist() == [0.0, 0.5, 2.0]
    wanted = 3 * LINEAR.exact(sol.ts).norm(dim=1)
    assert (sol.ys["norm"] - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("problem", [GENERIC, GENERIC.reversed()], ids=identify)
def test_dense_paths(problem):
    sol = go(Save(start=True, dense=True, end=True), problem)
    path, times = sol.path, torch.linspace(0.0, 2.0, 41, dtype=torch.float64)
    assert float(path.t0) == problem.t0 and float(path.t1) == problem.t1
    exact = problem.exact(times)
    assert (path(times) - exact).abs().max() < 1e-6
    assert (path.derivative(times) - problem.field(times, exact)).abs().max() < 1e-4
    assert path(0.3).shape == (3,)
    assert torch.equal(path(problem.t0), problem.y0)
    assert (path(problem.t1) - sol.y1).abs().max() < 1e-14
    with pytest.raises(ValueError, match="path asked at times outside"):
        path(2.1)
    saved = go(times if problem.t0 == 0 else times.flip(0), problem).ys
    saved = saved if problem.t0 == 0 else saved.flip(0)
    assert (path(times) - saved).abs().max() < 1e-13


def test_dense_paths_per_sample():
    y0 = GENERIC.y0.expand(3, 3)
    t1 = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)
    sol = dxdt.solve(
        dxdt.ODE(GENERIC.field),
        y0,
        (0.0, t1),
        controller=TIGHT,
        save=Save(dense=True),
        per_sample=True,
    )
    assert sol.ys is None and len(sol.ts) == 0
    assert torch.equal(sol.path.t1, t1)
    times = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * t1
    values = sol.path(times)
    for i in range(3):
        assert (values[:, i] - GENERIC.exact(times[:, i])).abs().max() < 1e-6
    repr(sol)


def test_what_a_failed_joint_solve_had_reached():
    with pytest.raises(dxdt.SolveError) as caught:
        dxdt.solve(
            dxdt.ODE(lambda t, y: y * y),
            torch.ones(1, dtype=torch.float64),
            (0.0, 2.0),
            save=Save(start=True, times=[0.5, 0.9, 1.5], end=True, dense=True),
        )
    sol = caught.value.solution
    assert sol.reached.tolist() == [True, True, True, False, False]
    assert sol.ys[3:].isnan().all() and (sol.ys[1, 0] - 2).abs() < 1e-3
    assert 0.99 < float(sol.t1) < 1.01
    assert (sol.path(0.5) - sol.ys[1]).abs().max() < 1e-12


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_statistics(per_sample):
    calls = []

    def field(t, y):
        calls.append(1)
        return torch.cos(10 * t**2).unsqueeze(-1) * y

    sol = dxdt.solve(
        dxdt.ODE(field),
        torch.ones(2, 1).double(),
        (0.0, 2.0),
        dt=1.0,
        controller=dxdt.PID(),
        per_sample=per_sample,
    )
    stats = sol.stats
    assert stats.evaluations == len(calls)
    assert np.all(np.asarray(stats.accepted + stats.rejected == stats.steps))
    assert np.all(np.asarray(stats.rejected) > 0)


def test_progress():
    class Meter:
        def __init__(self):
            self.seen, self.closed = [], 0

        def update(self, fraction):
            self.seen.append(fraction)

        def close(self):
            self.closed += 1

    meter = Meter()
    sol = go(None, progress=meter)
    assert len(meter.seen) == sol.stats.steps and meter.closed == 1
    assert meter.seen == sorted(meter.seen) and meter.seen[-1] == 1
    failing = Meter()
    dxdt.solve(dxdt.ODE(lambda t, y: y * y), torch.ones(1), (0, 2), progress=failing, throw=False)
    assert failing.closed == 1


def test_text_progress(capsys):
    go(None, progress=True)
    assert "100.0 %" in capsys.readouterr().err


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("t1", [2.0, -1.0])
def test_the_end_is_known_where_the_path_alone_is_kept(per_sample, t1):
    y0 = {"a": torch.ones(3, 2, dtype=torch.float64), "b": torch.full((3,), 2.0, dtype=torch.float64)}
    equation = dxdt.ODE(lambda t, y: {"a": -y["a"], "b": y["b"]})
    both = dxdt.solve(equation, y0, (0.0, t1), save=dxdt.Save(end=True, dense=True), per_sample=per_sample)
    path = dxdt.solve(equation, y0, (0.0, t1), save=dxdt.Save(dense=True), per_sample=per_sample)
    for name in y0:
        assert path.y1[name].shape == y0[name].shape
        assert torch.allclose(path.y1[name], both.y1[name], rtol=1e-12)
