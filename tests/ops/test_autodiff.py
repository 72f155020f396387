"""Divergences against the trace of the Jacobian."""

import pytest
import torch
from torch import Tensor

from dxdt.ops.autodiff import Exact, Hutchinson, divergence, jvp, value_and_traces, vjp

W = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def field(y: Tensor) -> Tensor:
    return (y.flatten(1) @ W).sin().reshape(y.shape) * y


def traces(y: Tensor) -> Tensor:
    def one(row: Tensor) -> Tensor:
        return field(row[None])[0]

    return torch.stack([torch.autograd.functional.jacobian(one, r).reshape(6, 6).trace() for r in y])


Y = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_exact_is_the_trace_of_the_jacobian():
    assert torch.allclose(divergence(field, Y, Exact()), traces(Y), atol=1e-12)


def test_the_value_comes_with_it():
    value, _ = value_and_traces(field, Y, Exact().directions(Y))
    assert torch.equal(value, field(Y))


def test_hutchinson_is_unbiased_and_knows_its_spread():
    kind = Hutchinson(probes=4000, seed=2)
    _, products = value_and_traces(field, Y, kind.directions(Y))
    each = kind.combine(products)
    error = each.std(1) / each.shape[1] ** 0.5
    assert ((each.mean(1) - traces(Y)).abs() < 4 * error).all()


def test_hutchinson_signs_do_not_depend_on_the_batch():
    kind = Hutchinson(probes=3, seed=5)
    assert torch.equal(kind.directions(Y)[:, :2], kind.directions(Y[:2]))
    assert not torch.equal(kind.directions(Y), Hutchinson(3, 6).directions(Y))


def test_the_divergence_can_be_differentiated():
    y = Y.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(lambda z: z**3, y, Exact()).sum(), y)
    assert torch.allclose(found, 6 * Y)


def test_products_are_adjoint():
    v, w = torch.randn(2, *Y.shape, dtype=torch.float64)
    _, forward = jvp(field, Y, v)
    _, pull = vjp(field, Y)
    assert torch.allclose((forward * w).sum(), (pull(w) * v).sum())


def test_no_probe_is_refused():
    with pytest.raises(ValueError, match="probes=0"):
        Hutchinson(0)
