"""Events: where they happen, what follows them, and the derivatives of both."""

import math

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Event, Status, SteadyState

RULES = (Direct(), Checkpointed(), Checkpointed(3))
D = torch.float64


def names(rule):
    return repr(rule)


each_rule = pytest.mark.parametrize("rule", RULES, ids=names)
tight = dxdt.PID(rtol=1e-9, atol=1e-11)


def number(x, grad=True):
    return torch.tensor(x, dtype=D, requires_grad=grad)


def ball(t, y, g):
    """Height and velocity of a falling ball."""
    return torch.stack([y[..., 1], -g.expand(y.shape[:-1])], -1)


def height(t, y, g):
    return y[..., 0]


def bounce(e):
    """The map that turns the velocity round and keeps a fraction e of it."""
    return lambda t, y, g: torch.stack([torch.zeros_like(y[..., 0]), -e * y[..., 1]], -1)


def drop(h):
    return torch.stack([h, torch.zeros_like(h)], -1)


def gradients(value, *wanted):
    return torch.autograd.grad(value, wanted, retain_graph=True)


# The bouncing ball


@each_rule
def test_a_ball_hits_the_ground_in_time(rule):
    """t* = sqrt(2 h / g) = 1.5811, v* = -sqrt(2 g h) = -12.649, and their derivatives."""
    h, g = number(10.0), number(8.0)
    sol = dxdt.solve(dxdt.ODE(ball), drop(h), (0.0, 5.0), args=(g,), event=Event(height), gradient=rule)
    assert sol.status is Status.EVENT and sol.ok and sol.which.tolist() == [0]
    assert sol.t1 is not None and torch.equal(sol.events[0], sol.t1)
    want = (2 * h / g).sqrt(), -(2 * g * h).sqrt()
    assert abs(sol.t1 - 1.5811388300841898) < 1e-10
    assert abs(sol.ts[-1] - want[0]) < 1e-10
    assert abs(sol.y1[0]) < 1e-10 and abs(sol.y1[1] - want[1]) < 1e-9
    for got, exact in ((sol.t1, want[0]), (sol.y1[1], want[1])):
        for a, b in zip(gradients(got, h, g), gradients(exact, h, g), strict=True):
            assert abs(a - b) < 1e-8
    for a in gradients(sol.y1[0], h, g):
        assert abs(a) < 1e-8  # the ball is on the ground whatever h and g


def landings(h, g, e, count):
    """Times of the first bounces: t_n = sqrt(2 h / g) (1 + 2 (e + e^2 + ... + e^(n-1)))."""
    powers = e ** torch.arange(1, count, dtype=D)
    return (2 * h / g).sqrt() * (1 + 2 * torch.cat([powers.new_zeros(1), powers.cumsum(0)]))


@each_rule
def test_ten_bounces(rule):
    h, g, e = number(10.0), number(8.0), 0.8
    exact = landings(h, g, e, 10)
    sol = dxdt.solve(
        dxdt.ODE(ball),
        drop(h),
        (0.0, float(exact[-1].detach()) + 0.1),
        args=(g,),
        event=Event(height, direction=-1, reset=bounce(e)),
        gradient=rule,
    )
    assert sol.status is Status.SUCCESS and sol.which.tolist() == [0] * 10
    assert (sol.events - exact).abs().max() < 1e-9
    weights = torch.linspace(-1, 2, 10, dtype=D)
    pairs = [(sol.events @ weights, exact @ weights), (sol.events[-1], exact[-1])]
    # After the last bounce: a throw upwards with e^10 of the first velocity.
    rest = float(exact[-1].detach()) + 0.1 - exact[-1]
    speed = e**10 * (2 * g * h).sqrt()
    pairs += [(sol.y1[0], speed * rest - g * rest**2 / 2), (sol.y1[1], speed - g * rest)]
    for got, want in pairs:
        assert abs(got - want) < 1e-8
        for a, b in zip(gradients(got, h, g), gradients(want, h, g), strict=True):
            assert abs(a - b) < 1e-8


