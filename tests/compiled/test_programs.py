"""One program serves all that differs in values only, and programs hold on to nothing of the user's."""

import gc
import importlib
import weakref
from pathlib import Path

import pytest
import torch

import dxdt
from dxdt import ODE, PID, Euler, Heun

ENGINE = importlib.import_module("dxdt.diffeq.programs.engine")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.linear(y)) - y


def pull_to(target):
    return lambda t, y: target[..., :3] - y


def solve(field, y0=None, t=(0.0, 1.0), **options):
    y0 = torch.ones(2, 3) if y0 is None else y0
    options = {"solver": Euler(), "dt": 0.25, "compile": True, **options}
    return dxdt.solve(ODE(field), y0, t, **options)


def test_training_is_one_program(traced, strict):
    """Thirty steps of training, with solves of different lengths: one forward, one backward."""
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    lengths, losses = set(), []
    for i in range(30):
        sol = solve(net, t=(0.0, 0.5 + 0.06 * i), save=[0.1, 0.5])
        lengths.add(sol.stats.accepted)
        loss = sol.ys.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert len(traced) == 2 and len(lengths) > 5
    assert losses[-1] < losses[0]


def test_fresh_lambdas_share_a_program(traced, strict):
    ends = set()
    for i in range(20):
        ends.add(float(solve(pull_to(torch.full((3,), i / 20))).ys.sum()))
    assert len(traced) == 1 and len(ends) == 20


def test_modules_of_a_class_share_a_program(traced, strict):
    nets = [Net().requires_grad_(False) for _ in range(20)]
    for net in nets:
        sol, eager = solve(net), solve(net, compile=False)
        assert torch.allclose(sol.ys, eager.ys, atol=1e-5)
    assert len(traced) == 1


def test_what_varies_is_an_input(traced, strict):
    """Tolerances, spans, directions, arguments, limits, save times and first steps."""

    def field(t, y, a):
        return torch.sin(t) - a * y

    for i in (0, 9, 19):
        changed = dict(
            solver=Heun(),
            t=(0.1 * i, 2.0 - 0.2 * i),
            dt=None,
            controller=PID(rtol=10 ** (-2 - i / 10), atol=1e-5 * (i + 1)),
            args=(torch.tensor(0.1 * i),),
            max_steps=500 + i,
            save=torch.linspace(0.1 * i, 2.0 - 0.2 * i, 2 + i, dtype=torch.float64),
        )
        sol, eager = solve(field, **changed), solve(field, **changed, compile=False)
        assert sol.stats.steps == eager.stats.steps
        assert torch.allclose(sol.ys, eager.ys, atol=1e-6)
    for i in range(0, 20, 4):
        solve(field, args=(torch.tensor(1.0),), dt=0.1 + i / 100, save=[0.5])
    for i in (2, 9):
        solve(field, t=torch.linspace(0, 1, i), dt=None, solver=Heun(), args=(torch.tensor(1.0),), save=[0.5])
    assert len(traced) <= 4


def test_what_a_field_holds_is_seen(traced):
    """Fields of the same code that hold other Python values never run each other's program."""

    def make(number, tensor, words, net):
        def field(t, y, power=number):
            other = 1.0 if "plus" in words else -1.0
            return other * tensor * torch.tanh(net.linear(y)) * power - y

        return field

    class Scaled(Net):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, t, y):
            return super().forward(t, y) * self.scale

    nets = Net().requires_grad_(False), Net().requires_grad_(False)
    fields = [
        make(n, torch.tensor(x), w, net)
        for n, x, w, net in (
            (1.0, 1.0, ["plus"], nets[0]),
            (2.0, 1.0, ["plus"], nets[0]),
            (1.0, 3.0, ["plus"], nets[0]),
            (1.0, 1.0, ["minus"], nets[0]),
            (1.0, 1.0, ["plus"], nets[1]),
        )
    ]
    fields += [Scaled(1.0).requires_grad_(False), Scaled(2.0).requires_grad_(False)]
    for field in (*fields, *fields):
        assert torch.allclose(solve(field).ys, solve(field, compile=False).ys, atol=1e-6)


def test_training_mode_and_frozen_parameters_are_seen(traced, strict):
    class Moody(Net):
        def forward(self, t, y):
            return super().forward(t, y) * (2.0 if self.training else 1.0)

    net = Moody()
    for mode, wanted in ((True, True), (False, True), (False, False), (True, True)):
        net.train(mode).requires_grad_(wanted)
        assert torch.allclose(solve(net).ys, solve(net, compile=False).ys, atol=1e-6)
    assert len(traced) <= 3


