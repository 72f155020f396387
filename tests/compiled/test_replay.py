"""Solves whose turns are replayed, as on a CUDA device, here by calling each turn again.

All but the capture itself is what runs there: the program in parts, tensors that are held, turns past
the end, clocks that cross to the host as copies, sizes that are rounded up.
"""

import importlib
import threading
import warnings
from dataclasses import dataclass, field

import pytest
import torch

import dxdt
from dxdt import ODE, PID, SDE, Backsolve, Bosh3, Checkpointed, Clip, Event, Grid, Heun, Increments, Save
from dxdt.compiler.backend import inner, traced
from dxdt.compiler.cuda import Recent, Repetition, Replayed, take_apart
from dxdt.ops.tree import leaves
from nets import Swung

CLOCK, ENGINE, FUNCTIONS, GRADIENT, REVERSE, TRANSFER, REPLAY = (
    importlib.import_module(f"dxdt.{name}")
    for name in (
        "ops.times",
        "diffeq.programs.engine",
        "compiler.compile",
        "diffeq.compiled.checkpointed",
        "diffeq.programs.pullback",
        "diffeq.programs.transfer",
        "compiler.cuda.replay",
    )
)
F64, CPU = torch.float64, torch.device("cpu")


@dataclass
class Lane:
    """A device that replays by repetition, and what was done on it."""

    compiler: object = lambda graph, examples: graph
    repetition: Repetition = field(default_factory=Repetition)
    recent: Recent = field(default_factory=Recent)
    made: list[Replayed] = field(default_factory=list)
    captures: int = 0
    fails: bool = False

    def program(self, graph, inputs):
        self.made.append(Replayed(take_apart(graph, CPU), self.compiler, self, self.recent))
        return self.made[-1]

    def __call__(self, work):
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore about it")
        return self.repetition(work)

    def alone(self):
        return self.repetition.alone()

    def holding(self):
        return self.repetition.holding()

    def signal(self, flag):
        return self.repetition.signal(flag)

    def turns(self):
        return [held.turns for program in self.made for held in program.kept.values()]


@pytest.fixture
def lane(fresh, monkeypatch):
    lane = Lane()

    def copied(values, device=CPU):
        return [x.clone() for x in CLOCK._moved(values, device)]

    monkeypatch.setattr(FUNCTIONS, "backend", lambda graph, inputs: traced(graph, inputs, lane.program))
    for module, name in ((ENGINE, "hosted"), (TRANSFER, "hosted"), (TRANSFER, "placed"), (GRADIENT, "placed")):
        monkeypatch.setattr(module, name, copied)
    monkeypatch.setattr(REVERSE, "replays", lambda device: True)
    monkeypatch.setattr(REPLAY, "_warned", set())
    return lane


def start(scale=1.0):
    return scale * torch.linspace(-1, 1.2, 6, dtype=F64).reshape(3, 2)


SPANS = (torch.tensor([0.0, 0.5, 1.0], dtype=F64), torch.tensor([1.5, -0.5, 1.1], dtype=F64))
QUICK = dict(solver=Heun(), controller=PID(rtol=1e-3, atol=1e-4))
ADAPTIVE = dict(solver=Bosh3(), controller=PID(rtol=1e-5, atol=1e-6))
AT_ENDS = torch.stack([s + (e - s) * torch.linspace(0, 1, 4, dtype=F64) for s, e in zip(*SPANS, strict=True)], 1)
# Name: span and options; the tolerance is of rounding, since steps are the same.
CASES = {
    "backwards-grid-every": (
        (1.0, 0.0),
        dict(controller=Grid(torch.linspace(1, 0, 12)), save=Save(steps=True, every=2)),
    ),
    "spans-times": (SPANS, dict(**QUICK, per_sample=True, save=AT_ENDS)),
    "two-chunks": ((0.0, 1.0), dict(solver=dxdt.Euler(), dt=1 / 20, save=torch.linspace(0, 1, 7))),
    "dense": ((0.0, 1.0), dict(**ADAPTIVE, save=Save(dense=True, end=True))),
    "clipped-jumps": (
        (0.0, 1.0),
        dict(solver=Bosh3(), controller=Clip(PID(), steps=[0.3], jumps=[0.6]), per_sample=True),
    ),
    "end-only": ((0.0, 1.0), dict(per_sample=True)),
}
SHORT = {"two-chunks": 16}  # steps to a chunk, where it is not the usual number
SLOW = {"dense", "clipped-jumps", "end-only", "backwards-grid-every"}


def value(solution):
    """A number to which every saved value and the path contribute."""
    total = sum(
        (torch.nan_to_num(x) * torch.linspace(0.5, 1.5, x.numel()).reshape(x.shape)).sum() for x in leaves(solution.ys)
    )
    if solution.path is not None:
        total = total + solution.path(torch.tensor(0.45, dtype=F64)).square().sum()
    return total


