"""Every exported solver, eager and compiled: the law of executors from the facts of its class.

To write the table after a change: DXDT_WRITE_DOCS=1 pytest tests/compiled/test_executor_table.py
"""

import os
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch

import dxdt
from claims import PAIRS, SOLVERS, identify
from dxdt import ODE, PID, Separable

F64 = torch.float64
EPS = torch.finfo(F64).eps
PAGE = Path(__file__).resolve().parents[2] / "docs" / "executors.md"
BEGIN, END = "<!-- table of solvers: begin -->", "<!-- table of solvers: end -->"
MINE = [s for s in SOLVERS if s.facts.compiles and not s.facts.stochastic and not s.facts.semilinear]
"""Those of ordinary equations; ``test_noisy_solves`` has the others."""

TOLERANCE = 1e-6
# Bounds: roundings on a known grid and of its gradient, tolerances with adaptive steps.
ROUNDINGS, GRADIENTS, TOLERANCES = 20, 200, 10


def swirl(t, y):
    return torch.sin(3 * y.roll(1, -1)) * torch.cos(t).unsqueeze(-1) - 0.5 * y


def push(t, q):
    return -torch.sin(q) * (1 + 0.1 * torch.cos(t)).unsqueeze(-1)


def solved(solver, compile, adaptive=False, grad=False):
    """The values of a solve with a clock for each row, backwards in one, and the gradient of their sum."""
    y = torch.tensor([[1.0, 0.5, -0.2], [0.3, -0.7, 0.9]], dtype=F64, requires_grad=grad)
    split = solver.facts.separable
    equation = Separable(lambda t, p: p, push) if split else ODE(swirl)
    t1 = torch.tensor([1.0, -0.8], dtype=F64)
    steps = {"controller": PID(rtol=TOLERANCE, atol=TOLERANCE)} if adaptive else {"dt": 0.09}
    options = dict(solver=solver, per_sample=True, save=dxdt.Save(start=True, end=True, dense=True), compile=compile)
    sol = dxdt.solve(equation, (y, y.flip(0)) if split else y, (0.0, t1), **steps, **options)
    values = [x for part in (sol.ys, sol.path(0.37 * t1[None])) for x in (part if split else (part,))]
    out = torch.cat([v.reshape(-1) for v in values])
    return sol, torch.autograd.grad(out.square().sum(), y)[0] if grad else out


def difference(solver, **options):
    """Of both executors, in units of the largest value, and their solutions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True runs eager")
        (one, a), (other, b) = (solved(solver, c, **options) for c in (True, False))
    assert torch.equal(one.stats.steps, other.stats.steps) and torch.equal(one.stats.rejected, other.stats.rejected)
    return float((a - b).abs().max() / b.abs().max()), other


@cache
def measured(solver):
    """Roundings on a known grid and of the gradient, steps and tolerances with adaptive steps or None."""
    grid = difference(solver)[0] / EPS
    gradient = difference(solver, grad=True)[0] / EPS
    if solver not in PAIRS:
        return grid, gradient, None, None
    gap, sol = difference(solver, adaptive=True)
    return grid, gradient, int(sol.stats.steps.sum()), gap / TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("solver", MINE, ids=identify)
def test_compiled_is_eager_for_every_solver(solver):
    grid, gradient, _, adaptive = measured(solver)
    assert grid <= ROUNDINGS and gradient <= GRADIENTS and (adaptive or 0) <= TOLERANCES


def row(solver):
    name = f"| `{type(solver).__name__}` |"
    grid, gradient, steps, gap = measured(solver)
    cells = [f"{grid:.1f}", f"{gradient:.1f}"]
    cells += ["", ""] if steps is None else [str(steps), f"{gap:.1g}"]
    return f"{name} {' | '.join(cells)} |"


def test_the_table_has_every_solver():
    """Roundings are the machine's that wrote it; with DXDT_WRITE_DOCS=1 they are measured and written anew."""
    before, rest = PAGE.read_text().split(BEGIN)
    old, after = rest.split(END)
    if os.environ.get("DXDT_WRITE_DOCS"):
        lines = ["| solver | known grid | its gradient | adaptive steps | difference |", "|---|---|---|---|---|"]
        old = "\n" + "\n".join([*lines, *map(row, MINE)]) + "\n"
        PAGE.write_text(f"{before}{BEGIN}{old}{END}{after}")
    assert [line.split("`")[1] for line in old.splitlines() if "`" in line] == [type(s).__name__ for s in MINE]
