"""What a field read in its solve is what its steps read on the way back, whatever changed in between.

The law: for every way in which a field can know something, every rule and both executors, a gradient that is taken
after that changed equals the gradient that is taken before (compiled: ``tests/compiled/test_conditions.py``).
"""

import gc
import weakref

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Checkpointed
from knowing import RULES, WAYS, D, Net, gradient_of


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("direct", "default")])
def test_steps_are_formed_again_under_the_conditions_of_the_solve(rule, way):
    before, after = (gradient_of(RULES[rule], False, way, early) for early in (True, False))
    assert len(before) == len(after) > 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["checkpointed", "backsolve", "reversible"])
def test_a_network_that_is_frozen_before_the_backward_pass_is_as_in_the_graph(rule):
    WAYS["frozen"] = lambda net: (net, (), lambda: net.requires_grad_(False))
    try:
        found = [gradient_of(RULES[r], False, "frozen", early=False) for r in (rule, "direct")]
    finally:
        del WAYS["frozen"]
    assert [len(x) for x in found] == [1, 1]
    torch.testing.assert_close(*[x[0] for x in found], rtol=5e-2, atol=1e-3)


@pytest.mark.parametrize("rule", ["checkpointed", "slots", "backsolve", "reversible"])
def test_what_is_too_large_to_be_kept_is_named(rule):
    class Wide(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(200, 100, dtype=D))

        def forward(self, t, y):
            return self.table.mean() * self.inner(y)

    net = Wide()
    solver = dxdt.ReversibleHeun()
    sol = dxdt.solve(dxdt.ODE(net), torch.ones(1, 2, dtype=D), (0.0, 1.0), solver=solver, dt=0.5, gradient=RULES[rule])
    net.table.add_(1)
    with pytest.raises(RuntimeError, match=r"Wide\.table was written to after its solve"):
        sol.y1.sum().backward()


def test_what_a_field_counts_is_left_alone():
    class Counting(Net):
        calls = 0

        def forward(self, t, y):
            self.calls += 1
            return super().forward(t, y)

    net = Counting()
    sol = dxdt.solve(dxdt.ODE(net), torch.ones(1, 2, dtype=D), (0.0, 1.0), dt=0.5, gradient=Checkpointed())
    forward, net.calls = net.calls, 0
    sol.y1.sum().backward()
    assert forward > 0 and net.calls > 0


def test_attributes_that_no_code_of_the_field_names_are_left_alone():
    class Trainer:
        def __init__(self):
            self.net, self.memory, self.loss = Net(), torch.zeros(300, 100), None

        def field(self, t, y):
            return self.net(t, y)

        def remember(self):
            self.memory.add_(1)

    trainer = Trainer()
    for _ in range(2):
        sol = dxdt.solve(
            dxdt.ODE(trainer.field), torch.ones(1, 2, dtype=D), (0.0, 1.0), dt=0.5, gradient=Checkpointed()
        )
        trainer.loss = sol.y1.sum()
        trainer.remember()
        trainer.loss.backward()


def test_no_graph_is_kept_by_the_one_after_it():
    class Trainer(Net):
        last = None

        def forward(self, t, y):
            return super().forward(t, y) * (1.0 if self.last is None else 1.0 + 0 * self.last.detach())

    trainer, first = Trainer(), []
    for _ in range(3):
        y0 = torch.ones(1, 2, dtype=D, requires_grad=True)
        sol = dxdt.solve(dxdt.ODE(trainer), y0, (0.0, 1.0), dt=0.5, gradient=Checkpointed())
        trainer.last = sol.y1.sum()
        first.append(weakref.ref(trainer.last))
        del sol
    gc.collect()
    assert [x() is not None for x in first] == [False, False, True]


def test_after_the_backward_pass_all_is_as_before_it():
    rate = 1.0
    net = Net()
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: rate * net(t, y)), torch.ones(1, 2, dtype=D), (0.0, 1.0), dt=0.5, gradient=Checkpointed()
    )
    rate = 3.0
    net.rate.mul_(2)
    count, other = net.rate._version, net.rate
    net.eval()
    sol.y1.sum().backward()
    assert rate == 3.0 and net.rate is other and net.rate._version == count and net.rate == 2 and not net.training


@pytest.mark.parametrize("rule", ["checkpointed", "slots", "backsolve", "reversible"])
def test_autocast_of_the_solve_holds_on_the_way_back(rule):
    seen = []

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, t, y):
            value = self.inner(y)
            seen.append((value.dtype, torch.are_deterministic_algorithms_enabled(), torch.zeros(1).dtype))
            return value.float()

    solver = dxdt.ReversibleHeun()
    with torch.autocast("cpu", torch.bfloat16):
        sol = dxdt.solve(dxdt.ODE(Casting()), torch.ones(1, 2), (0.0, 1.0), solver=solver, dt=0.5, gradient=RULES[rule])
    forward = set(seen)
    seen.clear()
    torch.set_default_dtype(D)
    torch.use_deterministic_algorithms(True)
    try:
        sol.y1.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.get_default_dtype() is D
    assert set(seen) == forward == {(torch.bfloat16, False, torch.float32)}
