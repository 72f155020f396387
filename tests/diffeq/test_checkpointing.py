"""Checkpointing online: how often steps are taken again, equal gradients, and live bytes."""

import functools

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Event
from dxdt.diffeq.gradients.checkpoint_slots import OnlineSlots, least_recomputations, split
from memory import LiveBytes

D = torch.float64
SLOTS = (1, 3, 16)


# Counts


def task_of(value):
    """The recorded solve behind a result of it."""
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if hasattr(node, "task"):
            return node.task
        stack.extend(n for n, _ in node.next_functions if n is not None)
    raise AssertionError("no recorded solve")


def taken_again(steps: int, slots: int) -> int:
    """Steps formed again on the way back of a real solve of this many steps."""
    y0 = torch.tensor(1.0, dtype=D, requires_grad=True)
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: -y),
        y0,
        (0.0, 1.0),
        dt=1 / steps,
        solver=dxdt.Euler(),
        gradient=Checkpointed(slots),
    )
    assert sol.stats.steps == steps
    task = task_of(sol.y1)
    (got,) = torch.autograd.grad(sol.y1, y0)
    assert abs(got - (1 - 1 / steps) ** steps) < 1e-12
    return task.again


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 16])
def test_each_step_is_taken_again_once_while_there_are_few(slots):
    """Exactly N - c while N < (c + 1)(c + 2) / 2; none where all fit."""
    bound = (slots + 1) * (slots + 2) // 2
    counts = range(1, bound) if bound < 30 else (1, 2, slots, slots + 1, bound // 2, bound - 1)
    for steps in counts:
        assert taken_again(steps, slots) == max(0, steps - slots)


def offline(steps: int, slots: int) -> int:
    """Fewest advances that reverse this many steps from their start: every choice tried."""

    @functools.cache
    def least(n: int, c: int) -> int:
        if n == 1:
            return 0
        if c == 1:
            return n * (n - 1) // 2
        return min(m + least(n - m, c - 1) + least(m, c) for m in range(1, n))

    return least(steps, slots)


def test_the_least_number_is_that_of_brute_force():
    for slots in (1, 2, 3, 4, 5, 8):
        for steps in range(1, 41):
            assert least_recomputations(steps, slots) == offline(steps, slots), (steps, slots)


def test_the_split_reaches_the_least_number():
    """Following ``split`` costs what the optimum costs, whatever the number of steps."""

    @functools.cache
    def cost(n: int, c: int) -> int:
        if n == 1:
            return 0
        if c == 1:
            return n * (n - 1) // 2
        m = split(n, c)
        return m + cost(n - m, c - 1) + cost(m, c)

    for slots in (2, 3, 5, 8):
        for steps in range(2, 120):
            assert cost(steps, slots) == least_recomputations(steps, slots), (steps, slots)


def test_online_is_close_to_offline():
    """Beyond the range of one repetition: beside the optimum that knows N beforehand.

    An offline schedule lays its checkpoints during the forward pass of N - 1 steps, so the steps
    that it takes again are those beyond N - 1.
    """
    print(f"\n{'steps':>6}{'slots':>6}{'again':>8}{'offline':>9}{'ratio':>7}")
    for slots, counts in ((3, (20, 60, 120)), (5, (40, 100, 200)), (16, (152, 153, 300, 500))):
        for steps in counts:
            again = taken_again(steps, slots)
            best = least_recomputations(steps, slots) - (steps - 1)
            print(f"{steps:>6}{slots:>6}{again:>8}{best:>9}{again / best:>7.2f}")
            assert best <= again <= 1.7 * best + slots


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_slots_hold_what_they_may(slots):
    """Never more than the slots, the start always among them, the newest where it can be."""
    online = OnlineSlots(slots)
    kept: set[int] = set()
    for index in range(500):
        gone = online.offer(index)
        kept.add(index)
        if gone is not None:
            kept.remove(gone)
        assert len(kept) <= slots and 0 in kept
        assert sorted(kept) == online.kept


def test_slots_must_be_positive():
    for slots in (0, -3):
        with pytest.raises(ValueError, match="keep at least one state"):
            Checkpointed(slots)


# Gradients


class Net(nn.Module):
    def __init__(self, n: int = 3, width: int = 8):
        super().__init__()
        self.lower, self.upper = nn.Linear(n, width), nn.Linear(width, n)

    def forward(self, t, y, force=0.0):
        wave = torch.sin(3 * t).unsqueeze(-1)
        return self.upper(torch.tanh(self.lower(y))) - 0.3 * y + force * wave


def gradients(rule, per_sample, fixed, kind):
    torch.manual_seed(0)
    net = Net().double()
    y0 = torch.randn(4, 3, dtype=D, requires_grad=True)
    force = torch.randn(3, dtype=D, requires_grad=True)
    ends = torch.tensor([1.0, 2.1, 0.4, 3.0], dtype=D)
    t1 = (ends if per_sample else ends[1]).requires_grad_()
    times = torch.tensor([0.21, 0.55, 0.9], dtype=D, requires_grad=True)
    saves = times[:, None] * t1.detach() if per_sample else times * t1.detach()
    if kind == "times":
        save = dxdt.Save(times=saves, end=True)
    else:
        save = dxdt.Save(dense=True, end=True)
    event = None
    if kind == "resets":
        event = Event(
            lambda t, y, f: 0.1 * y.flatten(t.dim()).sum(-1) + 2 * torch.sin(4 * t),
            1,
            lambda t, y, f: 0.9 * y + 0.1 * f**2 * (1 + t.unsqueeze(-1)),
        )
    sol = dxdt.solve(
        dxdt.ODE(net),
        y0,
        (0.0, t1),
        args=(force,),
        save=save,
        event=event,
        gradient=rule,
        per_sample=per_sample,
        **(dict(dt=0.13) if fixed else dict(controller=dxdt.PID(rtol=1e-6, atol=1e-8))),
    )
    value = sol.ys.sin().sum()
    wanted = [y0, force, t1, *net.parameters()]
    if kind == "times":
        wanted.append(times)
    else:
        value = value + sol.path(0.3 if not per_sample else [0.3]).cos().sum()
    if sol.events is not None:
        value = value + torch.where(sol.which >= 0, sol.events, 0.0).sum()
    return [value.detach(), *torch.autograd.grad(value, wanted)]


@pytest.mark.parametrize("kind", ["times", "dense", "resets"])
@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_gradients_do_not_depend_on_the_slots(per_sample, fixed, kind):
    """All states kept or a few: the same bits; and those of Direct to rounding."""
    stored = gradients(Checkpointed(), per_sample, fixed, kind)
    direct = gradients(Direct(), per_sample, fixed, kind)
    for slots in SLOTS:
        few = gradients(Checkpointed(slots), per_sample, fixed, kind)
        for a, b in zip(few, stored, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(stored, direct, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


@pytest.mark.parametrize("slots", SLOTS)
def test_rows_that_fail_or_end_early(slots):
    """Parked rows are parked again on the way back, at the same places."""

    def run(rule):
        y0 = torch.full((4, 2), 0.4, dtype=D, requires_grad=True)
        theta = torch.tensor([0.5, 0.8], dtype=D, requires_grad=True)
        blow = torch.tensor([0.0, 0.0, 40.0, 0.0], dtype=D)[:, None]
        edge = torch.tensor([9.0, 9.0, 9.0, 0.5], dtype=D)
        t1 = torch.tensor([1.0, 0.2, 1.0, 1.0], dtype=D)

        def field(t, y, theta):
            bent = torch.sqrt(edge - t).unsqueeze(-1) * theta
            return torch.tanh(y * theta) + blow * y**3 * theta + 0.1 * bent

        sol = dxdt.solve(
            dxdt.ODE(field),
            y0,
            (0.0, t1),
            args=(theta,),
            gradient=rule,
            per_sample=True,
            throw=False,
            controller=dxdt.PID(rtol=1e-5, atol=1e-7),
            max_steps=60,
        )
        assert sol.ok.tolist() == [True, True, False, False]
        return torch.autograd.grad(torch.where(sol.reached[..., None], sol.ys, 0.0).sum(), [y0, theta])

    for a, b in zip(run(Checkpointed(slots)), run(Direct()), strict=True):
        assert torch.isfinite(a).all() and (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("slots", [2, 5, None])
def test_double_backward(slots):
    """Second derivatives are taken through the whole record, with or without slots."""
    net = Net(2, 4).double()

    def run(y0, force):
        return dxdt.solve(dxdt.ODE(net), y0, (0, 1), args=(force,), dt=0.25, gradient=Checkpointed(slots)).y1

    y0, force = (torch.randn(2, dtype=D, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradgradcheck(run, (y0, force), atol=1e-7)


# Memory

WIDTH = 64
RULES = {
    "Direct()": Direct(),
    "Checkpointed()": Checkpointed(),
    "Checkpointed(slots=16)": Checkpointed(16),
    "Backsolve()": Backsolve(),
}


def live_bytes(rule, steps):
    """Bytes kept after the forward pass, and most alive at any time of both passes."""
    net = Net(WIDTH, WIDTH).double()
    y0 = torch.randn(1, WIDTH, dtype=D, requires_grad=True)
    live = LiveBytes()
    with live:
        sol = dxdt.solve(
            dxdt.ODE(net),
            y0,
            (0.0, 1.0),
            dt=1 / steps,
            solver=dxdt.Heun(),
            gradient=rule,
            max_steps=steps + 1,
        )
        assert sol.stats.steps == steps
        loss, kept = sol.y1.sum(), live.now
        loss.backward()
    return kept, live.peak


def check_live_bytes(counts):
    state = WIDTH * 8
    print(f"\n{'rule':24}{'steps':>8}{'kept':>12}{'peak':>12}{'peak a step':>13}")
    for name, rule in RULES.items():
        rows = [(n, *live_bytes(rule, n)) for n in counts]
        for n, kept, peak in rows:
            print(f"{name:24}{n:>8}{kept:>12,}{peak:>12,}{peak / n:>13,.1f}")
        (n0, kept0, peak0), (n1, kept1, peak1) = rows[0], rows[-1]
        kept_growth = (kept1 - kept0) / (n1 - n0)
        peak_growth = (peak1 - peak0) / (n1 - n0)
        if name == "Direct()":
            assert kept_growth >= 4 * state  # two stages: input and activations of each
        elif name == "Checkpointed()":
            assert 0.9 * state <= peak_growth <= 1.1 * state and kept1 <= peak1
        elif name == "Checkpointed(slots=16)":
            # On the way back the states of the forward pass stay, and as many are formed again.
            assert kept1 == kept0 <= 17 * state
            assert peak1 <= peak0 + 16 * state
        else:
            assert kept1 == kept0 and peak1 <= peak0 + 2 * state


def test_live_bytes_against_steps():
    """Direct: all graphs. Stored: states. Slots and backsolve: constant."""
    check_live_bytes((20, 60))


@pytest.mark.slow
def test_live_bytes_against_steps_up_to_ten_thousand():
    check_live_bytes((100, 1000, 10_000))
