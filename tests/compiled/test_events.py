"""Compiled solves stop at events where the eager loop does, and differentiate through them alike."""

import importlib

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Bosh3, Clip, Event, Grid, Heun, Save
from dxdt.ops.tree import leaves

F64 = torch.float64
AHEAD = importlib.import_module("dxdt.diffeq.programs.predrawn")
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
    "pid-times": dict(
        solver=Heun(), controller=PID(1e-3, 1e-3), save=Save(times=torch.linspace(0, 3, 10, dtype=F64), end=True)
    ),
    "small-steps-dense": dict(solver=Bosh3(), controller=PID(1e-9, 1e-9), dt=1e-5, save=Save(dense=True, end=True)),
    "constant": dict(dt=0.005, solver=Heun()),
}


def solve(compile, per_sample=True, event=EVENTS, field=None, **options):
    y0 = (START if per_sample else START[0]).clone().requires_grad_()
    g = torch.tensor(9.81, dtype=F64, requires_grad=True)
    field = Fall() if field is None else field
    options = {"per_sample": per_sample, "args": (g,), "event": event, "compile": compile, **options}
    return dxdt.solve(ODE(field), y0, (0.0, 3.0), **options), [y0, g, *field.parameters()]


def close(a, b, rtol=1e-8):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert torch.allclose(a, b, rtol=rtol, atol=1e-9, equal_nan=True)


def both_ways_stop(name, per_sample):
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


def test_events_and_their_gradients(traced, strict):
    both_ways_stop("pid-times", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "per_sample"), [("pid-times", True), ("small-steps-dense", True), ("constant", False)]
)
def test_events_and_their_gradients_in_generated_code(name, per_sample, strict):
    both_ways_stop(name, per_sample)


@pytest.mark.slow
def test_values_after_every_step(traced, strict):
    with torch.no_grad():
        (a, _), (b, _) = (
            solve(c, save=Save(steps=True, every=2), solver=Heun(), controller=PID(1e-4, 1e-4)) for c in (True, False)
        )
    assert torch.equal(a.reached, b.reached) and a.status == b.status
    close(a.ys, b.ys)
    close(a.ts, b.ts)


def test_conditions_that_cannot_be_batched(traced, strict):
    with torch.no_grad():
        (a, _), (b, _) = (solve(c, False, event=Event(branching), solver=Heun(), dt=0.1) for c in (True, False))
    assert a.status == b.status and str(a.stats) == str(b.stats)
    close(a.t1, b.t1)


@pytest.mark.slow
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
            solver=Heun(),
            compile=compile,
        )
        slopes.append(torch.autograd.grad(sol.t1 + sol.y1.sum(), level)[0])
    close(*slopes)


