"""Fields that differentiate inside: by every rule the same values and gradients, however they are written."""

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Reversible

D = torch.float64


class Energy(nn.Module):
    """H(y) of a learnt Hamiltonian."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(2, 3, dtype=D)

    def forward(self, y):
        return self.inner(y).tanh().square().sum(-1) + 0.5 * y.square().sum(-1)


def turned(slope):
    return torch.stack([slope[..., 1], -slope[..., 0]], -1)


class Field(nn.Module):
    """dy/dt = J grad H."""

    def __init__(self, way):
        super().__init__()
        self.energy, self.way = Energy(), WAYS[way]

    def forward(self, t, y):
        return turned(self.way(self.energy, y))


def kept(energy, y):
    with torch.enable_grad():
        y = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]


def kept_bare(energy, y):
    y = y if y.requires_grad else y.detach().requires_grad_()
    return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]


def marked(energy, y):
    with torch.enable_grad():
        y = y.requires_grad_()
        return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]


def unguarded(energy, y):
    return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]


def functional(energy, y):
    return torch.autograd.functional.vjp(lambda x: energy(x).sum(), y, create_graph=torch.is_grad_enabled())[1]


def transformed(energy, y):
    return torch.func.grad(lambda x: energy(x).sum())(y)


def pulled(energy, y):
    value, pull = torch.func.vjp(energy, y)
    return pull(torch.ones_like(value))[0]


WAYS = {f.__name__: f for f in (kept, kept_bare, marked, unguarded, functional, transformed, pulled)}
RULES = {
    "direct": Direct(),
    "checkpointed": Checkpointed(),
    "slots": Checkpointed(2),
    "backsolve": Backsolve(),
    "reversible": Reversible(),
}
TOLERANCE = {"backsolve": 1e-5}


def found(way, rule, per_sample=False, compile=False, asks=True, **options):
    """The end of a solve, and gradients of the start and of the parameters."""
    field = Field(way)
    y0 = torch.tensor([[0.5, -0.3], [1.0, 0.4]], dtype=D, requires_grad=asks)
    options = {"dt": 0.1, **options}
    sol = dxdt.solve(
        dxdt.ODE(field), y0, (0.0, 0.2), gradient=RULES[rule], per_sample=per_sample, compile=compile, **options
    )
    (sol.y1**3).sum().backward()
    return [sol.y1.detach(), *(x.grad for x in (y0, *field.parameters()) if x.grad is not None)]


def agree(a, b, tolerance=1e-10):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


ADAPTIVE = {"dt": None, "controller": dxdt.PID(1e-6, 1e-8)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["direct", "checkpointed", "slots", "backsolve"])
def test_every_rule_and_every_way(rule, way):
    agree(found(way, rule), found("transformed", "direct"), TOLERANCE.get(rule, 1e-10))


@pytest.mark.parametrize("way", ["kept", "kept_bare", "marked"])
@pytest.mark.parametrize("rule", ["direct", "checkpointed", "backsolve"])
def test_also_with_adaptive_steps_of_each_sample(rule, way):
    options = dict(per_sample=True, **ADAPTIVE)
    agree(found(way, rule, **options), found("transformed", "direct", **options), TOLERANCE.get(rule, 1e-10))


@pytest.mark.parametrize("way", ["kept", "kept_bare", "transformed"])
def test_also_walked_back(way):
    options = dict(solver=dxdt.ReversibleHeun(), dt=0.05)
    agree(found(way, "reversible", **options), found("transformed", "direct", **options))


@pytest.mark.parametrize("way", ["kept", "kept_bare", "marked"])
@pytest.mark.parametrize("rule", ["direct", "checkpointed", "backsolve"])
def test_also_where_only_parameters_ask_for_a_gradient(rule, way):
    right = found("transformed", "direct", asks=False)
    assert len(right) == 3
    agree(found(way, rule, asks=False)[-2:], right[-2:], TOLERANCE.get(rule, 1e-10))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", ["kept", "kept_bare", "marked", "unguarded", "transformed"])
def test_also_where_no_graph_is_wanted(way, mode):
    field, y0 = Field(way), torch.tensor([[0.5, -0.3]], dtype=D)
    with mode():
        y = dxdt.solve(dxdt.ODE(field), y0, (0.0, 1.0)).y1
    assert not y.requires_grad
    torch.testing.assert_close(y, dxdt.solve(dxdt.ODE(Field("transformed")), y0, (0.0, 1.0)).y1.detach())


def test_a_state_that_the_field_cuts_off_is_cut_off_by_every_rule():
    def cut(energy, y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]

    WAYS["cut"] = cut
    try:
        agree(found("cut", "checkpointed"), found("cut", "direct"))
    finally:
        del WAYS["cut"]


def test_an_error_of_the_field_itself_comes_through():
    def field(t, y):
        return torch.autograd.grad(y.detach().sum(), y)[0]

    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        dxdt.solve(dxdt.ODE(field), torch.ones(1, 2), (0.0, 1.0))
