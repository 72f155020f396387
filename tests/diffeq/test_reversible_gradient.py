"""Gradients by walking back: equal to direct ones, in memory that does not grow with the steps."""

from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dxdt
from claims import identify
from memory import LiveBytes

F64 = torch.float64
FIXED = (
    dxdt.ReversibleHeun(),
    dxdt.AsynchronousLeapfrog(),
    dxdt.McCallumFoster(dxdt.Midpoint()),
    dxdt.McCallumFoster(dxdt.RK4()),
)
ADAPTIVE = (dxdt.McCallumFoster(dxdt.Tsit5()), dxdt.ReversibleHeun(), dxdt.AsynchronousLeapfrog())


class Oscillators(nn.Module):
    """Driven pendulums, whose energy neither grows nor decays: (q, p) for each half of a row."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.force = nn.Parameter(0.3 * torch.randn(size, size, dtype=F64, generator=generator))

    def forward(self, t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        q, p = y.chunk(2, -1)
        phase = t[:, None] if t.dim() else t
        return torch.cat((p, -q - 0.4 * torch.sin(q + rate * phase) @ self.force), -1)


def gradients(solver: Any, gradient: Any, t1: float = 10.0, **given: Any) -> tuple[Tensor, ...]:
    field = Oscillators()
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(3, 4, dtype=F64, generator=generator, requires_grad=True)
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    ends = torch.tensor([0.0, t1], dtype=F64, requires_grad=True)
    given = dict[str, Any](save=[0.5 * t1, 0.77 * t1], max_steps=10**6) | given
    sol = dxdt.solve(dxdt.ODE(field), y, (ends[0], ends[1]), args=(rate,), solver=solver, gradient=gradient, **given)
    loss = (sol.ys**2).sum() + sol.ys[-1].sum()
    return torch.autograd.grad(loss, (y, rate, ends, *field.parameters()))


def gap(mine: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Largest difference, relative to the largest entry of each gradient."""
    both = zip(mine, other, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in both)


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_fixed_steps_agree_with_direct(solver: Any, per_sample: bool):
    given: Any = dict(dt=0.05, per_sample=per_sample)
    direct = gradients(solver, dxdt.Direct(), **given)
    assert gap(gradients(solver, dxdt.Reversible(), **given), direct) < 1e-12


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
def test_adaptive_steps_agree_with_direct(solver: Any, per_sample: bool):
    tolerance = 1e-6 if isinstance(solver, dxdt.McCallumFoster) else 1e-4
    given: Any = dict(controller=dxdt.PID(tolerance, tolerance), per_sample=per_sample)
    direct = gradients(solver, dxdt.Direct(), **given)
    assert gap(gradients(solver, dxdt.Reversible(), **given), direct) < 1e-12


@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_many_steps_agree_with_direct(solver: Any):
    """Two hundred; a thousand and more are measured below."""
    direct = gradients(solver, dxdt.Direct(), dt=0.05)
    assert gap(gradients(solver, dxdt.Reversible(), dt=0.05), direct) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_rounding_grows_no_faster_than_the_steps(solver: Any):
    gaps = []
    for steps in (100, 1000, 10_000):
        given = dict(t1=steps * 0.02, dt=0.02)
        direct = gradients(solver, dxdt.Direct(), **given)
        gaps.append(gap(gradients(solver, dxdt.Reversible(), **given), direct))
        print(f"{solver!r} {steps}: {gaps[-1]:.1e}")
    damped = isinstance(solver, dxdt.McCallumFoster)
    # Walking back, McCallum-Foster multiplies rounding by 1/0.999 a step: e^10 in 10,000.
    assert gaps[1] < 1e-12 and gaps[2] < (1e-7 if damped else 1e-11)


NOISES = {
    "diagonal": (dxdt.Diagonal(), lambda t, y, a: a * torch.sin(y) + 0.2),
    "additive": (dxdt.Additive(2), lambda t, y, a: a * torch.ones(3, 4, 2, dtype=F64)),
    "general": (dxdt.General(2), lambda t, y, a: torch.stack((a * y.flip(-1), torch.cos(y)), -1)),
}


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_walked_back_too(noise: str, adaptive: bool):
    kind, g = NOISES[noise]
    equation = dxdt.SDE(lambda t, y, a: torch.sin(a * y), g, kind, dxdt.Stratonovich())

    def value(gradient: Any) -> tuple[Tensor, ...]:
        y = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 4).requires_grad_()
        a = torch.tensor(0.4, dtype=F64, requires_grad=True)
        sol = dxdt.solve(
            equation,
            y,
            (0.0, 1.0),
            args=(a,),
            dt=0.01,
            controller=dxdt.PI(1e-2, 1e-2) if adaptive else None,
            solver=dxdt.ReversibleHeun(),
            driver=dxdt.Brownian(4),
            gradient=gradient,
            save=[0.3, 1.0],
            per_sample=True,
        )
        return torch.autograd.grad((sol.ys**2).sum(), (y, a))

    assert gap(value(dxdt.Reversible()), value(dxdt.Direct())) < 1e-12


