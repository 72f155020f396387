"""Compiled solves stop at events where the eager loop does, and differentiate through them alike."""

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Bosh3, Event, Heun, Save
from dxdt.ops.tree import leaves

F64 = torch.float64
START = torch.tensor([[10.0, 0.0], [3.0, 1.0], [200.0, 0.0], [1.0, 0.0]], dtype=F64)


class Fall(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drag = torch.nn.Parameter(torch.tensor(0.1, dtype=F64))

    def forward(self, t, y, g):
        return torch.stack([y[..., 1], -g - self.drag * y[..., 1]], -1)


def ground(t, y, g):
    return y[..., 0] - 0.1 * g * torch.sin(t)


def fast(t, y, g):
    return y[..., 1] + 9.0


def far(t, y, g):
    return (y[..., 0] < 5.0) & (t > 1.2)


def branching(t, y, g):
    return y[..., 0] if bool((y[..., 0] > -100).all()) else y[..., 1]


EVENTS = [Event(ground), Event(fast, direction=-1), Event(far)]
OPTIONS = {
    "pid-times": dict(solver=Bosh3(), save=Save(times=torch.linspace(0, 3, 10, dtype=F64), end=True)),
    "small-steps-dense": dict(solver=Bosh3(), controller=PID(1e-9, 1e-9), dt=1e-5, save=Save(dense=True, end=True)),
    "constant": dict(dt=0.005, solver=Heun()),
}


def solve(compile, per_sample=True, event=EVENTS, field=None, **options):
    y0 = (START if per_sample else START[0]).clone().requires_grad_()
    g = torch.tensor(9.81, dtype=F64, requires_grad=True)
    field = Fall() if field is None else field
    options = {"per_sample": per_sample, "args": (g,), "event": event, "compile": compile, **options}
    return dxdt.solve(ODE(field), y0, (0.0, 3.0), **options), [y0, g, *field.parameters()]


def close(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "per_sample"), [("pid-times", True), ("small-steps-dense", True), ("constant", False)]
)
def test_events_and_their_gradients(name, per_sample, strict):
    found = []
    for compile in (True, False):
        sol, inputs = solve(compile, per_sample, **OPTIONS[name])
        loss = sol.t1.sum() + sol.y1.square().sum() + sol.events.nan_to_num().sum()
        loss = loss + sum(x.nan_to_num().sin().sum() for x in leaves(sol.ys))
        if sol.path is not None:
            loss = loss + sol.path(torch.tensor(0.3)).sin().sum()
        found.append((sol, torch.autograd.grad(loss, inputs)))
    (a, ga), (b, gb) = found
    assert a.status == b.status and str(a.stats) == str(b.stats)
    assert torch.equal(a.reached, b.reached) and torch.equal(a.which, b.which)
    for one, other in ((a.ys, b.ys), (a.t1, b.t1), (a.y1, b.y1), (a.events, b.events)):
        close(one, other)
    for one, other in zip(ga, gb, strict=True):
        close(one, other)


def test_values_after_every_step(traced, strict):
    with torch.no_grad():
        (a, _), (b, _) = (solve(c, save=Save(steps=True, every=2), controller=PID(1e-8, 1e-8)) for c in (True, False))
    assert torch.equal(a.reached, b.reached) and a.status == b.status
    close(a.ys, b.ys)
    close(a.ts, b.ts)


def test_conditions_that_cannot_be_batched(traced, strict):
    with torch.no_grad():
        (a, _), (b, _) = (solve(c, False, event=Event(branching)) for c in (True, False))
    assert a.status == b.status and str(a.stats) == str(b.stats)
    close(a.t1, b.t1)


def test_a_parameter_of_the_condition_alone(traced, strict):
    level = torch.tensor(4.0, dtype=F64, requires_grad=True)
    slopes = []
    for compile in (True, False):
        field = Fall().requires_grad_(False)
        sol = dxdt.solve(
            ODE(field),
            START[0],
            (0.0, 3.0),
            args=(9.81,),
            event=Event(lambda t, y, g: y[..., 0] - level),
            compile=compile,
        )
        slopes.append(torch.autograd.grad(sol.t1 + sol.y1.sum(), level)[0])
    close(*slopes)


def test_what_has_no_compiled_form_says_so(fresh):
    with pytest.warns(RuntimeWarning, match="events with a reset"), torch.no_grad():
        solve(True, False, event=Event(ground, reset=lambda t, y, g: -y))
    with pytest.warns(RuntimeWarning, match="after every step"):
        solve(True, False, save=Save(steps=True))