@pytest.mark.parametrize("rule", [Direct(), Checkpointed(3)], ids=names)
def test_a_thousand_balls_in_one_solve(rule):
    h = torch.linspace(1.0, 20.0, 1000, dtype=D, requires_grad=True)
    g, e = number(8.0), 0.8
    exact = landings(h[:, None], g, e, 3).T
    sol = dxdt.solve(
        dxdt.ODE(ball),
        drop(h),
        (0.0, exact.detach()[-1] + 0.05),
        args=(g,),
        event=Event(height, -1, bounce(e)),
        per_sample=True,
        gradient=rule,
    )
    assert all(s is Status.SUCCESS for s in sol.status)
    assert sol.events.shape == (3, 1000) and (sol.which == 0).all()
    assert (sol.events - exact).abs().max() < 1e-9
    for a, b in zip(gradients(sol.events.sum(), h, g), gradients(exact.sum(), h, g), strict=True):
        assert (a - b).abs().max() < 1e-8 * (1 + b.abs().max())
    first = dxdt.solve(
        dxdt.ODE(ball),
        drop(h),
        (0.0, 5.0),
        args=(g,),
        event=Event(height),
        per_sample=True,
        gradient=rule,
    )
    assert all(s is Status.EVENT for s in first.status)
    assert (first.t1 - exact[0]).abs().max() < 1e-10
    (a,) = gradients(first.t1.sum(), h)
    assert (a - 1 / (2 * h * g).sqrt()).abs().max() < 1e-8


@each_rule
def test_the_reset_map_has_parameters(rule):
    """The restitution, through args: t_2 = (1 + 2 e) sqrt(2 h / g)."""
    h, g, e = 10.0, number(8.0), number(0.7)

    def field(t, y, g, e):
        return ball(t, y, g)

    sol = dxdt.solve(
        dxdt.ODE(field),
        torch.tensor([h, 0.0], dtype=D),
        (0.0, 4.5),
        args=(g, e),
        event=Event(
            lambda t, y, g, e: y[0],
            -1,
            lambda t, y, g, e: torch.stack([torch.zeros_like(y[0]), -e * y[1]]),
        ),
        gradient=rule,
    )
    fall = (2 * h / g).sqrt()
    for a, b in zip(gradients(sol.events[1], g, e), gradients((1 + 2 * e) * fall, g, e), strict=True):
        assert abs(a - b) < 1e-8


# Where an event is


def circle(t, y, w=None):
    w = 1.0 if w is None else w
    return torch.stack([-y[..., 1], y[..., 0]], -1) * w


def solve_circle(event, t=(0.0, 20.0), y0=(1.0, 0.0), **options):
    options.setdefault("controller", tight)
    return dxdt.solve(dxdt.ODE(circle), torch.tensor(y0, dtype=D), t, event=event, **options)  # y = (cos t, sin t)


PI = torch.pi


@pytest.mark.parametrize(
    ("direction", "times"),
    [(0, [PI / 2, 3 * PI / 2]), (-1, [PI / 2]), (1, [3 * PI / 2])],
)
def test_directions(direction, times):
    """cos t falls through zero at pi / 2 and rises at 3 pi / 2."""
    event = Event(lambda t, y: y[0], direction)
    assert abs(solve_circle(event).t1 - times[0]) < 1e-7
    going_on = Event(lambda t, y: y[0], direction, lambda t, y: y)
    sol = solve_circle(going_on, (0.0, 6.0))
    assert (sol.events - torch.tensor(times)).abs().max() < 1e-7


def test_the_first_of_several_events_counts():
    events = [
        Event(lambda t, y: y[0] + 0.5),  # 2 pi / 3
        Event(lambda t, y: y[1] - 0.5),  # pi / 6
        Event(lambda t, y: t - 0.6),
    ]
    sol = solve_circle(events)
    assert sol.which.tolist() == [1] and abs(sol.t1 - PI / 6) < 1e-7


def test_several_events_go_on_and_one_ends():
    """Both boundaries turn the ball round; a third event ends the game."""
    field = dxdt.ODE(lambda t, y: torch.stack([y[1], torch.zeros_like(y[1])]))

    def turn(t, y):
        return torch.stack([y[0], -y[1]])

    events = [
        Event(lambda t, y: y[0], -1, turn),
        Event(lambda t, y: y[0] - 1, 1, turn),
        Event(lambda t, y: t - 3.2),
    ]
    v = number(1.0)
    sol = dxdt.solve(field, torch.stack([number(0.25), v]), (0.0, 9.0), event=events)
    assert sol.which.tolist() == [1, 0, 1, 2]
    assert (sol.events - torch.tensor([0.75, 1.75, 2.75, 3.2], dtype=D)).abs().max() < 1e-9
    assert abs(sol.y1[0] - 0.55) < 1e-9 and abs(sol.y1[1] + 1) < 1e-12
    # The n-th wall is met at (n - 0.25) / v.
    for n in range(3):
        assert abs(gradients(sol.events[n], v)[0] + n + 0.75) < 1e-8