class Turning(torch.nn.Module):
    """A turning point with a disturbance that is learned."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(2, 2, dtype=F64)

    def forward(self, t, y, level, kick):
        turn = torch.stack([-y[..., 1], y[..., 0]], -1)
        return turn - 0.1 * y + 0.1 * torch.tanh(self.linear(y)) + 0.05 * kick


HIT = Event(
    lambda t, y, level, kick: y[..., 0] - level * torch.cos(0.3 * t),
    -1,
    lambda t, y, level, kick: y * (1 + 0.5 * kick) + 0.1 * t.unsqueeze(-1) * kick,
)
FLOOR = Event(lambda t, y, level, kick: y[..., 1] + 0.9, -1, lambda t, y, level, kick: y)
LOW = Event(lambda t, y, level, kick: y[..., 1] + 1.2 + 0.1 * level, -1)
SEEN = Event(lambda t, y, level, kick: (y[..., 0] < level) & (y[..., 1] > 0), 0, lambda t, y, level, kick: -0.9 * y)
VALUES = Event(lambda t, y, *_: y[..., 0] - 0.3 if bool((y > -9).all()) else y[..., 1], -1, lambda t, y, *_: 1.05 * y)
# At a save time, where two conditions change at once, and at the end of the span.
AT = [
    Event(lambda t, y, *_, x=x: t - x + 0 * y[..., 0], 0, lambda t, y, level, kick: y + kick) for x in (4.4, 7.1, 4.4)
]
BOTH = [HIT, FLOOR]
SOME = Save(times=[1.1, 4.4, 6.7], end=True)
TABLE = {
    "adaptive": dict(event=BOTH, save=SOME, times=True),
    "fixed": dict(event=BOTH, save=SOME, times=True, dt=0.35),
    "third order": dict(event=BOTH, save=SOME, solver=Bosh3(), controller=PID(1e-5, 1e-7)),
    "without a slope at the end": dict(event=BOTH, save=SOME, solver=Heun(), dt=0.05),
    "steps": dict(event=BOTH, save=Save(steps=True, every=2, end=True), times=True),
    "path": dict(event=BOTH, save=Save(dense=True, end=True), times=True),
    "grid": dict(event=BOTH, save=SOME, controller=Grid(torch.linspace(0.1, 7.1, 40, dtype=F64))),
    "jumps of the field": dict(event=BOTH, save=SOME, controller=Clip(PID(), steps=[1.0, 2.0], jumps=[3.0, 5.0])),
    "ended and going on": dict(event=[HIT, LOW], save=SOME, times=True),
    "boolean": dict(event=SEEN, save=SOME, dt=0.21),
    "cannot be batched": dict(event=VALUES, save=SOME),
    "at given times": dict(event=AT, save=Save(times=[1.1, 4.4, 6.7, 7.1], end=True)),
    "backwards": dict(event=HIT, save=Save(times=[6.7, 4.4, 1.1], end=True), times=True, dt=0.2, span=(7.1, 0.1)),
    "several in a step": dict(event=BOTH, save=SOME, dt=2.5),
    "too many steps": dict(event=BOTH, save=SOME, max_steps=14, throw=False),
}
# Rows of the table at a low order, since every stage is traced: joint and per sample, events that are found and given.
QUICK = [
    ("steps", False, dict(dt=0.15, span=(0.1, 3.6))),
    ("at given times", True, dict(dt=0.4)),
]


def hybrid(compile, per_sample, times=False, span=(0.1, 7.1), **options):
    """A solution through resets, and the gradients of all that is seen of it."""
    field = Turning()
    y0 = torch.tensor([[1.0, 0.2], [0.7, -0.4], [1.3, 0.1]], dtype=F64, requires_grad=True)
    level, kick, *ends = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.3, 0.4, *span))
    wanted = [y0, level, kick, *field.parameters(), *(ends if times else ())]
    options = {"args": (level, kick), "per_sample": per_sample, "compile": compile, **options}
    sol = dxdt.solve(ODE(field), y0 if per_sample else y0[0], ends if times else span, **options)
    loss = sol.events.nan_to_num().cos().sum() + sol.t1.sin().sum()
    loss = loss + sum(x.nan_to_num().sin().sum() for x in leaves(sol.ys))
    if sol.path is not None:
        loss = loss + sol.path(torch.linspace(*sorted(span), 9)[1:-1]).sin().sum()
    return sol, torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


def both_ways_agree(name, per_sample, **more):
    (a, ga), (b, gb) = (hybrid(compile, per_sample, **TABLE[name], **more) for compile in (True, False))
    assert a.status == b.status and str(a.stats) == str(b.stats)
    assert torch.equal(a.reached, b.reached) and torch.equal(a.which, b.which)
    for one, other in ((a.ys, b.ys), (a.ts, b.ts), (a.t1, b.t1), (a.events, b.events)):
        close(one, other)
    # Rounding grows with the gradients, along resets that repel.
    for one, other in zip(ga, gb, strict=True):
        close(one, other, rtol=1e-6)
    assert len(a.events)
    return a, ga


@pytest.mark.parametrize(("name", "per_sample", "options"), QUICK)
def test_resets_and_their_gradients(name, per_sample, options, traced, strict):
    sol, gradients = both_ways_agree(name, per_sample, solver=Heun(), **options)
    if name != "at given times":
        assert all(g.abs().max() > 1e-6 for g in gradients)
    else:
        assert sol.which[:, 0].tolist() == [0, 1] and (sol.t1 == 7.1).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples failed")
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("name", TABLE)
def test_all_forms_of_resets(name, per_sample, traced, strict):
    both_ways_agree(name, per_sample)


def ball(t, y, g, e):
    return torch.stack([y[..., 1], -g.expand(y.shape[:-1])], -1)


def test_four_bounces_of_a_thousand_balls(strict):
    """t_n = sqrt(2 h / g) (1 + 2 (e + ... + e^(n-1))), for heights, gravity and restitution."""
    h = torch.linspace(1.0, 20.0, 1000, dtype=F64, requires_grad=True)
    g, e = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (8.0, 0.8))
    powers = e ** torch.arange(4, dtype=F64)
    exact = (2 * h / g).sqrt() * (2 * powers.cumsum(0) - 1)[:, None]
    sol = dxdt.solve(
        ODE(ball),
        torch.stack([h, 0 * h], -1),
        (0.0, exact[-1].detach() + 0.05),
        args=(g, e),
        event=Event(
            lambda t, y, g, e: y[..., 0], -1, lambda t, y, g, e: torch.stack([0 * y[..., 0], -e * y[..., 1]], -1)
        ),
        solver=Heun(),
        per_sample=True,
        compile=True,
    )
    assert sol.ok.all() and sol.events.shape == (4, 1000) and (sol.which == 0).all()
    assert (sol.events - exact).abs().max() < 1e-8
    weights = torch.linspace(-1, 2, 4, dtype=F64)[:, None]
    found, wanted = (torch.autograd.grad((x * weights).sum(), [h, g, e]) for x in (sol.events, exact))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-8 * (1 + b.abs().max())


def test_parameters_of_events_alone(traced, strict):
    """A level, a restitution and an end that neither the field nor the state knows of."""
    level, rest, last = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (4.0, 0.7, 2.7))
    turned = Event(lambda t, y, g: y[..., 0] - level, -1, lambda t, y, g: torch.stack([y[0], -rest * y[1]]))
    events, options = [turned, Event(lambda t, y, g: t + 0.01 * y[0] - last)], dict(solver=Heun(), dt=0.1)
    found = []
    for compile in (True, False):
        field = Fall().requires_grad_(False)
        sol = dxdt.solve(ODE(field), START[0], (0.0, 3.0), args=(9.81,), event=events, compile=compile, **options)
        assert len(sol.events) > 2 and sol.t1 < 3.0
        found.append(torch.autograd.grad(sol.events.sum() + sol.y1.sum(), [level, rest, last]))
    for one, other in zip(*found, strict=True):
        close(one, other)


def test_little_is_struck(traced, strict, monkeypatch):
    """Runs are short around events and grow between them."""
    rooms = []
    follow = AHEAD.Ahead.follow

    def seen(ahead, carry):
        follow(ahead, carry)
        rooms.append(ahead.room)

    monkeypatch.setattr(AHEAD.Ahead, "follow", seen)
    with torch.no_grad():
        given = Event(lambda t, y, g: t - 1.5 + 0 * y[0], 0, lambda t, y, g: y)
        sol, _ = solve(True, False, event=given, dt=0.01, solver=Heun())
    assert sol.stats.accepted == 300 and len(sol.events) == 1
    # Of the runs of 16, 32, 64 and 128 attempts the last keeps 38.
    assert rooms[:4] == [32, 64, 128, 76]


def test_what_has_no_compiled_form_says_so(fresh):
    sde = dxdt.SDE(lambda t, y: -y, lambda t, y: 0.1 * y)
    event = Event(lambda t, y: y[0] - 0.5, -1, lambda t, y: y + 1)
    options = dict(driver=dxdt.Increments(seed=1), solver=dxdt.EulerMaruyama(), dt=0.1, compile=True)
    with pytest.warns(RuntimeWarning, match="use Brownian"):
        dxdt.solve(sde, torch.ones(2), (0.0, 2.0), event=event, **options)
    noisy = Event(ground, reset=lambda t, y, g: -y * torch.rand(()))
    with pytest.warns(RuntimeWarning, match="draws random numbers"), torch.no_grad():
        torch.manual_seed(3)
        a, _ = solve(True, False, event=noisy)
        torch.manual_seed(3)
        b, _ = solve(False, False, event=noisy)
    close(a.y1, b.y1)
