"""Isolation: at a fixed batch size and position a row depends by no bit on its neighbours.

Only values are compared between batches of one size, because kernels may change last bits with
the size. Solo rows are compared to 1e-10 on a problem that is not chaotic.
"""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dxdt
from claims import ORDINARY, PAIRS, crossed, identify
from dxdt import Checkpointed, Direct, Status
from dxdt.diffeq.control.controller import Controller, Decision

RULES = (Direct(), Checkpointed())
BATCH, ROW = 6, 2


class Shared(nn.Module):
    """A network shared by the rows, and terms that each row's arguments switch on.

    blow  overflows in finite time; edge  gives NaN from this time on; fast  needs many steps.
    """

    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(3, 16), nn.Linear(16, 3)

    def forward(self, t, y, rows):
        f = self.upper(torch.tanh(self.lower(y))) - 0.5 * y
        f = f + (rows["blow"] * y.T**3).T
        f = f + torch.sqrt(rows["edge"] - t).unsqueeze(-1) * y
        return f + torch.cos(rows["fast"] * t).unsqueeze(-1)


@dataclass(frozen=True)
class Batch:
    y: Tensor
    blow: Tensor
    edge: Tensor
    fast: Tensor
    t0: Tensor
    t1: Tensor
    times: Tensor


def calm() -> Batch:
    g = torch.Generator().manual_seed(0)
    t0, t1 = torch.zeros(BATCH).double(), torch.ones(BATCH).double()
    return Batch(
        torch.randn(BATCH, 3, generator=g, dtype=torch.float64),
        torch.zeros(BATCH).double(),
        torch.full((BATCH,), 5.0).double(),
        torch.ones(BATCH).double(),
        t0,
        t1,
        torch.tensor([0.2, 0.5, 0.5, 0.9])[:, None].double() * (t1 - t0) + t0,
    )


def others(value: Tensor, new) -> Tensor:
    """``value`` with the entries of all rows but one replaced."""
    keep = torch.arange(BATCH) == ROW
    shape = (-1,) + (1,) * (value.dim() - 1)
    return torch.where(keep.reshape(shape), value, torch.as_tensor(new, dtype=value.dtype))


def _spans(b: Batch) -> Batch:
    t0 = others(b.t0, torch.linspace(-1, 0.5, BATCH))
    t1 = others(b.t1, torch.tensor([3.0, 0.6, 0.0, -2.0, 0.51, 1.7]))
    times = t0 + torch.tensor([0.0, 0.3, 0.31, 1.0])[:, None].double() * (t1 - t0)
    keep = torch.arange(BATCH) == ROW
    return replace(b, t0=t0, t1=t1, times=torch.where(keep, b.times, times))


NEIGHBOURS = {
    "calm": lambda b: b,
    "others": lambda b: replace(b, y=others(b.y, torch.linspace(-2, 2, BATCH)[:, None])),
    "overflow": lambda b: replace(b, blow=others(b.blow, 50.0)),
    "overflow at once": lambda b: replace(b, blow=others(b.blow, 1e300), y=others(b.y, 1e10 * torch.ones(BATCH, 1))),
    "overflow later": lambda b: replace(b, blow=others(b.blow, torch.linspace(0, 3, BATCH))),
    "NaN later": lambda b: replace(b, edge=others(b.edge, torch.linspace(0.05, 0.9, BATCH))),
    "NaN at once": lambda b: replace(b, edge=others(b.edge, -1.0)),
    "too many steps": lambda b: replace(b, fast=others(b.fast, 1e5)),
    "spans": _spans,
    "everything": lambda b: replace(
        _spans(b),
        blow=others(b.blow, torch.tensor([50.0, 0, 0, 0, 0, 0])),
        edge=others(b.edge, torch.tensor([5.0, 0.55, 5, 5, 5, -1.0])),
        fast=others(b.fast, torch.tensor([1.0, 1, 1, 3e4, 1, 1])),
    ),
}