def test_programs_let_go_of_fields(traced, strict):
    """A field, its module, its arguments and its outputs die with the user's last reference."""
    net, arg, y0 = Net(), torch.ones(3), torch.ones(2, 3, requires_grad=True)

    def field(t, y, a):
        return net(t, y) * a

    sol = solve(field, y0, args=(arg,), save=dxdt.Save(dense=True, end=True))
    sol.ys.sum().backward()
    kept = [weakref.ref(x) for x in (net, net.linear.weight, field, arg, y0, sol.ys)]
    del net, arg, y0, sol, field
    gc.collect()
    assert [r() is None for r in kept] == [True] * len(kept)


def test_many_fields_leave_nothing(traced, strict):
    large = []
    for i in range(100):
        weight = torch.full((2, 10_000), i / 100)
        large.append(weakref.ref(weight))
        solve(pull_to(weight))
    del weight
    gc.collect()
    assert len(traced) == 1 and not any(r() is not None for r in large)


@pytest.mark.slow
def test_classes_leave_their_programs_only(traced, strict):
    large = []
    for i in range(20):

        class Large(Net):
            number = i

            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(8, 8))

            def forward(self, t, y):
                return super().forward(t, y) + self.weight[:2, :3] * self.number

        net = Large()
        solve(net).ys.sum().backward()
        large.append(weakref.ref(net.weight))
        del net
    gc.collect()
    assert not any(r() is not None for r in large)


def test_programs_at_hand_are_called_without_torchs_wrapper(traced, strict, monkeypatch):
    """Until a condition fails, or torch has thrown them away; equal tolerances are two inputs."""
    fine, equal = (dict(solver=Heun(), dt=None, controller=PID(rtol=r, atol=1e-5)) for r in (1e-4, 1e-5))
    solve(decay("1.0"), **equal)
    (program,) = ENGINE._program.kept.values()
    first = program.functions.made["first"]
    wrapper, called = first._compiled, []
    monkeypatch.setattr(first, "_compiled", lambda *given: called.append(given) or wrapper(*given))
    solve(decay("1.0"), **fine)
    assert not called
    for _ in range(2):
        given, eager = (solve(decay("2.0"), **fine, compile=c) for c in (True, False))
        assert len(called) == 1 and torch.allclose(given.ys, eager.ys, atol=1e-6)
    torch._dynamo.reset()
    solve(decay("2.0"), **equal)
    assert len(called) == 2 and len(traced) == 3


def test_where_torch_keeps_programs_otherwise_its_wrapper_serves(traced, strict, monkeypatch):
    monkeypatch.delattr(importlib.import_module("dxdt.compiler.direct_dispatch").frames, "_debug_get_cache_entry_list")
    answers = [solve(decay("1.0"), dt=0.1, compile=c).ys for c in (True, True, False)]
    assert len(traced) == 1 and torch.allclose(answers[1], answers[2])


def decay(rate):
    return lambda t, y: -float(rate) * y


def test_programs_given_up_free_their_code(traced, strict, monkeypatch):
    monkeypatch.setattr(ENGINE, "_program", ENGINE._Programs(1))
    for _ in range(2):

        class Fresh(Net):
            pass

        solve(Fresh().requires_grad_(False))
    graphs = [weakref.ref(graph) for graph in traced]
    traced.clear()
    gc.collect()
    assert [graph() is None for graph in graphs] == [True, False]


@pytest.mark.slow
def test_resident_memory_is_flat(traced, strict):
    """Bytes of the process for each further field of one code, and for each further class."""

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def grows(make, count):
        for _ in range(count):
            solve(make(), dt=0.5)
        before = resident()
        for _ in range(count):
            solve(make(), dt=0.5)
        return (resident() - before) / count

    def field():
        large = torch.ones(256, 1024)
        return lambda t, y: -y * large[:2, :3]

    def net():
        class Fresh(Net):
            pass

        return Fresh().requires_grad_(False)

    by_field, by_class = grows(field, 500), grows(net, 20)
    print(f"bytes for each further field {by_field:.0f}, for each further class {by_class:.0f}")
    assert by_field < 2e4 and by_class < 3e6
