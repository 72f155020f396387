"""The drop-in for torchdiffeq compiles its adaptive solves when it is asked to."""

import pytest
import torch

from dxdt.compat.torchdiffeq import odeint


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(y)) * torch.cos(t)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_odeint_compiles_forward_and_backward(method, traced, strict):
    field, y0 = Field(), torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    inputs = [y0, *field.parameters()]

    def run(options):
        ys = odeint(field, y0, t, rtol=1e-6, atol=1e-8, method=method, options=options)
        return ys, torch.autograd.grad(ys.sin().sum(), inputs)

    ys, gradients = run({"compile": True})
    assert len(traced) == 2
    wanted, exact = run({})
    assert torch.allclose(ys, wanted, rtol=1e-10, atol=1e-12)
    for g, w in zip(gradients, exact, strict=True):
        assert torch.allclose(g, w, rtol=1e-9, atol=1e-11)