def run(batch: Batch, rule, fixed: bool, solver=None):
    """Row ROW's values, counts, and gradients of a loss on it for its y0 and the parameters."""
    torch.manual_seed(1)
    net = Shared().double()
    low = solver is not None and solver.facts.order < 3
    controller = None if fixed else dxdt.PID(1e-2, 1e-3) if low else dxdt.PID()
    y0 = batch.y.clone().requires_grad_()
    rows = {k: getattr(batch, k) for k in ("blow", "edge", "fast")}
    sol = dxdt.solve(
        dxdt.ODE(net),
        y0,
        (batch.t0, batch.t1),
        args=(rows,),
        solver=solver,
        dt=0.05 if fixed else None,
        controller=controller,
        save=dxdt.Save(start=True, times=batch.times, end=True),
        gradient=rule,
        per_sample=True,
        max_steps=100,
        throw=False,
    )
    mine = sol.ys[:, ROW]
    wanted = [y0, *net.parameters()]
    gradients = torch.autograd.grad(mine.sin().sum(), wanted, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, wanted, strict=True)]
    outputs = dict(
        ys=mine.detach(),
        ts=sol.ts[:, ROW],
        reached=sol.reached[:, ROW],
        counts=torch.stack([sol.stats.steps[ROW], sol.stats.accepted[ROW], sol.stats.rejected[ROW]]),
        t1=sol.t1[ROW],
        y0=gradients[0][ROW],
    )
    outputs.update({f"parameter {i}": g for i, g in enumerate(gradients[1:])})
    return outputs, sol, gradients[0]


def assert_same_bits(got, want):
    for name, value in want.items():
        assert torch.equal(got[name], value), f"{name}: {got[name]} is not {value}"


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("rule", RULES, ids=identify)
def test_a_row_does_not_see_its_neighbours(rule, fixed, neighbours):
    """Values, counts and gradients, by the bit."""
    want, calm_sol, _ = run(calm(), rule, fixed)
    assert calm_sol.ok.all()
    got, sol, gy = run(NEIGHBOURS[neighbours](calm()), rule, fixed)
    assert sol.status[ROW] is Status.SUCCESS
    assert_same_bits(got, want)
    keep = torch.arange(BATCH) == ROW
    assert (gy[~keep] == 0).all()


HAZARDS = ["overflow", "NaN at once", "too many steps", "everything"]


@pytest.mark.parametrize(("solver", "neighbours"), crossed(PAIRS, HAZARDS, HAZARDS[-1]))
def test_isolation_holds_for_every_pair(solver, neighbours):
    want, _, _ = run(calm(), Direct(), False, solver)
    got, _, _ = run(NEIGHBOURS[neighbours](calm()), Direct(), False, solver)
    assert_same_bits(got, want)


FIXED_HAZARDS = ["overflow", "NaN later", "spans"]


@pytest.mark.parametrize(("solver", "neighbours"), crossed(ORDINARY, FIXED_HAZARDS, FIXED_HAZARDS[1]))
def test_isolation_holds_for_every_solver_on_fixed_steps(solver, neighbours):
    want, _, _ = run(calm(), Checkpointed(), True, solver)
    got, _, _ = run(NEIGHBOURS[neighbours](calm()), Checkpointed(), True, solver)
    assert_same_bits(got, want)


@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
def test_a_failing_row_is_isolated_too(fixed):
    """Where and when a row fails does not depend on the others either."""
    doomed = calm()
    doomed = replace(doomed, blow=torch.where(torch.arange(BATCH) == ROW, 30.0, doomed.blow))
    want, sol, _ = run(doomed, Direct(), fixed)
    assert sol.status[ROW] in (Status.NOT_FINITE, Status.STEP_TOO_SMALL, Status.MAX_STEPS)
    for name in ("others", "overflow", "NaN later", "everything"):
        got, other, _ = run(NEIGHBOURS[name](doomed), Direct(), fixed)
        assert other.status[ROW] is sol.status[ROW]
        for key in ("ts", "reached", "counts", "t1", "y0"):
            assert torch.equal(got[key], want[key])
        assert torch.equal(got["ys"].isnan(), want["ys"].isnan())
        assert torch.equal(got["ys"].nan_to_num(), want["ys"].nan_to_num())