def test_two_crossings_inside_one_step_are_found():
    """One step over a whole parabola: both ends of the step have the same sign."""
    event = Event(lambda t, y: y + 0.03, checks=10)
    field = dxdt.ODE(lambda t, y: 2 * t - 1)  # y = t^2 - t + 0.2
    sol = dxdt.solve(field, torch.tensor(0.2, dtype=D), (0.0, 1.0), dt=1.0, event=event, solver=dxdt.Tsit5())
    root = 0.5 - (0.25 - 0.23) ** 0.5
    assert abs(sol.t1 - root) < 1e-9
    passing = Event(lambda t, y: y + 0.03, 0, lambda t, y: y + 0, checks=10)
    both = dxdt.solve(field, torch.tensor(0.2, dtype=D), (0.0, 1.0), dt=1.0, event=passing)
    assert (both.events - torch.tensor([root, 1 - root], dtype=D)).abs().max() < 1e-9
    coarse = Event(lambda t, y: y + 0.03, checks=1)
    missed = dxdt.solve(field, torch.tensor(0.2, dtype=D), (0.0, 1.0), dt=1.0, event=coarse)
    assert missed.status is Status.SUCCESS


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_a_zero_at_the_start_is_not_a_crossing(per_sample):
    """sin t is zero at 0, rises, and crosses at pi; thrown balls start on the ground."""
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    y0 = y0[None] if per_sample else y0
    for direction, time in ((0, PI), (-1, PI), (1, 2 * PI)):
        event = Event(lambda t, y: y[..., 1], direction)
        sol = dxdt.solve(dxdt.ODE(circle), y0, (0.0, 9.0), event=event, controller=tight, per_sample=per_sample)
        assert (sol.t1 - time).abs().max() < 1e-7


def test_backwards_in_time():
    """From t = 0 back to t = -pi / 2, where cos meets zero; directions follow the solution."""
    for direction, time in ((0, -PI / 2), (-1, -PI / 2), (1, -3 * PI / 2)):
        sol = solve_circle(Event(lambda t, y: y[0], direction), (0.0, -20.0))
        assert sol.status is Status.EVENT and abs(sol.t1 - time) < 1e-7
    w = number(1.0)
    back = dxdt.solve(
        dxdt.ODE(circle),
        torch.tensor([1.0, 0.0], dtype=D),
        (0.0, -20.0),
        args=(w,),
        event=Event(lambda t, y, w: y[0]),
        controller=tight,
    )
    assert abs(gradients(back.t1, w)[0] - PI / 2) < 1e-6


def test_conditions_of_time_alone():
    sol = solve_circle(Event(lambda t, y: t - 0.7))
    assert abs(sol.t1 - 0.7) < 1e-12
    assert (sol.y1 - torch.tensor([0.7, 0.7]).double().cos()).abs()[0] < 1e-8


def test_boolean_conditions_are_looked_at_after_steps():
    sol = dxdt.solve(
        dxdt.ODE(circle),
        torch.tensor([1.0, 0.0], dtype=D),
        (0.0, 20.0),
        dt=0.125,
        event=Event(lambda t, y: y[0] < 0),
    )
    assert sol.status is Status.EVENT and sol.t1 == 1.625  # the first step beyond pi / 2
    assert sol.stats.accepted == 13


def test_a_boolean_condition_that_is_true_at_the_start_stops_after_the_first_step():
    sol = dxdt.solve(
        dxdt.ODE(circle),
        torch.tensor([1.0, 0.0], dtype=D),
        (0.0, 1.0),
        dt=0.25,
        event=Event(lambda t, y: y[0] > -2),
    )
    assert sol.status is Status.EVENT and sol.t1 == 0.25


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_an_event_that_never_fires_is_no_error(per_sample):
    y0 = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=D)
    event = Event(lambda t, y: (y[..., 0] + 3) if per_sample else (y + 3).sum())
    sol = dxdt.solve(dxdt.ODE(circle), y0, (0.0, 1.0), event=event, per_sample=per_sample)
    status = sol.status if per_sample else [sol.status]
    assert all(s is Status.SUCCESS for s in status)
    assert sol.events is None and sol.which is None
    assert (sol.t1 == 1).all()


