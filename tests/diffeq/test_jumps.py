"""Discontinuities of the field at known times: no time is lost there, and each step sees its own side."""

import numpy as np
import pytest
import torch

import dxdt
from dxdt import ODE, PID, Clip, Constant, Save

F32, F64 = torch.float32, torch.float64
EPS = {F32: 1.2e-7, F64: 2.3e-16}


def resting(t, y):
    """y' = 1: what is solved is the time that went by."""
    return torch.ones_like(y)


def leaf(t0, t1, per_sample, dtype):
    """A state, and the span, for each sample where they have clocks of their own."""
    y0 = torch.zeros(3, 1, dtype=dtype)
    if not per_sample:
        return y0, (t0, t1)
    ends = torch.tensor([t0, t1, 0.5 * (t0 + t1)], dtype=F64), torch.tensor([t1, t0, t1], dtype=F64)
    return y0, ends


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("start", [0.0, -7.0, 1e-9, 1e4, 1e6, 1.7e9])
def test_no_time_is_lost(start, dtype, per_sample):
    length = 10.0 if start != 1e-9 else 1e-8
    for t0, t1 in ((start, start + length), (start + length, start)):
        y0, span = leaf(t0, t1, per_sample, dtype)
        # One jump, many, two within rounding of each other, at the ends, outside.
        many = np.linspace(t0, t1, 20)
        half = 0.5 * (t0 + t1)
        for jumps in ([half], many, [half, np.nextafter(half, t1)], [t0], [t1], [t0 - 1, t1 + 1]):
            sol = dxdt.solve(ODE(resting), y0, span, controller=Clip(PID(), jumps=jumps), per_sample=per_sample)
            went = (span[1] - span[0])[:, None] if per_sample else t1 - t0
            rounding = 20 * EPS[dtype] * length + 100 * EPS[F64] * (abs(t0) + length)
            assert (sol.y1.double() - went).abs().max() <= rounding


class Sided:
    """y' = before, then after; looks at each time that it is shown."""

    def __init__(self, jump, early, dtype=F64):
        self.jump, self.early, self.seen = torch.tensor(jump, dtype=dtype), early, []

    def __call__(self, t, y):
        self.seen.append(t.detach().clone().reshape(-1))
        before = t < self.jump if self.early else t <= self.jump
        slope = torch.where(before, 1.0, -2.0).to(y.dtype)
        return slope.reshape(slope.shape + (1,) * (y.dim() - slope.dim())).expand_as(y)


SOLVERS = [dxdt.Euler(), dxdt.Heun(), dxdt.Bosh3(), dxdt.Tsit5(), dxdt.Dopri8(), dxdt.AdamsBashforth(3)]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_each_step_sees_its_own_side(dtype, solver):
    """Whichever side the field gives the jump itself to, and also where no float of its dtype is the jump."""
    adaptive = solver.error_order is not None
    inner = PID(1e-3, 1e-3) if adaptive else Constant(0.25)
    for jump, per_sample in ((0.1, True), (1.0, False), (0.0, True), (-0.7, False)):
        for t0, t1 in ((jump - 1.0, jump + 2.0), (jump + 2.0, jump - 1.0)):
            for early in (True, False):
                field, y0 = Sided(jump, early, dtype), torch.zeros(2, 1, dtype=dtype)
                controller = Clip(inner, jumps=[jump])
                sol = dxdt.solve(ODE(field), y0, (t0, t1), solver=solver, controller=controller, per_sample=per_sample)
                assert (sol.y1 + (3 if t1 > t0 else -3)).abs().max() < 40 * EPS[dtype]
                assert not (torch.cat(field.seen) == field.jump).any()


def test_a_solve_that_begins_or_ends_at_a_jump_sees_the_inner_side():
    for t0, t1, slope in ((0.5, 1.0, -2.0), (0.0, 0.5, 1.0), (0.5, 0.0, 1.0), (1.0, 0.5, -2.0)):
        for early in (True, False):
            field = Sided(0.5, early)
            sol = dxdt.solve(ODE(field), torch.zeros(1, dtype=F64), (t0, t1), controller=Clip(PID(), jumps=[0.5]))
            assert abs(float(sol.y1) - slope * (t1 - t0)) < 1e-14


def test_stops_are_met_by_the_bit():
    stops = [0.1, 0.2, 1 / 3, 0.7, 5e-15]
    for inner in (PID(1e-3, 1e-3), Constant(0.15)):
        for name in ("steps", "jumps"):
            controller = Clip(inner, **{name: stops})
            sol = dxdt.solve(ODE(resting), torch.zeros(1), (-1.0, 1.0), controller=controller, save=Save(steps=True))
            assert set(stops) <= set(sol.ts.tolist())


def test_steps_and_jumps_at_one_place():
    for steps, jumps in (([0.5], [0.5]), ([0.5], [0.25, 0.5, 0.75]), ([0.5, 0.6], [0.5])):
        field = Sided(0.5, True)
        sol = dxdt.solve(
            *(ODE(field), torch.zeros(1, dtype=F64), (0.0, 1.0)), controller=Clip(PID(), steps=steps, jumps=jumps)
        )
        assert abs(float(sol.y1) + 0.5) < 1e-14