@pytest.mark.parametrize("rule", RULES, ids=identify)
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
def test_solo_rows_agree(rule, fixed):
    """A row solved alone, per sample or jointly, has the same steps and values to 1e-10."""
    batch = NEIGHBOURS["spans"](calm())
    torch.manual_seed(1)
    net = Shared().double()
    options = dict(dt=0.05) if fixed else dict(controller=dxdt.PID(rtol=1e-6, atol=1e-8))

    def alone(rows, t0, t1, y, times, per_sample):
        return dxdt.solve(
            dxdt.ODE(net),
            y,
            (t0, t1),
            args=(rows,),
            gradient=rule,
            save=dxdt.Save(times=times, end=True),
            per_sample=per_sample,
            **options,
        )

    rows = {k: getattr(batch, k) for k in ("blow", "edge", "fast")}
    together = alone(rows, batch.t0, batch.t1, batch.y, batch.times, True)
    for i in range(BATCH):
        one = {k: v[i : i + 1] for k, v in rows.items()}
        s = slice(i, i + 1)
        a = alone(one, batch.t0[s], batch.t1[s], batch.y[s], batch.times[:, s], True)
        b = alone(one, batch.t0[i], batch.t1[i], batch.y[s], batch.times[:, i], False)
        for solo in (a, b):
            assert (solo.ys[:, 0] - together.ys[:, i]).abs().max() < 1e-10
        assert int(a.stats.steps[0]) == b.stats.steps == int(together.stats.steps[i])


# What became of the rows


def test_statuses_warning_and_what_was_reached():
    batch = calm()
    batch = replace(
        batch,
        blow=torch.tensor([0.0, 50, 0, 0, 0, 0]).double(),
        edge=torch.tensor([5.0, 5, 5, 0.6, 5, -1]).double(),
        fast=torch.tensor([1.0, 1, 1, 1, 1e5, 1]).double(),
    )
    torch.manual_seed(1)
    rows = {k: getattr(batch, k) for k in ("blow", "edge", "fast")}
    with pytest.warns(RuntimeWarning, match=r"4 of 6 samples failed; sample 1 .*at t = .*step"):
        sol = dxdt.solve(
            dxdt.ODE(Shared().double()),
            batch.y,
            (batch.t0, batch.t1),
            args=(rows,),
            save=dxdt.Save(start=True, times=batch.times, end=True),
            per_sample=True,
            max_steps=400,
        )
    ok, failed = Status.SUCCESS, (Status.NOT_FINITE, Status.STEP_TOO_SMALL)
    assert sol.status[0] is ok and sol.status[2] is ok
    assert sol.status[1] in failed and sol.status[3] in failed and sol.status[5] in failed
    assert sol.status[4] is Status.MAX_STEPS
    assert sol.ok.tolist() == [True, False, True, False, False, False]
    assert int(sol.stats.steps[4]) == 400
    assert (sol.stats.accepted + sol.stats.rejected == sol.stats.steps).all()
    # start, 0.2, 0.5, 0.5, 0.9, end
    assert sol.ts[1:5].equal(batch.times)
    assert sol.reached[0].all()
    assert sol.reached[:, 0].all() and sol.reached[:, 2].all()
    assert sol.reached[:, 3].tolist() == [True, True, True, True, False, False]
    assert sol.reached[:, 5].tolist() == [True] + [False] * 5
    assert torch.equal(sol.ys.isnan().any(-1), ~sol.reached)
    assert torch.equal(sol.ys.isnan().all(-1), ~sol.reached)
    assert (sol.t1[[0, 2]] == 1).all()
    assert 0.5 <= float(sol.t1[3]) <= 0.6 + 1e-7 and float(sol.t1[5]) == 0
    for i in (1, 3, 4, 5):
        reached = sol.ts[:5, i] <= sol.t1[i]
        assert torch.equal(sol.reached[:5, i], reached)