def test_events_and_jumps_are_kept_where_they_cannot_be_walked_back():
    def ball(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
        return torch.stack((y[:, 1], -g * (1 + 0.5 * (t > 0.5))), -1)

    bounce = dxdt.Event(
        lambda t, y, g: y[:, 0],
        reset=lambda t, y, g: torch.stack((y[:, 0].abs(), -0.9 * y[:, 1]), -1),
        direction=-1,
    )

    def value(gradient: Any) -> tuple[Tensor, ...]:
        y = torch.tensor([[1.0, 0.0], [0.3, 0.1]], dtype=F64, requires_grad=True)
        g = torch.tensor(8.0, dtype=F64, requires_grad=True)
        controller = dxdt.Clip(dxdt.PID(1e-6, 1e-6), jumps=[0.5])
        sol = dxdt.solve(
            dxdt.ODE(ball),
            y,
            (0.0, 1.0),
            args=(g,),
            solver=dxdt.McCallumFoster(dxdt.Bosh3()),
            controller=controller,
            event=bounce,
            gradient=gradient,
            per_sample=True,
        )
        return torch.autograd.grad((sol.ys**2).sum(), (y, g))

    assert gap(value(dxdt.Reversible()), value(dxdt.Direct())) < 1e-10


def test_second_derivatives_pass_through_the_record():
    def second(gradient: Any) -> Tensor:
        y = torch.tensor([0.3, 0.2], dtype=F64, requires_grad=True)
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y: torch.sin(y.flip(-1))),
            y,
            (0.0, 1.0),
            dt=0.1,
            solver=dxdt.ReversibleHeun(),
            gradient=gradient,
        )
        (first,) = torch.autograd.grad(sol.ys.sum(), y, create_graph=True)
        return torch.autograd.grad((first**2).sum(), y)[0]

    torch.testing.assert_close(second(dxdt.Reversible()), second(dxdt.Direct()))


@pytest.mark.parametrize("solver", FIXED, ids=identify)
def test_live_bytes_do_not_grow_with_the_steps(solver: Any):
    peaks = []
    for steps in (20, 200):
        y = torch.ones(50, 40, dtype=F64, requires_grad=True)
        with LiveBytes() as live:
            sol = dxdt.solve(
                dxdt.ODE(lambda t, y: torch.sin(y.flip(-1))),
                y,
                (0.0, 1.0),
                dt=1 / steps,
                solver=solver,
                gradient=dxdt.Reversible(),
            )
            torch.autograd.grad(sol.ys.sum(), y)
        peaks.append(live.peak)
    assert abs(peaks[1] - peaks[0]) < 50 * 40 * 8


@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "adaptive"])
def test_the_tape_takes_eight_bytes_a_step_and_row(adaptive: bool):
    rows, taken, held = 512, [], []
    for t1 in (0.7, 2.5):
        y = torch.linspace(0.5, 1.5, rows, dtype=F64)[:, None].requires_grad_()
        given: Any = dict(controller=dxdt.PID(1e-4, 1e-4)) if adaptive else dict(dt=1 / 64)
        tracemalloc.start()
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y: torch.cos(40 * t)[:, None] + 0 * y),
            y,
            (0.0, t1),
            solver=dxdt.ReversibleHeun(),
            gradient=dxdt.Reversible(),
            per_sample=True,
            **given,
        )
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        taken.append(int(sol.stats.accepted.max()))
    per = (held[1] - held[0]) / ((taken[1] - taken[0]) * rows)
    assert taken[1] > taken[0] + 100 and 4 < per < 12, f"{per:.2f} bytes"


def test_a_walk_out_of_the_stability_region_warns():
    y = torch.ones(2, dtype=F64, requires_grad=True)
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: -30 * y),
        y,
        (0.0, 3.0),
        dt=0.02,
        solver=dxdt.McCallumFoster(dxdt.RK4(), coupling=0.5),
        gradient=dxdt.Reversible(),
        throw=False,
    )
    with pytest.warns(RuntimeWarning, match="McCallumFoster missed y0 .* not exact"):
        torch.autograd.grad(sol.ys.sum(), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(dxdt.ReversibleHeun(), dxdt.Reversible(), dt=0.1)


def test_other_solvers_are_refused():
    y = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match=r"Tsit5 is not: use dxdt.ReversibleHeun\(\)"):
        dxdt.solve(dxdt.ODE(lambda t, y: -y), y, (0.0, 1.0), gradient=dxdt.Reversible())


def test_effectively_symmetric_steps_are_undone_to_order_five():
    def trip(dt: float) -> float:
        field = Oscillators()
        equation = dxdt.ODE(lambda t, y: field(t, y, torch.tensor(0.7, dtype=F64)))
        y = torch.linspace(-1, 1, 8, dtype=F64).reshape(2, 4)
        with torch.no_grad():
            end = dxdt.solve(equation, y, (0.0, 2.0), dt=dt, solver=dxdt.EES25()).ys[-1]
            back = dxdt.solve(equation, end, (2.0, 0.0), dt=dt, solver=dxdt.EES25()).ys[-1]
        return float((back - y).abs().max())

    assert 2**4.5 < trip(0.1) / trip(0.05) < 2**5.7
    direct = gradients(dxdt.EES25(), dxdt.Direct(), dt=0.05)
    assert 1e-12 < gap(gradients(dxdt.EES25(), dxdt.Reversible(), dt=0.05), direct) < 1e-6


def test_effectively_symmetric_steps_serve_dissipative_fields():
    def value(gradient: Any) -> Tensor:
        rate = torch.tensor(3.0, dtype=F64, requires_grad=True)
        y = torch.ones(2, dtype=F64)
        field = dxdt.ODE(lambda t, y, rate: -rate * torch.sin(y))
        given = dict[str, Any](args=(rate,), dt=0.02, solver=dxdt.EES25(), gradient=gradient)
        sol = dxdt.solve(field, y, (0.0, 1.0), **given)
        return torch.autograd.grad(sol.ys.sum(), rate)[0]

    torch.testing.assert_close(value(dxdt.Reversible()), value(dxdt.Direct()), rtol=1e-5, atol=0)
