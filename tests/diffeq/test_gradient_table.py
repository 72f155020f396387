"""What each gradient rule gives: every cell of the table in docs/gradients.md is measured here.

To write the table after a change: DXDT_WRITE_DOCS=1 pytest tests/diffeq/test_gradient_table.py
"""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Event

D = torch.float64
PAGE = Path(__file__).resolve().parents[2] / "docs" / "gradients.md"
BEGIN, END = "<!-- table of rules: begin -->", "<!-- table of rules: end -->"

RULES = {
    "Direct()": Direct(),
    "Checkpointed()": Checkpointed(),
    "Checkpointed(slots=2)": Checkpointed(2),
    "Backsolve()": Backsolve(),
}
ARGUMENTS = (
    "y0",
    "parameters of modules",
    "args",
    "params",
    "t0",
    "t1",
    "save times",
    "time and state at an event",
    "through a reset",
    "dense path",
    "second derivatives",
    "torch.func (grad, jvp)",
)
EXACT, NEAR, NONE = "exact", "to tolerance", "refused"


class Net(nn.Module):
    """A field with a parameter, and a tensor that it captured."""

    def __init__(self, captured):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.captured = [captured]

    def forward(self, t, y, force, level, kick):
        wave = torch.sin(2 * t).unsqueeze(-1)
        turn = torch.stack([-y[..., 1], y[..., 0]], -1)
        return 2 * turn + 0.3 * torch.tanh(self.linear(y)) + (force + self.captured[0]) * wave


def inputs(per_sample):
    torch.manual_seed(0)
    captured = torch.tensor([0.2, -0.1], dtype=D)
    net = Net(captured).double()
    y0 = torch.tensor([[1.0, 0.2], [0.8, -0.3], [1.2, 0.1]], dtype=D)
    t0, t1 = torch.tensor([0.0, 0.1, -0.1], dtype=D), torch.tensor([1.5, 1.3, 1.7], dtype=D)
    times = torch.tensor([0.33, 0.6, 1.2], dtype=D)
    if not per_sample:
        y0, t0, t1 = y0[0], t0[0].clone(), t1[0].clone()
    else:
        times = times[:, None] + torch.tensor([0.0, 0.03, -0.02], dtype=D)
    return {
        "y0": y0,
        "parameters of modules": net.linear.weight,
        "args": torch.tensor([0.4, -0.2], dtype=D),
        "params": captured,
        "t0": t0,
        "t1": t1,
        "save times": times,
        "level": torch.tensor(0.3, dtype=D),
        "kick": torch.tensor(0.2, dtype=D),
    }, net


def leaf_of(argument):
    """Which input a row of the table is about."""
    names = {
        "time and state at an event": "level",
        "through a reset": "kick",
        "dense path": "y0",
        "second derivatives": "y0",
        "torch.func (grad, jvp)": "y0",
    }
    return names.get(argument, argument)


def loss(rule, argument, per_sample, tol, given, net):
    """A number that depends on the row's input: on a given grid, or with adaptive steps."""
    event, save = None, dxdt.Save(times=given["save times"], end=True)
    if argument in ("time and state at an event", "through a reset"):
        reset = None
        if argument == "through a reset":
            reset = lambda t, y, force, level, kick: y * (1 + kick)  # noqa: E731
        event = Event(lambda t, y, force, level, kick: y[..., 0] - level, -1, reset)
        save = dxdt.Save(end=True)
    elif argument == "dense path":
        save = dxdt.Save(dense=True, end=True)
    inner = [0.35, 0.8, 1.1]
    steps = dict(t=[given["t0"], *inner, given["t1"]])
    if tol is not None:
        steps = dict(t=(given["t0"], given["t1"]), controller=dxdt.PID(rtol=tol, atol=tol / 10))
    sol = dxdt.solve(
        dxdt.ODE(net),
        given["y0"],
        args=(given["args"], given["level"], given["kick"]),
        params=(given["params"],),
        save=save,
        event=event,
        gradient=rule,
        per_sample=per_sample,
        **steps,
    )
    value = sol.ys.sin().sum()
    if event is not None:
        value = value + sol.events[0].sum()
    if argument == "dense path":
        value = value + sol.path([0.3, 0.9]).cos().sum()
    return value