def test_throw():
    y0 = torch.tensor([[1.0], [3.0]])
    equation = dxdt.ODE(lambda t, y: y**2)  # blows up at t = 1 / y0
    span = (0.0, 0.6)
    with pytest.raises(dxdt.SolveError, match="1 of 2 samples failed; sample 1") as caught:
        dxdt.solve(equation, y0, span, per_sample=True, throw=True)
    solution = caught.value.solution
    assert solution.ok.tolist() == [True, False]
    assert abs(solution.y1[0] - 2.5) < 1e-2 and solution.y1[1].isnan()
    with pytest.warns(RuntimeWarning, match="sample 1"):
        dxdt.solve(equation, y0, span, per_sample=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dxdt.solve(equation, y0, span, per_sample=True, throw=False)
        dxdt.solve(equation, y0[:1], span, per_sample=True)
        joint = dxdt.solve(equation, y0, span, throw=False)
    assert not joint.ok and joint.y1.isnan().all()
    with pytest.raises(dxdt.SolveError, match="the solve .*at t = 0.3"):
        dxdt.solve(equation, y0, span)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_max_steps_is_exact(per_sample):
    y0 = torch.ones(2, 1, dtype=torch.float64)
    equation = dxdt.ODE(lambda t, y: -y)
    enough = dxdt.solve(equation, y0, (0.0, 1.0), dt=0.125, max_steps=8, per_sample=per_sample, throw=False)
    assert torch.as_tensor(enough.ok).all()
    short = dxdt.solve(equation, y0, (0.0, 1.0), dt=0.125, max_steps=7, per_sample=per_sample, throw=False)
    status = short.status if per_sample else [short.status]
    assert all(s is Status.MAX_STEPS for s in status)
    assert (torch.as_tensor(short.stats.steps) == 7).all()
    assert short.t1.eq(0.875).all()
    assert "raise max_steps" in Status.MAX_STEPS.value


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_a_controller_that_does_not_lead_to_the_end_fails(value, per_sample):
    """Instead of looping; the rows that it serves well go on."""

    @final
    @dataclass(frozen=True)
    class Stuck(Controller):
        adaptive: ClassVar[bool] = False

        def start(self, span, dt, order):
            return span.clock.full(span.t0, 0.25), (span.clock.count(span.t0),)

        def decide(self, span, error, t, dt, state):
            (count,) = state
            count = count + 1
            bad = (count >= 2) & (span.t1 > 0.9)
            step = span.clock.where(bad, value, span.clock.full(span.t0, 0.25))
            return Decision(error <= 1, step, (count,), ~(error <= 1))

    y0 = torch.ones(2, 1, dtype=torch.float64)
    t1 = torch.tensor([1.0, 0.75], dtype=torch.float64) if per_sample else 1.0
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: -y),
        y0,
        (0.0, t1),
        controller=Stuck(),
        per_sample=per_sample,
        throw=False,
    )
    status = sol.status if per_sample else [sol.status]
    assert status[0] is Status.NO_STEP
    assert int(np.atleast_1d(np.asarray(sol.stats.steps))[0]) == 2
    if per_sample:
        assert status[1] is Status.SUCCESS


def test_rows_may_go_both_ways():
    y0 = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    t1 = torch.tensor([1.0, -1.0], dtype=torch.float64)
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: y),
        y0,
        (0.0, t1),
        controller=dxdt.PID(1e-9, 1e-9),
        save=dxdt.Save(times=torch.tensor([[0.1, -0.1], [0.7, -0.7]]), end=True),
        per_sample=True,
    )
    assert (sol.ys[..., 0] - torch.exp(sol.ts)).abs().max() < 1e-8