def switched(t, y, theta):
    return torch.where(t < 1, theta[0], theta[1]).reshape((-1,) + (1,) * (y.dim() - 1)).squeeze(0) * y


RULES = {
    "direct": (dxdt.Direct(), dxdt.Tsit5()),
    "checkpointed": (dxdt.Checkpointed(), dxdt.Tsit5()),
    "slots": (dxdt.Checkpointed(slots=3), dxdt.Tsit5()),
    "reversible": (dxdt.Reversible(), dxdt.McCallumFoster(dxdt.Tsit5())),
    "backsolve": (dxdt.Backsolve(), dxdt.Tsit5()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_across_jumps(rule, per_sample):
    """y(t1) = y0 exp(theta0 (1 - t0) + theta1 (t1 - 1)), and its derivatives for all of these."""
    gradient, solver = RULES[rule]
    for t0, t1 in ((0.0, 2.0), (2.0, 0.0)):
        theta = torch.tensor([0.7, -0.4], dtype=F64, requires_grad=True)
        y0 = torch.tensor([[1.3], [0.8]], dtype=F64, requires_grad=True)
        ends = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (t0, t1)]
        sol = dxdt.solve(
            *(ODE(switched), y0, ends),
            args=(theta,),
            solver=solver,
            controller=Clip(PID(1e-9, 1e-9), jumps=[1.0]),
            gradient=gradient,
            per_sample=per_sample,
        )
        before, after = (1 - ends[0], ends[1] - 1) if t1 > t0 else (ends[1] - 1, 1 - ends[0])
        exact = y0 * torch.exp(theta[0] * before + theta[1] * after)
        assert (sol.y1 - exact).abs().max() < 1e-8
        got, want = (torch.autograd.grad(x.sum(), (y0, theta, *ends)) for x in (sol.y1, exact))
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() < 1e-6


def test_the_time_derivative_at_a_jump_is_kept():
    """The field moves with the ends of the span, also where these lie at jumps."""
    ends = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.5, 1.5)]
    sol = dxdt.solve(
        *(ODE(lambda t, y: t**2 + 0 * y), torch.zeros(1, dtype=F64), ends),
        controller=Clip(PID(1e-9, 1e-9), jumps=[0.5, 1.5]),
        save=Save(end=True),
    )
    got = torch.autograd.grad(sol.y1.sum(), ends)
    assert abs(float(got[0]) + 0.25) < 1e-9 and abs(float(got[1]) - 2.25) < 1e-9


def test_dense_output_and_saved_values_across_jumps():
    times = torch.linspace(0, 2, 41, dtype=F64)
    exact = torch.where(times < 1, times, 1 - 2 * (times - 1))
    for per_sample in (False, True):
        sol = dxdt.solve(
            *(ODE(Sided(1.0, True)), torch.zeros(2, 1, dtype=F64), (0.0, 2.0)),
            controller=Clip(PID(1e-3, 1e-3), jumps=[1.0]),
            save=Save(times=times, dense=True),
            per_sample=per_sample,
        )
        for values in (sol.ys, sol.path(times)):
            assert (values[:, :, 0] - exact[:, None]).abs().max() < 1e-14


def test_an_event_at_a_jump():
    """Both happen: the state is reset, and the field is seen from behind."""
    for per_sample in (False, True):
        event = dxdt.Event(lambda t, y: t - 1.0 + 0 * y.sum(-1).reshape(t.shape), reset=lambda t, y: y + 10)
        sol = dxdt.solve(
            *(ODE(Sided(1.0, False)), torch.zeros((2, 1) if per_sample else (1,), dtype=F64), (0.0, 2.0)),
            controller=Clip(PID(1e-3, 1e-3), jumps=[1.0]),
            event=event,
            per_sample=per_sample,
        )
        assert (sol.y1 - 9.0).abs().max() < 1e-13


def test_noise_and_adaptive_steps_across_jumps():
    """The clocks of random paths are the same clocks."""
    sde = dxdt.SDE(Sided(0.3, True), lambda t, y: torch.zeros_like(y), dxdt.Diagonal(), dxdt.Stratonovich())
    for controller in (Constant(0.07), PID(1e-3, 1e-3)):
        sol = dxdt.solve(
            *(sde, torch.zeros(1, dtype=F64), (0.0, 1.0)),
            solver=dxdt.SPaRK(),
            controller=Clip(controller, jumps=[0.3]),
            driver=dxdt.Brownian(1, dxdt.SpaceTime),
        )
        assert abs(float(sol.y1) - (0.3 - 1.4)) < 1e-13


def test_drop_in_loses_no_time_at_jumps():
    from dxdt.compat.torchdiffeq import odeint

    for start in (0.0, 1e4, 1e6):
        t = torch.tensor([start, start + 10.0], dtype=F64)
        y = odeint(resting, torch.zeros(1, dtype=F64), t, options={"jump_t": torch.tensor([start + 5.0], dtype=F64)})
        assert abs(float(y[-1]) - 10) < 1e-9
