"""The log density along an equation: exact for linear fields, whatever measures the divergence."""

import pytest
import torch

from dxdt.diffeq import ODE, PID, SDE, solve
from dxdt.diffeq.problem.density import augment
from dxdt.ops.autodiff import Exact, Hutchinson

A = torch.tensor([[-0.3, 1.0, 0.2], [-1.0, 0.1, 0.0], [0.0, 0.4, -0.7]], dtype=torch.float64)
Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LINEAR = ODE(lambda t, y: (1 + t) * (y @ A.T))


def test_a_linear_field_changes_volume_by_its_trace():
    equation, start = augment(LINEAR, Y, Exact())
    y, change = solve(equation, start, (0.0, 1.0), controller=PID(1e-10, 1e-10)).y1
    assert torch.allclose(y, Y @ torch.matrix_exp(1.5 * A).T, atol=1e-8)
    assert torch.allclose(change, (1.5 * A.trace()).expand(4, 1), atol=1e-8)


def test_there_and_back_gives_nothing():
    options = {"controller": PID(1e-9, 1e-9)}
    nonlinear = ODE(lambda t, y: (y @ A.T).sin())
    equation, start = augment(nonlinear, Y, Exact())
    there = solve(equation, start, (0.0, 1.0), **options).y1
    back = solve(equation, there, (1.0, 0.0), **options).y1
    assert torch.allclose(back[0], Y, atol=1e-7)
    assert back[1].abs().max() < 1e-7


def test_one_column_for_each_probe_and_their_mean_is_right():
    kind = Hutchinson(probes=500, seed=1)
    equation, start = augment(LINEAR, Y, kind)
    _, change = solve(equation, start, (0.0, 1.0), controller=PID(1e-6, 1e-6)).y1
    assert change.shape == (4, 500)
    error = change.std(1) / 500**0.5
    assert ((change.mean(1) - 1.5 * A.trace()).abs() < 4 * error).all()


def test_every_sample_may_take_its_own_steps():
    equation, start = augment(ODE(lambda t, y: (y @ A.T).sin()), Y, Exact())
    options = {"controller": PID(1e-9, 1e-9)}
    joint = solve(equation, start, (0.0, 1.0), **options).y1[1]
    own = solve(equation, start, (0.0, 1.0), per_sample=True, **options).y1[1]
    assert torch.allclose(joint, own, atol=1e-7)


def test_noise_and_missing_batches_are_refused():
    with pytest.raises(ValueError, match="tau=0"):
        augment(SDE(lambda t, y: y, lambda t, y: y), Y, Exact())
    with pytest.raises(ValueError, match="batch"):
        augment(LINEAR, Y[0], Exact())
