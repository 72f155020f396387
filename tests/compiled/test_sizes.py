"""Batches of many sizes: a bounded number of programs, and the values of the eager loop."""

import importlib
import random
import warnings

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Clip, Euler, Heun, Tsit5

SIZES = importlib.import_module("dxdt.diffeq.programs.open_batch")
COMPILER = importlib.import_module("dxdt.compiler.backend")
EXTENT = importlib.import_module("dxdt.compiler.native.sizes")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)

    def forward(self, t, y):
        return self.two(torch.tanh(self.one(y)))


class Pair(Net):
    """A pair of states, driven by an argument with a batch axis and one without."""

    def forward(self, t, y, drive, shift):
        x, s = y
        return super().forward(t, x) * drive.unsqueeze(-1) + shift, -s * x.square().sum(-1)


def start(batch, pair=False):
    y = torch.sin(torch.arange(3.0 * batch)).reshape(batch, 3)
    return (y, torch.ones(batch)) if pair else y


def outcome(field, y0, compile, grad, **options):
    options = {"solver": Euler(), "dt": 0.25, "save": [0.3, 1.0], **options}
    params = [p for p in field.parameters()] if isinstance(field, torch.nn.Module) else []
    for p in params:
        p.requires_grad_(grad)
    leaves = [*(y0 if isinstance(y0, tuple) else (y0,)), *(options.get("args") or ())]
    inputs = [x.requires_grad_(grad) for x in (*leaves, *params)]
    sol = dxdt.solve(ODE(field), y0, (0.0, 1.0), compile=compile, **options)
    ys = sol.ys if isinstance(sol.ys, tuple) else (sol.ys,)
    pulled = torch.autograd.grad(sum(y.square().sum() for y in ys), inputs) if grad else ()
    return [*ys, *pulled]


def expect_eager_values(field, sizes, grad, make=lambda batch: {}, pair=False, **options):
    for batch in sizes:
        given = {**options, **make(batch)}
        a, b = (outcome(field, start(batch, pair), compile, grad, **given) for compile in (True, False))
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-5), batch


def drives(batch):
    return {"args": (torch.linspace(0, 1, batch), torch.ones(3))}


ADAPTIVE = {"solver": Tsit5(), "dt": None, "controller": PID(rtol=1e-3, atol=1e-5)}
CASES = {
    "pair": (Pair, {"pair": True, "make": drives}),
    "per sample": (Net, {"per_sample": True}),
    "per sample, adaptive": (Net, {"per_sample": True, **ADAPTIVE}),
    "joint, adaptive": (Net, ADAPTIVE),
    "pair, per sample": (Pair, {"pair": True, "make": drives, "per_sample": True}),
    "clipped": (Net, {**ADAPTIVE, "controller": Clip(PID(rtol=1e-3, atol=1e-5), [0.5], [0.7])}),
    "tolerances": (Net, {**ADAPTIVE, "controller": PID(rtol=torch.tensor([1e-3, 1e-4, 1e-3]), atol=1e-5)}),
    "every step": (Net, {"save": dxdt.Save(steps=True)}),
    "more than a chunk": (Net, {"dt": 0.003}),
}


USUAL = [("pair, per sample", True)]
WIDE = [(case, grad) for case in CASES for grad in (False, True) if (case, grad) not in USUAL]


@pytest.mark.parametrize(("case", "grad"), [*USUAL, *(pytest.param(*x, marks=pytest.mark.slow) for x in WIDE)])
def test_values_are_those_of_the_eager_loop(case, grad, traced, strict, monkeypatch):
    monkeypatch.setattr(SIZES, "_FEW", 1)
    make, options = CASES[case]
    expect_eager_values(make(), (5, 7, 2, 40), grad, **options)
    assert len(traced) <= 2 * (1 + grad) * (1 + (case == "more than a chunk"))


def test_many_sizes_cost_four_programs(traced, strict):
    """A dozen random sizes: three programs of their own, one for all others."""
    random.seed(1)
    sizes = random.sample(range(2, 500), 12)
    expect_eager_values(Net(), sizes, False)
    assert len(traced) == 4
    expect_eager_values(Net(), sizes[::-1], False)
    assert len(traced) == 4


@pytest.mark.slow
def test_one_item_has_a_program_of_its_own(traced, strict, monkeypatch):
    monkeypatch.setattr(SIZES, "_FEW", 1)
    expect_eager_values(Net(), (2, 1, 3, 1, 4), False)
    assert len(traced) == 3


def unrolled(t, y):
    return torch.stack([-y[i] * (1 + i) for i in range(y.shape[0])])


def branched(t, y):
    return -y if y.shape[0] < 6 else -2 * y


def closed_over(batch):
    held = torch.linspace(0, 1, batch).unsqueeze(-1)
    return lambda t, y: -y * held


def test_sizes_that_a_field_needs_as_numbers(traced, monkeypatch):
    """Programs of their own for every size, and after many a warning that names the remedy."""
    monkeypatch.setattr(SIZES, "_FEW", 1)
    monkeypatch.setattr(SIZES, "_MANY", 2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        expect_eager_values(unrolled, (2, 3, 4), False)
    said = [str(w.message) for w in seen if w.category is RuntimeWarning]
    assert len(said) == 1 and "pad batches to a few sizes" in said[0]
    assert len(traced) <= 5


@pytest.mark.slow
def test_sizes_that_a_field_looks_at(traced, strict, monkeypatch):
    """Branches on it."""
    monkeypatch.setattr(SIZES, "_FEW", 1)
    expect_eager_values(branched, (2, 3, 8, 9), False)
    assert len(traced) == 3


@pytest.mark.slow
def test_sizes_of_what_a_field_closes_over(traced, strict, monkeypatch):
    monkeypatch.setattr(SIZES, "_FEW", 1)
    for batch in (2, 3, 4):
        expect_eager_values(closed_over(batch), (batch,), False)


@pytest.mark.parametrize("grad", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_sample", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_native_code_of_open_batches(per_sample, grad, fresh, strict, monkeypatch):
    """Products, sums over the batch, leaves that begin where others end."""

    def refuse(graph, inputs):
        raise AssertionError("a program that has no native code")

    monkeypatch.setattr(SIZES, "_FEW", 1)
    monkeypatch.setattr(COMPILER, "inductor", refuse)
    expect_eager_values(Pair(), (5, 7, 2, 33, 300), grad, drives, True, per_sample=per_sample, solver=Heun())


def test_sizes_are_told_from_numbers():
    """a + b B is read from the number that stands for it, and written out in a text."""
    extents = EXTENT.Extents("B", EXTENT.PRIMES[0])
    prime = extents.prime
    for a, b in ((0, 1), (3, 1), (-1, 1), (12, 4), (0, 100)):
        assert extents.extent(a + b * prime) == EXTENT.Extent(a, b)
    text = f"i < {prime}; x[{3 * prime + 2}] + {7 * prime}LL + 0.{prime} + b{prime} + 12"
    assert extents.written(text) == f"i < B; x[(2 + 3 * B)] + (7 * B) + 0.{prime} + b{prime} + 12"
    for n in (prime // 2, prime * prime):
        with pytest.raises(EXTENT.Unsupported):
            extents.extent(n)