def first(rule, argument, per_sample, tol):
    """The gradient of the loss for the row's input."""
    given, net = inputs(per_sample)
    leaf = given[leaf_of(argument)].requires_grad_()
    if argument == "torch.func (grad, jvp)":
        plain = leaf.detach()

        def run(x):
            return loss(rule, argument, per_sample, tol, {**given, "y0": x}, net)

        g = torch.func.grad(run)(plain)
        v = torch.ones_like(plain)
        assert abs(torch.func.jvp(run, (plain,), (v,))[1] - g.sum()) < 1e-9
        return g
    value = loss(rule, argument, per_sample, tol, given, net)
    if argument != "second derivatives":
        return torch.autograd.grad(value, leaf)[0]
    (g,) = torch.autograd.grad(value, leaf, create_graph=True)
    return torch.autograd.grad((g * torch.cos(leaf.detach())).sum(), leaf)[0]


@torch.no_grad()
def slope(argument, per_sample, direction):
    """Central difference on a given grid of the loss, or of its gradient."""
    step, sides = 1e-5, []
    for sign in (1, -1):
        given, net = inputs(per_sample)
        leaf = given[leaf_of(argument)]
        start = leaf.detach().clone()
        leaf.copy_(start + sign * step * direction)
        if argument == "second derivatives":
            with torch.enable_grad():
                moved = leaf.detach().clone().requires_grad_()
                value = loss(Direct(), argument, per_sample, None, {**given, "y0": moved}, net)
                (g,) = torch.autograd.grad(value, moved)
            sides.append((g * torch.cos(start)).sum())
        else:
            sides.append(loss(Direct(), argument, per_sample, None, given, net))
    return (sides[0] - sides[1]) / (2 * step)


@cache
def outcome(name, argument, per_sample):
    """Measured: exact for the steps, convergent with the tolerance, or refused with a remedy."""
    rule = RULES[name]
    near = isinstance(rule, Backsolve)
    try:
        found = first(rule, argument, per_sample, 1e-8 if near else None)
    except (ValueError, RuntimeError) as error:
        assert "Checkpointed" in str(error) or "Direct" in str(error)
        return NONE
    if near:
        exact = first(Direct(), argument, per_sample, 1e-11)
        coarse = first(rule, argument, per_sample, 1e-4)
        size = 1 + exact.abs().max()
        assert (coarse - exact).abs().max() < 1e-2 * size
        assert (found - exact).abs().max() < 1e-5 * size
        return NEAR
    direct = first(Direct(), argument, per_sample, None)
    assert (found - direct).abs().max() <= 1e-10 * (1 + direct.abs().max())
    assert direct.abs().max() > 1e-3
    torch.manual_seed(1)
    direction = torch.randn_like(direct)
    product = (found * direction).sum()
    assert abs(slope(argument, per_sample, direction) - product) < 1e-7 * (1 + abs(product))
    return EXACT


MODES = {"joint": False, "per sample": True}


def measured_table():
    lines = [
        "| derivative for | " + " | ".join(f"`{name}`" for name in RULES) + " |",
        "|---|" + "---|" * len(RULES),
    ]
    for argument in ARGUMENTS:
        cells = []
        for name in RULES:
            found = [outcome(name, argument, mode) for mode in MODES.values()]
            same = found[0] == found[1]
            cells.append(found[0] if same else f"joint {found[0]}, per sample {found[1]}")
        lines.append(f"| {argument} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("name", RULES)
def test_each_cell(name, argument, mode):
    found = outcome(name, argument, MODES[mode])
    assert found != NONE or not isinstance(RULES[name], Direct)


def test_the_table_in_the_documentation_is_what_is_measured():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{measured_table()}\n{END}{after}"
    if os.environ.get("DXDT_WRITE_DOCS"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted, (
        "docs/gradients.md is stale: DXDT_WRITE_DOCS=1 pytest tests/diffeq/test_gradient_table.py"
    )