def pulled(net, rate, y0, span, compile, gradient=None, **options):
    """A solution and its gradients."""
    y0, rate = y0.clone().requires_grad_(), torch.tensor(rate, dtype=F64, requires_grad=True)
    if gradient is None and not compile:
        gradient = Checkpointed()
    sol = dxdt.solve(ODE(net), y0, span, args=(rate,), compile=compile, gradient=gradient, **options)
    return sol, torch.autograd.grad(value(sol), (y0, rate, *net.parameters()))


def expect_same(a, b, tolerance=1e-12):
    """Solutions and gradients that differ by rounding."""
    (one, grads), (other, wanted) = a, b
    assert one.status == other.status
    for name in ("steps", "accepted", "rejected"):
        assert torch.equal(*(torch.as_tensor(getattr(x.stats, name)) for x in (one, other))), name
    assert torch.equal(one.reached, other.reached)
    for x, y in zip(leaves(one.ys), leaves(other.ys), strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
    for x, y in zip(grads, wanted, strict=True):
        assert torch.allclose(x, y, rtol=100 * tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_replayed_is_eager(name, lane, strict, monkeypatch):
    """Values and gradients, three times: the first is not captured, the others have other inputs."""
    monkeypatch.setattr(ENGINE, "_SLOTS", SHORT.get(name, ENGINE._SLOTS))
    span, options = CASES[name]
    results = []
    for scale, rate, seed in ((1.0, 0.8, 2), (0.7, 0.9, 2), (0.9, 0.6, 3)):
        net = Swung(seed)
        a, b = (pulled(net, rate, start(scale), span, c, **options) for c in (True, False))
        expect_same(a, b)
        results.append((a[0].ys, [x.clone() for x in leaves(a[0].ys)]))
    # A size that is met once is not captured.
    assert len(lane.made) <= 3 and 0 < lane.captures <= 2 * len(lane.turns())
    for ys, then in results:
        assert all(torch.equal(x, y) for x, y in zip(leaves(ys), then, strict=True)), "results are in held tensors"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_generated_turns_are_eager(name, lane, strict, monkeypatch):
    """The same with turns that are compiled by torch."""
    lane.compiler = inner
    monkeypatch.setattr(ENGINE, "_SLOTS", SHORT.get(name, ENGINE._SLOTS))
    span, options = CASES[name]
    for scale in (1.0, 0.7):
        expect_same(*(pulled(Swung(), 0.8, start(scale), span, c, **options) for c in (True, False)), 1e-11)


@pytest.mark.slow
def test_backsolve(lane, strict):
    """The adjoint, too, is a loop that is replayed."""
    options = dict(**ADAPTIVE, per_sample=True, save=[0.4, 1.0], gradient=Backsolve())
    for scale in (1.0, 0.7, 0.9):
        expect_same(*(pulled(Swung(), 0.8, start(scale), (0.0, 1.0), c, **options) for c in (True, False)), 1e-11)
    assert len(lane.made) == 2


def test_events(lane, strict):
    def field(t, y):
        return torch.stack([y[..., 1], -9.81 + 0 * y[..., 1]], -1)

    def solve(compile, height):
        y0 = torch.stack([height, 0 * height], -1).requires_grad_()
        event = Event(lambda t, y: y[..., 0])
        sol = dxdt.solve(
            ODE(field),
            y0,
            (0.0, 2.0),
            event=event,
            per_sample=True,
            compile=compile,
            save=[0.2, 0.4],
            solver=Heun(),
            dt=0.1,
        )
        return sol, torch.autograd.grad(sol.t1.sum() + torch.nan_to_num(sol.ys).sum(), y0)

    for heights in ([1.0, 5.0, 40.0], [2.0, 3.0, 1.0]):
        a, b = (solve(c, torch.tensor(heights, dtype=F64)) for c in (True, False))
        expect_same(a, b, 1e-10)
        assert torch.allclose(a[0].t1, b[0].t1, rtol=1e-12)


@pytest.mark.slow
def test_noise(lane, strict):
    """Normals that are drawn ahead, for a number of steps that is rounded up."""

    def solve(compile, seed):
        y0 = start().requires_grad_()
        equation = SDE(lambda t, y: -y, lambda t, y: 0.1 + 0.2 * y)
        driver = Increments(seed)
        options = dict(solver=dxdt.EulerMaruyama(), dt=0.05, per_sample=True, save=[0.5, 1.0])
        gradient = None if compile else Checkpointed()
        sol = dxdt.solve(equation, y0, (0.0, 1.0), driver=driver, compile=compile, gradient=gradient, **options)
        return sol, torch.autograd.grad(sol.ys.sum(), y0)

    for seed in (1, 2):
        expect_same(solve(True, seed), solve(False, seed))


@pytest.mark.slow
def test_training_captures_once(lane, strict):
    """A hundred steps of training with solves of different lengths."""
    net = Swung()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02)
    losses, lengths = [], set()
    for i in range(100):
        sol = dxdt.solve(
            ODE(net), start(), (0.0, 0.5 + 0.02 * i), args=(torch.tensor(1.0, dtype=F64),), compile=True, save=[0.3]
        )
        lengths.add(sol.stats.accepted)
        loss = sol.ys.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and len(lengths) > 3
    assert len(lane.made) == 2 and lane.captures == 4


def test_large_inputs_are_read_where_they_are(lane, strict, monkeypatch):
    """Until they move, from when on they are copied."""
    monkeypatch.setattr(REPLAY, "_SMALL", 0)
    net, y0 = Swung().requires_grad_(False), start()
    kept = []

    def solve():
        rate = torch.tensor(0.5, dtype=F64)
        kept.append(rate)
        a, b = (
            dxdt.solve(ODE(net), y0, (0.0, 1.0), args=(rate,), compile=c, dt=0.1, solver=Heun()) for c in (True, False)
        )
        assert torch.allclose(a.ys, b.ys, rtol=1e-12)

    for _ in range(4):
        solve()
    (held,) = lane.made[0].kept.values()
    addresses = set(held.known.values())
    assert {p.data_ptr() for p in net.parameters()} <= addresses
    captures = lane.captures
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    solve()
    assert lane.captures == captures, "values may change"
    kept.append([p.data for p in net.parameters()])
    for p in net.parameters():
        p.data = p.data * 1.1
    solve()
    assert lane.captures == captures + 2, "places may not"
    kept.append([p.data for p in net.parameters()])
    for p in net.parameters():
        p.data = p.data * 1.1
    solve()
    assert lane.captures == captures + 2 and len(lane.made) == 1


def test_turns_that_are_queued(lane, strict, monkeypatch):
    """Two groups at first; as many turns as last time from then on, and groups where they are not enough."""
    queued = []
    walk = REPLAY._Held._queue
    monkeypatch.setattr(REPLAY._Held, "_queue", lambda self, turns: (queued.append(turns), walk(self, turns))[1])

    def solve(steps):
        queued.clear()
        sol = dxdt.solve(ODE(lambda t, y: -y), start(), (0.0, 1.0), dt=1 / steps, solver=Heun(), compile=True)
        assert sol.stats.steps == steps
        return list(queued)

    assert solve(5) == [8, 8] and solve(5) == [5]
    assert solve(20) == [5, 8, 8, 8]
    assert solve(20) == [20] and solve(16) == [20] and solve(16) == [16]


def test_what_cannot_be_captured(lane, strict):
    """One warning, and the answer by the same compiled turns."""
    lane.fails = True
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for scale in (1.0, 0.7, 0.9):
            options = dict(dt=0.2, solver=Heun())
            a, b = (
                dxdt.solve(ODE(lambda t, y: -y), start(scale), (0.0, 1.0), compile=c, **options) for c in (True, False)
            )
            assert torch.allclose(a.ys, b.ys, rtol=1e-12)
    said = [str(w.message) for w in seen]
    assert len(said) == 1 and "stream is capturing" in said[0] and "more about it" not in said[0], said


@pytest.mark.slow
def test_threads_take_turns(lane, strict):
    """Solves of one program in several threads do not mix."""
    rates, found = [0.1 * i for i in range(8)], {}

    def solve(rate, compile=True):
        options = dict(dt=0.02, solver=Heun(), compile=compile)
        return dxdt.solve(ODE(lambda t, y, r: -r * y), start(), (0.0, 1.0), args=(torch.tensor(rate),), **options).ys

    def work(rate):
        found[rate] = [solve(rate) for _ in range(3)]

    solve(1.0)
    threads = [threading.Thread(target=work, args=(r,)) for r in rates]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for rate in rates:
        for ys in found[rate]:
            assert torch.allclose(ys, solve(rate, False), rtol=1e-12)


@pytest.mark.slow
def test_programs_that_are_not_used_let_go(lane, strict):
    lane.recent.most = 2
    for size in (2, 3, 4, 5):
        for _ in range(2):
            dxdt.solve(ODE(lambda t, y: -y), torch.ones(size), (0.0, 1.0), dt=0.5, solver=Heun(), compile=True)
    assert len(lane.turns()) == 2 and len(lane.recent.order) == 2
    y0 = torch.full((2,), 2.0)
    a, b = (dxdt.solve(ODE(lambda t, y: -y), y0, (0.0, 1.0), dt=0.5, solver=Heun(), compile=c) for c in (True, False))
    assert torch.allclose(a.ys, b.ys)