# Other things a solve does, with events


def test_save_times_before_and_after_an_event():
    sol = solve_circle(Event(lambda t, y: y[0]), save=dxdt.Save(start=True, times=[0.5, 1.0, 1.5, 2.0], end=True))
    assert sol.reached.tolist() == [True, True, True, True, False, True]
    times = torch.tensor([0, 0.5, 1.0, 1.5, PI / 2], dtype=D)
    values = sol.ys[sol.reached]
    exact = torch.stack([times.cos(), times.sin()], -1)
    assert (values - exact).abs().max() < 1e-6
    assert torch.isnan(sol.ys[4]).all()


def test_save_times_between_resets():
    """The height at many times between bounces is the parabola of its own flight."""
    h, g = number(10.0), number(8.0)
    times = torch.linspace(0.1, 6.0, 40, dtype=D)
    sol = dxdt.solve(
        dxdt.ODE(ball),
        drop(h),
        (0.0, 6.1),
        args=(g,),
        save=times,
        event=Event(height, -1, bounce(0.8)),
    )
    at = landings(h, g, 0.8, 10)
    flight = torch.searchsorted(at.detach(), times)
    since = times - torch.where(flight > 0, at[(flight - 1).clamp(min=0)], 0.0)
    speed = torch.where(flight > 0, 0.8 ** flight.double() * (2 * g * h).sqrt(), 0.0)
    exact = torch.where(flight > 0, 0.0, h) + speed * since - g * since**2 / 2
    assert (sol.ys[:, 0] - exact).abs().max() < 1e-8
    for a, b in zip(gradients(sol.ys[:, 0].sin().sum(), h, g), gradients(exact.sin().sum(), h, g), strict=True):
        assert abs(a - b) < 1e-7


def test_save_steps_with_events():
    sol = solve_circle(Event(lambda t, y: y[0]), save=dxdt.Save(start=True, steps=True))
    assert abs(sol.ts[-1] - PI / 2) < 1e-7 and len(sol.ts) == sol.stats.accepted + 1
    assert (sol.ys - torch.stack([sol.ts.cos(), sol.ts.sin()], -1)).abs().max() < 1e-7


def test_the_dense_path_ends_at_the_event():
    sol = solve_circle(Event(lambda t, y: y[0]), save=dxdt.Save(dense=True))
    assert abs(sol.path.t1 - PI / 2) < 1e-7
    times = torch.linspace(0, 1.57, 7, dtype=D)
    exact = torch.stack([times.cos(), times.sin()], -1)
    assert (sol.path(times) - exact).abs().max() < 1e-6
    with pytest.raises(ValueError, match="outside"):
        sol.path(1.6)


def test_tree_states():
    """A ball as a dictionary, per sample and jointly, with gradients."""

    def field(t, y, g):
        return {"x": y["v"], "v": -g.expand(y["v"].shape)}

    g = number(8.0)
    for per_sample in (False, True):
        h = torch.tensor([[10.0], [5.0]], dtype=D, requires_grad=True)
        h = h if per_sample else h[0]
        sol = dxdt.solve(
            dxdt.ODE(field),
            {"x": h, "v": torch.zeros_like(h)},
            (0.0, 5.0),
            args=(g,),
            per_sample=per_sample,
            event=Event(lambda t, y, g: y["x"].squeeze(-1)),
        )
        exact = (2 * h.squeeze(-1) / g).sqrt()
        assert (sol.t1 - exact).abs().max() < 1e-10
        for a, b in zip(gradients(sol.t1.sum(), h, g), gradients(exact.sum(), h, g), strict=True):
            assert (a - b).abs().max() < 1e-8
        assert sol.y1["x"].shape == h.shape and sol.y1["x"].abs().max() < 1e-9


