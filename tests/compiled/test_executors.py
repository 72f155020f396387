"""The law of executors: generated code answers as the eager loop does.

On given grids to rounding, with adaptive steps with the same number of steps and within ten
tolerances. The cases are chosen pairwise over clocks, directions, methods, controllers, dtypes,
states and what is saved. Most run as traced, without generating code, which takes a tenth of the
time; all of them by generated code, and the larger ones at all, are behind the slow marker.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import dxdt
from dxdt import ODE, PI, PID, Bosh3, Clip, Constant, Dopri5, Dopri8, Grid, Heun, Save, Separable, Tsit5
from dxdt.diffeq.problem.status import Status
from dxdt.ops.tree import leaves

F32, F64 = torch.float32, torch.float64


def swirl(t, y):
    return torch.sin(3 * y.roll(1, -1)) * torch.cos(t).unsqueeze(-1) - 0.5 * y


def turn(t, y):
    return 1j * y * (1 + 0.3 * torch.cos(t)) - 0.1 * y.abs() * y


def jumpy(t, y):
    return torch.where(t.unsqueeze(-1) > 0.4, -3 * y, torch.sin(y))


PENDULUM = Separable(lambda t, p: p, lambda t, q: -torch.sin(q) * (1 + 0.1 * torch.cos(t)).unsqueeze(-1))


def coupled(t, y, rates, shift):
    a, b = y["a"], y["b"]
    pull = rates["k"] * (a.sum(-1) - b).to(F32)
    return {"a": -a * rates["k"] + shift, "b": pull.to(b) - torch.sin(b) * t.to(b)}


def net(dtype):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=F64).to(dtype) / 2
    return module.requires_grad_(False)


class Driven(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.inner = net(dtype)

    def forward(self, t, y):
        return self.inner(y) - y + torch.sin(t).reshape(t.shape + (1,) * (y.ndim - t.ndim))


def state(*shape, dtype=F64):
    generator = torch.Generator().manual_seed(1)
    wide = torch.complex128 if dtype.is_complex else F64
    return torch.randn(*shape, generator=generator, dtype=wide).to(dtype)


@dataclass(frozen=True, eq=False)
class Case:
    """One solve; ``tolerance`` is the largest difference in units of the largest value."""

    name: str
    field: Callable[..., Any]
    y0: Any
    t: Any
    tolerance: float
    options: dict[str, Any] = field(default_factory=dict)


def ulps(count, dtype=F64):
    return count * torch.finfo(dtype).eps


def tree(dtype=F64):
    return {"a": state(4, 2, dtype=F32), "b": state(4, dtype=dtype)}


SPANS = (
    torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=F64),
    torch.tensor([1.5, -0.5, 1.2, 0.3], dtype=F64),
)
SPANS_UP = (torch.tensor([0.0, 0.2], dtype=F64), torch.tensor([1.0, 0.8], dtype=F64))
RATES = ({"k": torch.tensor(0.7)}, torch.tensor(0.1))
WANTED = [0.0, 0.2, 0.55, 0.55, 1.0]


def case(name, field, y0, t, tolerance, **options):
    return Case(name, field, y0, t, tolerance, options)


CASES = [
    case(
        "grid-backwards-every-f64-joint",
        swirl,
        state(2, 3),
        torch.linspace(2, 0, 12, dtype=F64),
        ulps(20),
        solver=Heun(),
        save=Save(start=True, steps=True, every=3),
    ),
    case(
        "pid-times-f32-rows-spans",
        Driven(F32),
        state(4, 3, dtype=F32),
        SPANS,
        10 * 1e-4,
        per_sample=True,
        solver=Bosh3(),
        controller=PID(rtol=1e-4, atol=1e-5, p=0.1, i=0.4),
        save=torch.stack([s + (e - s) * torch.linspace(0, 1, 5, dtype=F64) for s, e in zip(*SPANS, strict=True)], 1),
    ),
    case(
        "constant-steps-complex64-joint",
        turn,
        state(3, dtype=torch.complex64),
        (0.0, 1.0),
        ulps(20, F32),
        solver=dxdt.RK4(),
        controller=Constant(0.13),
        save=Save(steps=True, end=True),
    ),
    case(
        "constant-times-bfloat16-rows",
        swirl,
        state(2, 3, dtype=torch.bfloat16),
        (0.0, 1.0),
        ulps(4, torch.bfloat16),
        per_sample=True,
        solver=Heun(),
        dt=0.2,
        save=WANTED,
    ),
    case(
        "pi-dense-dict-args-rows",
        coupled,
        tree(),
        (0.0, 1.5),
        10 * 1e-4,
        per_sample=True,
        args=RATES,
        solver=Heun(),
        controller=PI(rtol=1e-4, atol=1e-5),
        save=Save(dense=True, end=True),
    ),
    case(
        "default-fn-f64-joint",
        Driven(F64),
        state(3),
        (0.0, 2.0),
        10 * 1e-4,
        save=Save(start=True, times=[0.5, 1.5], end=True, fn=lambda t, y: y.square().sum() + t),
    ),
    case(
        "more-than-a-chunk-times-f64-rows",
        swirl,
        state(2, 3),
        (0.0, 6.0),
        ulps(200),
        per_sample=True,
        solver=dxdt.Euler(),
        controller=Grid(torch.linspace(0, 1, 301, dtype=F64) ** 2 * 6),
        save=torch.linspace(0, 6, 100, dtype=F64),
    ),
    case(
        "clip-steps-and-jumps-times-f64-rows",
        jumpy,
        state(2, 3),
        SPANS_UP,
        10 * 1e-5,
        per_sample=True,
        solver=Bosh3(),
        controller=Clip(PID(rtol=1e-5, atol=1e-6), steps=[0.1, 0.7, 0.9], jumps=[0.4]),
        save=Save(times=[0.3, 0.4, 0.55], end=True),
    ),
    case(
        "verlet-times-tuple-rows",
        PENDULUM,
        (state(2, 3), state(2, 3).exp()),
        (0.0, 1.0),
        ulps(20),
        per_sample=True,
        solver=dxdt.StoermerVerlet(),
        dt=0.13,
        save=WANTED,
    ),
    case(
        "semi-implicit-end-tuple-f32-joint",
        PENDULUM,
        (state(3, dtype=F32), state(3, dtype=F32)),
        (1.0, 0.0),
        ulps(20, F32),
        solver=dxdt.SemiImplicitEuler(),
        dt=0.1,
    ),
    case(
        "clip-constant-jumps-backwards-f64-joint",
        jumpy,
        state(3),
        (1.0, 0.0),
        ulps(20),
        solver=Heun(),
        controller=Clip(Constant(0.09), jumps=[0.4, 0.8]),
        save=Save(dense=True, end=True),
    ),
    *(
        case(
            f"{type(solver).__name__}-times-f64-rows",
            swirl,
            state(2, 3),
            (0.0, 1.0),
            10 * 1e-4,
            per_sample=True,
            solver=solver,
            **options,
        )
        for solver, options in (
            (dxdt.LowStorage3(), {"controller": PID(), "save": WANTED}),
            (dxdt.LowStorage4(), {"dt": 0.1}),
            (dxdt.ReversibleHeun(), {"dt": 0.1, "save": WANTED}),
            (dxdt.AsynchronousLeapfrog(), {"save": Save(dense=True)}),
            (dxdt.McCallumFoster(Bosh3()), {"save": Save(steps=True)}),
        )
    ),
    case(
        "dopri8-backwards-times-f64-rows",
        Driven(F64),
        state(2, 3),
        (1.0, -1.0),
        ulps(20),
        per_sample=True,
        solver=Dopri8(),
        dt=0.1,
        save=[1.0, 0.33, -0.4, -1.0],
    ),
    case(
        "tsit5-grid-columns-f32-rows",
        swirl,
        state(2, 3, dtype=F32),
        (torch.tensor([0.0, 1.0]), torch.tensor([1.0, -1.0])),
        ulps(20, F32),
        per_sample=True,
        solver=Tsit5(),
        controller=Grid(torch.stack([torch.linspace(0, 1, 9, dtype=F64), torch.linspace(1, -1, 9, dtype=F64)], 1)),
        save=Save(steps=True, dense=True),
    ),
    case(
        "dopri5-pid-steps-complex128-rows",
        turn,
        state(4, dtype=torch.complex128),
        (0.0, 3.0),
        10 * 1e-6,
        per_sample=True,
        solver=Dopri5(),
        controller=PID(rtol=1e-6, atol=1e-6, dtmax=0.3),
        save=Save(steps=True),
    ),
    case(
        "rk4-dense-dict-f32-joint",
        coupled,
        tree(F32),
        (0.0, 1.0),
        ulps(40, F32),
        args=RATES,
        solver=dxdt.RK4(),
        dt=0.11,
        save=Save(dense=True),
    ),
    case(
        "tsit5-pid-end-bfloat16-joint",
        swirl,
        state(3, dtype=torch.bfloat16),
        (0.0, 1.0),
        ulps(8, torch.bfloat16),
        dt=0.1,
        save=Save(end=True),
    ),
    case(
        "dopri8-pid-first-step-f64-joint",
        swirl,
        state(5),
        (0.0, 4.0),
        10 * 1e-9,
        solver=Dopri8(),
        controller=PID(rtol=1e-9, atol=1e-9),
        dt=0.01,
        save=Save(start=True, times=[0.3, 2.2], end=True),
    ),
]


GENERATED = ("grid-backwards-every-f64-joint", "pid-times-f32-rows-spans", "constant-times-bfloat16-rows")
"""By generated code in the default suite; the others by their traces, but for the larger ones."""

LARGE = (
    "ReversibleHeun-times-f64-rows",
    "McCallumFoster-times-f64-rows",
    "dopri8-backwards-times-f64-rows",
    "tsit5-grid-columns-f32-rows",
    "tsit5-pid-end-bfloat16-joint",
    "dopri8-pid-first-step-f64-joint",
)


def some(quick):
    return [pytest.param(c, id=c.name, marks=[] if c.name in quick else [pytest.mark.slow]) for c in CASES]


def run(case, compile):
    equation = case.field if hasattr(case.field, "drift") else ODE(case.field)
    return dxdt.solve(equation, case.y0, case.t, compile=compile, **case.options)


def gap(a, b):
    """The largest difference in units of the largest value; NaN stands at the same places."""
    assert a.shape == b.shape and a.dtype == b.dtype
    if not a.numel():
        return 0.0
    if not a.dtype.is_complex:
        a, b = a.double(), b.double()
    assert torch.equal(a.isnan(), b.isnan())
    scale = max(1.0, float(b.abs().nan_to_num().max()))
    return float((a - b).abs().nan_to_num().max()) / scale


def expect_same(a, b, tolerance):
    """Solution ``a`` of compiled code is solution ``b`` of the eager loop."""
    assert a.status == b.status
    for name in ("steps", "accepted", "rejected"):
        one, other = (torch.as_tensor(getattr(x.stats, name)) for x in (a, b))
        assert torch.equal(one, other), name
    assert a.stats.evaluations == b.stats.evaluations
    assert torch.equal(a.reached, b.reached)
    assert gap(a.ts, b.ts) <= tolerance and gap(a.t1, b.t1) <= tolerance
    if b.ys is None:
        assert a.ys is None
        return
    for one, other in zip(leaves(a.ys), leaves(b.ys), strict=True):
        assert gap(one, other) <= tolerance


def expect_eager(case):
    a, b = run(case, True), run(case, False)
    expect_same(a, b, case.tolerance)
    if b.path is None:
        return
    for t in torch.linspace(0.05, 1, 7, dtype=F64):
        for one, other in zip(leaves(a.path(t)), leaves(b.path(t)), strict=True):
            assert gap(one, other) <= case.tolerance


@pytest.mark.parametrize("case", some(GENERATED))
def test_compiled_is_eager(case, strict):
    expect_eager(case)


@pytest.mark.parametrize("case", some({c.name for c in CASES} - {*GENERATED, *LARGE}))
def test_traced_is_eager(case, traced, strict):
    expect_eager(case)


def hazard(t, y, kind):
    """A harmless field, but rows of kind 1 are NaN after t = 0.5, of kind 2 blow up, of kind 3 wiggle."""
    kind, t = kind.unsqueeze(-1), t.unsqueeze(-1)
    quiet = torch.cos(t) - 0.3 * y
    bad = torch.where((kind == 1) & (t > 0.5), torch.full_like(y, float("nan")), quiet)
    bad = torch.where(kind == 2, y * y * 30 + 30, bad)
    return torch.where(kind == 3, torch.cos(3000 * t) * 100, bad)


def test_failing_rows_are_apart(strict):
    """Each failing row has its status, and the others have the bits of a solve without them."""
    y0, options = state(5, 2), dict(per_sample=True, max_steps=300, solver=Bosh3(), save=WANTED)
    kinds = torch.tensor([0, 1, 2, 3, 0])

    def solve(kinds, compile):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*samples failed")
            return dxdt.solve(ODE(hazard), y0, (0.0, 1.0), args=(kinds,), compile=compile, **options)

    a, b, quiet = solve(kinds, True), solve(kinds, False), solve(kinds * 0, True)
    assert a.status == b.status
    assert a.status[1] in (Status.NOT_FINITE, Status.STEP_TOO_SMALL)
    assert a.status[2] in (Status.NOT_FINITE, Status.STEP_TOO_SMALL, Status.MAX_STEPS)
    assert a.status[3] is Status.MAX_STEPS and a.status[0] is a.status[4] is Status.SUCCESS
    assert torch.equal(a.reached, b.reached) and not a.reached[-1, 1:4].any()
    assert torch.equal(a.ys[:, [0, 4]], quiet.ys[:, [0, 4]])
    assert gap(a.ys, b.ys) <= 10 * 1e-4
