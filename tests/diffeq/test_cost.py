"""What a step costs beyond the field: operations dispatched and reads by the host.

Counts, not times; the figures are printed with ``-s``.
"""

import pytest
import torch
from torch import nn

import dxdt
from claims import EXPLICIT, crossed, identify
from memory import Operations, host_syncs

SIZES = (1, 64)
# What an implicit step costs depends on its iterations.
PAIRS = [s for s in EXPLICIT if s.facts.error_order is not None and not s.facts.known_grid]


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)]
    return nn.Sequential(*layers)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, t, y):
        return self.net(y) + torch.cos(9 * t).reshape(-1, 1)


def operations_of_field(batch):
    field, y = Field(), torch.randn(batch, 4)
    with torch.no_grad(), Operations() as ops:
        field(torch.tensor(0.0), y)
    return ops.total


def measured(batch, span, grad=False, **options):
    """Operations, attempted steps and evaluations of a solve."""
    field = Field()
    torch.manual_seed(1)
    y0 = torch.randn(batch, 4)
    with torch.set_grad_enabled(grad), Operations() as ops:
        sol = dxdt.solve(dxdt.ODE(field), y0, span, **options)
    return ops.total, int(torch.as_tensor(sol.stats.steps).max()), sol.stats.evaluations


def per_step(batch, grad=False, **options):
    """Operations of one more attempted step, beyond those of the field."""
    ops0, steps0, evals0 = measured(batch, (0.0, 2.5), grad, **options)
    ops1, steps1, evals1 = measured(batch, (0.0, 10.0), grad, **options)
    field = operations_of_field(batch)
    assert steps1 > steps0 + 5
    return (ops1 - ops0 - field * (evals1 - evals0)) / (steps1 - steps0), field


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("batch", SIZES)
def test_operations_of_an_adaptive_step(batch, per_sample):
    """At most 60 beyond the field's own (torchdiffeq's dopri5: about 180)."""
    options = dict(controller=dxdt.PID(1e-5, 1e-5), per_sample=per_sample)
    extra, field = per_step(batch, **options)
    print(f"\nTsit5 batch {batch} per_sample {per_sample}: {extra:.1f} (field: 6 x {field})")
    assert extra <= 60
    extra, field = per_step(batch, grad=True, **options)
    print(f"  with a graph: {extra:.1f}")
    assert extra <= 80


@pytest.mark.parametrize("solver", PAIRS, ids=identify)
def test_operations_of_every_pair(solver):
    extra, _ = per_step(1, solver=solver, controller=dxdt.PID(1e-3, 1e-3), max_steps=10_000)
    print(f"\n{identify(solver):12} {extra:.1f}")
    # One operation for each nonzero coefficient, at worst.
    tableau = getattr(solver, "tableau", None)
    weights = 0 if tableau is None else len(tableau.values)
    assert extra <= max(60, 30 + weights)


@pytest.mark.parametrize("solver", EXPLICIT, ids=identify)
def test_operations_of_a_fixed_step(solver):
    extra, _ = per_step(1, solver=solver, dt=0.25)
    print(f"\n{identify(solver):12} {extra:.1f}")
    tableau = getattr(solver, "tableau", None)
    assert extra <= max(50, 25 + (0 if tableau is None else len(tableau.values)))


# Reads by the host


def reads(monkeypatch, span, batch=3, **options):
    field, y0 = Field(), torch.randn(batch, 4)
    with torch.no_grad(), host_syncs(monkeypatch) as seen:
        sol = dxdt.solve(dxdt.ODE(field), y0, span, **options)
    return len(seen), int(torch.as_tensor(sol.stats.steps).max())


SAVES = {"end": None, "times": torch.linspace(0, 5, 33), "dense": dxdt.Save(dense=True)}
WAYS = [(save, mode) for save in SAVES for mode in ("joint", "per-sample")]


@pytest.mark.parametrize(("solver", "way"), crossed(PAIRS, WAYS, WAYS[3]))
def test_one_read_for_each_attempted_step(solver, way, monkeypatch):
    """The error norm, whatever is saved, whether the step is accepted or not."""
    save, per_sample = SAVES[way[0]], way[1] == "per-sample"
    options = dict(
        solver=solver,
        save=save,
        per_sample=per_sample,
        max_steps=10_000,
    )
    counts = [reads(monkeypatch, (0.0, 5.0), controller=dxdt.PID(tol, tol), **options) for tol in (1e-2, 1e-3)]
    (few, steps0), (many, steps1) = counts
    assert steps1 >= steps0 + 3
    assert many - few == steps1 - steps0
    assert few - steps0 <= 10


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize(
    "solver", [s for s in EXPLICIT if not s.facts.known_grid], ids=identify
)  # those look back, on the host
def test_fixed_steps_read_nothing(solver, per_sample, monkeypatch):
    options = dict(solver=solver, per_sample=per_sample)
    few, many = (reads(monkeypatch, (0.0, 5.0), dt=dt, **options)[0] for dt in (0.5, 0.05))
    assert few == many


def test_the_counter_sees_every_kind_of_read(monkeypatch):
    x = torch.ones(1)
    with host_syncs(monkeypatch) as seen:
        x.item(), x.numpy(), x.tolist(), bool(x), float(x), int(x), list(range(x.long()))
        if x:
            pass
    assert len(seen) >= 8
