"""Solves in functions that torch.compile and torch.export take: called as they are, or refused with a sentence."""

import pytest
import torch
from torch import nn

import dxdt
import dxdt.models
from dxdt import diffusion
from dxdt.compat import torchdiffeq


class Model(nn.Module):
    """Layers around a solve."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.field, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.options = options

    def solved(self, y):
        return dxdt.solve(dxdt.ODE(lambda t, y: self.field(y).sin()), y, (0.0, 1.0), **self.options)

    def forward(self, x):
        found = self.solved(self.first(x).relu())
        return self.last(found.y1).tanh() + found.stats.accepted


class Drop(Model):
    def forward(self, x):
        t = torch.linspace(0, 1, 3)
        solve = torchdiffeq.odeint_adjoint if self.options else torchdiffeq.odeint
        options = {"adjoint_params": tuple(self.field.parameters())} if self.options else {}
        return self.last(solve(lambda t, y: self.field(y).sin(), self.first(x), t, **options)).tanh()


def values_and_gradients(model, call, x):
    model.zero_grad()
    out = call(x)
    out.sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


MODELS = {
    "the default": lambda: Model(),
    "known steps": lambda: Model(dt=0.25, solver=dxdt.Midpoint()),
    "stored steps": lambda: Model(gradient=dxdt.Checkpointed()),
    "the adjoint": lambda: Model(gradient=dxdt.Backsolve()),
    "each sample": lambda: Model(per_sample=True),
    "an event": lambda: Model(event=dxdt.Event(lambda t, y: y.sum() - 1.0)),
    "odeint": lambda: Drop(),
    "odeint_adjoint": lambda: Drop(adjoint=True),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_solve_in_a_compiled_model_is_the_eager_one(kind):
    model, x = MODELS[kind](), torch.randn(4, 3)
    right = values_and_gradients(model, model, x)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        for a, b in zip(values_and_gradients(model, compiled, x), right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_loop_of_the_solve_is_not_looked_into():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model, x = torch.compile(Model(), backend=backend), torch.randn(4, 3)
    model(x)
    model(x)
    assert len(graphs) == 2


@pytest.mark.slow
def test_a_compiled_solve_in_a_compiled_model():
    model, x = Model(compile=True, dt=0.25, solver=dxdt.Midpoint()), torch.randn(4, 3)
    right = values_and_gradients(model, model, x)
    compiled = torch.compile(model, backend="eager")
    for a, b in zip(values_and_gradients(model, compiled, x), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, t, y):
        return self.linear(y).sin()


def test_a_module_with_a_solve_and_its_solution():
    model = dxdt.models.NeuralODE(Field())
    x = torch.randn(4, 3)
    torch.compiler.reset()
    found = torch.compile(lambda x: model(x * 2, (0.0, 1.0)) + 1, backend="eager")(x)
    torch.testing.assert_close(found, model(x * 2, (0.0, 1.0)) + 1)


def test_samples_and_likelihoods():
    denoiser = diffusion.gaussian_oracle(diffusion.VP(), torch.zeros(2).double(), torch.ones(2).double())
    x = torch.randn(3, 2, dtype=torch.float64)
    calls = (
        lambda: diffusion.sample(denoiser, (3, 2), steps=3, seed=0, dtype=torch.float64) * 2,
        lambda: diffusion.log_likelihood(denoiser, x).log_prob * 2,
        lambda: diffusion.encode(denoiser, x, steps=3) * 2,
    )
    for call in calls:
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(call, backend="eager")(), call())


def test_a_whole_graph_is_refused_with_a_sentence():
    with pytest.raises(Exception, match="solve of dxdt runs its own loop"):
        torch.compile(Model(), backend="eager", fullgraph=True)(torch.randn(4, 3))


def test_known_steps_are_exported():
    model, x = Model(dt=0.25, solver=dxdt.Midpoint()), torch.randn(4, 3)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "PID would look at values"),
        ({"dt": 0.1, "event": dxdt.Event(lambda t, y: y.sum())}, "events would look at values"),
        ({"dt": 0.1, "gradient": dxdt.Checkpointed()}, "no backward pass by Checkpointed"),
    ],
)
def test_other_exports_are_refused_with_a_sentence(options, why):
    with pytest.raises(Exception, match=why):
        torch.export.export(Model(**options), (torch.randn(4, 3),))


def test_a_strict_export_is_refused_with_a_sentence():
    with pytest.raises(Exception, match="export with strict=False"):
        torch.export.export(Model(dt=0.25), (torch.randn(4, 3),), strict=True)