@each_rule
def test_failing_rows_beside_rows_with_events(rule):
    """Rows: event, failure, no event; the failed one keeps its gradients and the others' clean."""
    y0 = torch.tensor([[1.0], [1.0], [0.2]], dtype=D, requires_grad=True)
    power = torch.tensor([0.0, 4.0, 0.0], dtype=D)
    rate = number(1.0)

    def field(t, y, rate):
        return rate * (1 + 30 * power.sign().unsqueeze(-1) * y ** power.unsqueeze(-1))

    sol = dxdt.solve(
        dxdt.ODE(field),
        y0,
        (0.0, 1.5),
        args=(rate,),
        event=Event(lambda t, y, rate: y[:, 0] - 2, 1),
        per_sample=True,
        max_steps=300,
        throw=False,
        gradient=rule,
    )
    assert sol.status[0] is Status.EVENT and sol.status[2] is Status.SUCCESS
    alone = dxdt.solve(
        dxdt.ODE(lambda t, y, rate: rate * torch.ones_like(y)),
        y0[[0, 2]],
        (0.0, 1.5),
        args=(rate,),
        event=Event(lambda t, y, rate: y[:, 0] - 2, 1),
        per_sample=True,
    )
    keep = torch.tensor([0, 2])
    a = gradients(sol.t1[keep].sum() + sol.y1[keep].sin().sum(), y0, rate)
    b = gradients(alone.t1.sum() + alone.y1.sin().sum(), y0, rate)
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() < 1e-9
    assert a[0][1] == 0


def test_every_row_has_its_own_events():
    """At the same batch size a row does not depend on what the others do."""
    y0 = torch.tensor([[3.0, 0.0], [10.0, 0.0], [5.0, 1.0]], dtype=D)
    g = number(8.0, grad=False)
    options = dict(args=(g,), event=Event(height, -1, bounce(0.8)), per_sample=True, controller=tight)
    full = dxdt.solve(dxdt.ODE(ball), y0, (0.0, 3.0), **options)
    other = y0.clone()
    other[0], other[2] = torch.tensor([1.0, 2.0]), torch.tensor([8.0, -1.0])
    changed = dxdt.solve(dxdt.ODE(ball), other, (0.0, 3.0), **options)
    mine, same = (s.events[:, 1][s.which[:, 1] >= 0] for s in (full, changed))
    assert torch.equal(mine, same) and torch.equal(full.y1[1], changed.y1[1])


# Rules, parameters, second order


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t, y, level, kick):
        turn = torch.stack([-y[..., 1], y[..., 0]], -1)
        return turn + 0.1 * torch.tanh(self.linear(y)) + 0.05 * kick


def through_events(rule, per_sample, fixed):
    torch.manual_seed(1)
    field = Field().double()
    y0 = torch.tensor([[1.0, 0.2], [0.7, -0.4], [1.3, 0.1]], dtype=D, requires_grad=True)
    level, kick = number(0.3), number(0.4)
    start = y0 if per_sample else y0[0]
    event = Event(
        lambda t, y, level, kick: y[..., 0] - level * torch.cos(0.3 * t),
        -1,
        lambda t, y, level, kick: y * (1 + kick * 0.5) + 0.1 * t.unsqueeze(-1) * kick,
    )
    t0, t1 = number(0.1), number(7.1)
    sol = dxdt.solve(
        dxdt.ODE(field),
        start,
        (t0, t1),
        args=(level, kick),
        event=event,
        per_sample=per_sample,
        gradient=rule,
        save=dxdt.Save(times=[1.1, 4.4, 6.7], end=True),
        **(dict(dt=0.35) if fixed else {}),
    )
    assert sol.events.shape[0] >= 2
    seen = torch.where(sol.which >= 0, sol.events, 0.0)
    loss = sol.ys.sin().sum() + seen.cos().sum()
    wanted = [y0, level, kick, t0, t1, *field.parameters()]
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_rules_agree_through_events(per_sample, fixed):
    direct, *others = (through_events(rule, per_sample, fixed) for rule in RULES)
    for other in others:
        for a, b in zip(other, direct, strict=True):
            assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())
    assert all(g.abs().max() > 1e-6 for g in direct[1:])


@each_rule
def test_event_parameters_pass_gradcheck(rule):
    """The level that is watched, through args, on given steps: time and state at the event."""

    def run(y0, level, w):
        event = Event(lambda t, y, level, w: y[0] - level * torch.exp(-0.1 * t))
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y, level, w: circle(t, y, w)),
            y0,
            (0.0, 4.0),
            args=(level, w),
            dt=0.3,
            event=event,
            gradient=rule,
        )
        return sol.t1, sol.y1

    y0 = torch.tensor([1.0, 0.3], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(run, (y0, number(0.4), number(1.1)), eps=1e-6, atol=1e-7)


@each_rule
def test_an_event_in_the_last_step_does_not_move_with_the_end(rule):
    """The step would have ended at t1: its length is the end's, the time of the event is not."""
    t1 = number(2.0)
    sol = dxdt.solve(
        dxdt.ODE(circle),
        torch.tensor([1.0, 0.0], dtype=D, requires_grad=True),
        (0.0, t1),
        dt=0.25,
        event=Event(lambda t, y: y[0] + 0.3),
        gradient=rule,
    )
    assert sol.status is Status.EVENT and sol.t1 > 1.75
    for value in (sol.t1, *sol.y1):
        assert abs(gradients(value, t1)[0]) < 1e-5  # the truncation error's own derivative


def test_gradient_for_the_start_through_an_event():
    """dt*/dt0 = 1 for an autonomous equation; the state at the event does not move."""
    t0 = number(0.3)
    g = number(8.0)
    sol = dxdt.solve(dxdt.ODE(ball), drop(number(10.0)), (t0, 5.0), args=(g,), event=Event(height))
    assert abs(gradients(sol.t1, t0)[0] - 1) < 1e-9
    assert abs(gradients(sol.y1[1], t0)[0]) < 1e-8


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_resets_on_a_given_grid(per_sample):
    """A step that an event cuts is finished before the next time of the grid; rows that are cut
    take more steps than rows that are not, which wait at the end."""
    h = torch.tensor([10.0, 1.0, 3.0], dtype=D) if per_sample else torch.tensor(3.0, dtype=D)
    sol = dxdt.solve(
        dxdt.ODE(ball),
        drop(h),
        (0.0, 1.5),
        controller=dxdt.Grid([0.0, 0.4, 1.0, 1.3, 1.5]),
        args=(number(8.0),),
        event=Event(height, -1, bounce(0.8)),
        per_sample=per_sample,
        save=dxdt.Save(start=True, steps=True),
    )
    exact = landings(h[..., None], number(8.0), 0.8, 2).movedim(-1, 0)
    seen = sol.which >= 0
    assert torch.equal(seen[0], exact[0] < 1.5)
    for n in range(len(sol.events)):
        assert (sol.events[n] - exact[n])[seen[n]].abs().max() < 1e-9
    assert sol.ok if not per_sample else sol.ok.all()
    for time in (0.4, 1.0, 1.3, 1.5):
        assert torch.isclose(sol.ts, torch.tensor(time, dtype=D)).any(0).all()


# Hybrid systems


def test_integrate_and_fire():
    """tau v' = I - v from 0 to the threshold 1: period tau log(I / (I - 1)), differentiated."""
    current = torch.tensor([1.5, 2.0, 3.0, 0.9], dtype=D, requires_grad=True)
    tau = number(0.5)

    def field(t, v, current, tau):
        return (current - v) / tau

    spike = Event(lambda t, v, *_: v - 1, 1, lambda t, v, *_: torch.zeros_like(v))
    period = tau * torch.log(current[:3] / (current[:3] - 1))
    sol = dxdt.solve(
        dxdt.ODE(field),
        torch.zeros(4, dtype=D),
        (0.0, 2.0),
        args=(current, tau),
        event=spike,
        per_sample=True,
        controller=dxdt.PID(rtol=1e-10, atol=1e-12),
    )
    counts = (sol.which >= 0).sum(0)
    assert counts.tolist() == [*(2.0 / period).floor().int().tolist(), 0]
    number_ = torch.arange(1, sol.events.shape[0] + 1)[:, None]
    exact = torch.where(sol.which[:, :3] >= 0, number_ * period, 0.0)
    got = torch.where(sol.which >= 0, sol.events, 0.0)[:, :3]
    assert (got - exact).abs().max() < 1e-8
    for a, b in zip(gradients(got.sum(), current, tau), gradients(exact.sum(), current, tau), strict=True):
        assert (a - b).abs().max() < 1e-6 * (1 + b.abs().max())


# Steady states


def relax(t, y, theta):
    """y' = theta - y - 0.2 tanh(y): its steady state grows with theta."""
    return theta - y - 0.2 * torch.tanh(y)


@each_rule
def test_a_steady_state_is_reached_and_differentiated(rule):
    """dy/dtheta = 1 / (1 + 0.2 (1 - tanh(y)^2)) by the implicit function theorem."""
    theta = number(0.9)
    sol = dxdt.solve(
        dxdt.ODE(relax),
        number(0.0, grad=False),
        (0.0, 1e4),
        args=(theta,),
        event=Event(SteadyState(relax, rtol=1e-8, atol=1e-10)),
        controller=tight,
        gradient=rule,
    )
    assert sol.status is Status.EVENT and sol.t1 < 100
    y = sol.y1.detach()
    assert abs(relax(None, y, theta.detach())) < 1e-7
    exact = 1 / (1 + 0.2 * (1 - torch.tanh(y) ** 2))
    assert abs(gradients(sol.y1, theta)[0] - exact) < 1e-6


def test_gradient_descent_moves_the_steady_state():
    """The toy problem: descent on (y* - 0.76)^2 moves the steady state from 0 to its target."""
    theta = number(0.0)
    optimizer = torch.optim.SGD([theta], lr=0.3)
    for _ in range(35):
        sol = dxdt.solve(
            dxdt.ODE(relax),
            torch.tensor(1.0, dtype=D),
            (0.0, 1e4),
            args=(theta,),
            event=Event(SteadyState(relax)),
        )
        assert sol.status is Status.EVENT
        optimizer.zero_grad()
        ((sol.y1 - 0.76) ** 2).backward()
        optimizer.step()
    assert abs(sol.y1 - 0.76) < 2e-3


def test_steady_states_per_sample():
    theta = torch.tensor([0.1, 0.5, 2.0], dtype=D, requires_grad=True)
    speed = torch.tensor([1.0, 10.0, 0.2], dtype=D)

    def field(t, y, theta):
        return speed[:, None] * relax(t, y, theta[:, None])

    sol = dxdt.solve(
        dxdt.ODE(field),
        torch.zeros(3, 1, dtype=D),
        (0.0, 1e4),
        args=(theta,),
        event=Event(SteadyState(field, rtol=1e-8, atol=1e-9)),
        controller=tight,
        per_sample=True,
    )
    assert all(s is Status.EVENT for s in sol.status)
    assert sol.t1[1] < sol.t1[0] < sol.t1[2]
    y = sol.y1[:, 0]
    exact = 1 / (1 + 0.2 * (1 - torch.tanh(y.detach()) ** 2))
    assert (gradients(y.sum(), theta)[0] - exact).abs().max() < 1e-5


# Bad input


@pytest.mark.parametrize(
    ("condition", "per_sample", "error", "message"),
    [
        (lambda t, y: y, False, ValueError, r"returned shape \(2,\).*one number.*per_sample"),
        (lambda t, y: y, True, ValueError, r"returned shape \(3, 2\).*one number for each"),
        (lambda t, y: y.sum(), True, ValueError, r"returned shape \(\).*one number for each"),
        (lambda t, y: 1.0, False, TypeError, "returned a float.*tensor"),
        (lambda t, y: y[0] * 1j, False, TypeError, "complex.*real part"),
        (lambda t, y: None, False, TypeError, "returned a NoneType"),
    ],
)
def test_conditions_of_the_wrong_kind(condition, per_sample, error, message):
    y0 = torch.ones(3, 2, dtype=D) if per_sample else torch.ones(2, dtype=D)
    with pytest.raises(error, match=message):
        dxdt.solve(dxdt.ODE(circle), y0, (0, 1), event=Event(condition), per_sample=per_sample)


def test_resets_of_the_wrong_kind():
    for reset, error, message in (
        (lambda t, y: y[:1], ValueError, "reset map's value has shape"),
        (lambda t, y: 0.0, TypeError, "reset map's value has a leaf of type float"),
    ):
        with pytest.raises(error, match=message):
            solve_circle(Event(lambda t, y: y[0], 0, reset))


def test_events_of_the_wrong_kind():
    with pytest.raises(ValueError, match="direction=2"):
        Event(height, direction=2)
    with pytest.raises(ValueError, match="checks=0"):
        Event(height, checks=0)
    with pytest.raises(TypeError, match="dxdt.Event"):
        solve_circle([height])
    with pytest.raises(TypeError, match="dxdt.Event"):
        solve_circle(height)


def test_backsolve_refuses_events():
    y0 = torch.tensor([1.0, 0.0], dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match="does not differentiate through events.*Checkpointed"):
        dxdt.solve(dxdt.ODE(circle), y0, (0, 3), event=Event(lambda t, y: y[0]), gradient=Backsolve())


def test_a_condition_with_a_captured_tensor_is_refused_where_it_would_be_lost():
    level = number(0.5)
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    event = Event(lambda t, y: y[0] - level)
    with pytest.raises(ValueError, match="not an input of the solve"):
        dxdt.solve(dxdt.ODE(circle), y0, (0, 3), event=event, gradient=Checkpointed())
    sol = dxdt.solve(dxdt.ODE(circle), y0, (0, 3), event=event, gradient=Checkpointed(), params=[level])
    assert abs(gradients(sol.t1, level)[0] + 1 / torch.sin(sol.t1.detach())) < 1e-3


def test_a_discontinuous_condition_is_located():
    """A jump of the condition is found like a root; its time has no derivative beyond that."""
    sol = solve_circle(Event(lambda t, y: torch.where(y[0] > 0.5, 1.0, -1.0)))
    assert sol.status is Status.EVENT and abs(sol.t1 - PI / 3) < 1e-7


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_an_event_at_the_end_of_the_span(per_sample):
    """It is met once, reset, and the solve has arrived."""
    y0 = torch.tensor([[1.0, 0.0]] if per_sample else [1.0, 0.0], dtype=D)
    event = Event(lambda t, y: t - 1.0 + 0 * y[..., 0], reset=lambda t, y: y + 1)
    sol = dxdt.solve(dxdt.ODE(circle), y0, (0.0, 1.0), event=event, controller=tight, per_sample=per_sample)
    status = sol.status[0] if per_sample else sol.status
    assert status is Status.SUCCESS and len(sol.events) == 1 and (sol.t1 == 1).all()
    assert (sol.y1 - torch.tensor([1.0, 1.0]).double().cos() - 1).abs().flatten()[0] < 1e-7


# --- several events in one step


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop", [5.0, 0.1, 2.5])
def test_a_boolean_is_looked_at_where_a_resetting_event_ends_a_step(stop, dtype, per_sample, compile):
    """A bouncing ball: steps end at the bounces, and between them hardly ever."""
    fall = lambda t, y: torch.stack([y[..., 1], torch.full_like(y[..., 1], -9.81)], -1)  # noqa: E731
    bounce = dxdt.Event(
        lambda t, y: y[..., 0], -1, reset=lambda t, y: torch.stack([y[..., 0].abs(), -0.9 * y[..., 1]], -1)
    )
    late = dxdt.Event(lambda t, y: t > stop)
    y0 = torch.tensor([1.0, 0.0], dtype=dtype)
    y0 = y0.expand(2, 2) if per_sample else y0
    for events, which in (([bounce, late], 1), ([late, bounce], 0)):
        sol = dxdt.solve(dxdt.ODE(fall), y0, (0.0, 20.0), event=events, per_sample=per_sample, compile=compile)
        # One step at most goes beyond, and no bounce lies between.
        assert (sol.t1 > stop).all() and (sol.t1 < stop + 0.95).all()
        times = sol.events[: int((sol.which[..., 0] if per_sample else sol.which).ne(-1).sum())]
        assert (times[:-1] <= stop).all() and (sol.which.reshape(len(sol.which), -1)[len(times) - 1] == which).all()


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("solver", [dxdt.Tsit5(), dxdt.Dopri8()])
@pytest.mark.parametrize(("level", "tol"), [(0.9999, 1e-6), (0.999, 1e-5), (0.99, 1e-3)])
def test_two_crossings_in_one_step(level, tol, solver, per_sample, compile):
    """A condition that is below zero for 0.03 to 0.3 of a time unit, in steps of 0.5 to 5."""
    time = math.pi - math.acos(level)
    turn = lambda t, y: torch.stack([-y[..., 1], y[..., 0]], -1)  # noqa: E731
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    y0 = y0.expand(2, 2) if per_sample else y0
    event = dxdt.Event(lambda t, y: y[..., 0] + level)
    sol = dxdt.solve(
        dxdt.ODE(turn),
        y0,
        (0.0, 20.0),
        event=event,
        controller=dxdt.PID(tol, tol),
        solver=solver,
        per_sample=per_sample,
        compile=compile,
    )
    assert (sol.t1 - time).abs().max() < 0.06
