"""Fields that answer with the same buffer each time, and states whose memory holds other numbers than their values."""

import warnings

import pytest
import torch

import dxdt
from claims import SOLVERS, identify
from dxdt import ODE, PID, SDE, Backsolve, Checkpointed, Direct

D = torch.float64
MINE = [s for s in SOLVERS if not (s.facts.stochastic or s.facts.semilinear or s.facts.separable)]


def turned(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def one_buffer(like):
    buffer = torch.empty_like(like)

    def field(t, y):
        buffer[..., 0], buffer[..., 1] = y[..., 1], -y[..., 0]
        return buffer

    return field


def two_buffers(like):
    buffers, count = [torch.empty_like(like) for _ in range(2)], [0]

    def field(t, y):
        count[0] += 1
        buffer = buffers[count[0] % 2]
        buffer[..., 0], buffer[..., 1] = y[..., 1], -y[..., 0]
        return buffer

    return field


def a_view(like):
    storage = torch.empty(3, *like.shape, dtype=like.dtype)
    inner = one_buffer(like)

    def field(t, y):
        storage[1] = inner(t, y)
        return storage[1]

    return field


def solved(field, y0, solver, **options):
    known = solver.facts.error_order is None or solver.facts.known_grid
    steps = {"dt": 0.1} if known else {"controller": PID(1e-6, 1e-8)}
    return dxdt.solve(ODE(field), y0, (0.0, 1.0), solver=solver, **steps, **options)


@pytest.mark.parametrize("solver", MINE, ids=identify)
@pytest.mark.parametrize("per_sample", [False, True])
def test_every_method_with_a_field_that_answers_with_one_buffer(solver, per_sample):
    y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=D)
    if identify(solver) == "Rodas5P":  # it differentiates for time, which no buffer can follow
        with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
            solved(one_buffer(y0), y0, solver)
        return
    a, b = (solved(f, y0, solver, per_sample=per_sample, save=[0.3, 1.0]).ys for f in (one_buffer(y0), turned))
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [one_buffer, two_buffers, a_view])
@pytest.mark.parametrize("rule", [Direct(), Checkpointed(), Checkpointed(slots=2), Backsolve()], ids=repr)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:compile=True runs eager")
def test_kinds_of_buffers_and_gradients(kind, rule, compile):
    grads = []
    for make in (kind, lambda y: turned):
        y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
        y1 = solved(make(y0.detach()), y0, dxdt.Tsit5(), gradient=rule, compile=compile).y1
        y1.square().mul(torch.tensor([1.0, 3.0])).sum().backward()
        grads.append(y0.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_trees_and_diffusions():
    y0 = {"a": torch.ones(2, dtype=D), "b": torch.ones(3, dtype=D)}
    kept = {k: torch.empty_like(v) for k, v in y0.items()}

    def field(t, y):
        for k, v in y.items():
            kept[k].copy_(-v)
        return kept

    options = {"controller": PID(1e-6, 1e-8)}
    a, b = (
        dxdt.solve(ODE(f), y0, (0.0, 1.0), **options).y1 for f in (field, lambda t, y: {k: -v for k, v in y.items()})
    )
    assert all(torch.equal(a[k], b[k]) for k in a)
    buffer = torch.empty(2, dtype=D)
    sde = [SDE(lambda t, y: -y, g) for g in (lambda t, y: torch.mul(y, 0.3, out=buffer), lambda t, y: 0.3 * y)]
    for solver in (dxdt.EulerMaruyama(), dxdt.SRIW1()):
        path = {"driver": dxdt.Brownian(0, dxdt.SpaceTime), "dt": 0.1}
        a, b = (dxdt.solve(e, torch.ones(2, dtype=D), (0.0, 1.0), solver=solver, **path).y1 for e in sde)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compile", [False, True])
def test_states_that_are_marked_as_negative_or_conjugate(compile):
    z = torch.tensor([0.3 - 1.2j, 2.0 + 0.7j], dtype=torch.complex128)
    for y0 in (z.conj().imag, torch.stack([z, z]).conj()[1].imag):
        assert y0.is_neg()
        y1 = dxdt.solve(ODE(lambda t, y: -y), y0, (0.0, 1.0), compile=compile, controller=PID(1e-9, 1e-9)).y1
        torch.testing.assert_close(y1, -z.imag * torch.tensor(-1.0, dtype=D).exp(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_conjugate_state(per_sample):
    z = torch.tensor([0.3 - 1.2j, 2.0 + 0.7j], dtype=torch.complex128)
    y1 = dxdt.solve(
        ODE(lambda t, y: 1j * y), z.conj(), (0.0, 1.0), per_sample=per_sample, controller=PID(1e-9, 1e-9)
    ).y1
    torch.testing.assert_close(y1, z.conj().resolve_conj() * torch.exp(torch.tensor(1j)), rtol=1e-6, atol=0)


def test_no_warning_where_answers_are_new():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dxdt.solve(ODE(turned), torch.ones(2), (0.0, 1.0))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:compile=True runs eager")
def test_arguments_that_are_marked_as_negative(compile):
    rate = torch.tensor([0.3 - 1.2j, 2.0 + 0.7j], dtype=torch.complex128).conj().imag
    field = ODE(lambda t, y, k: k + 0 * y)
    y1 = dxdt.solve(field, torch.zeros(2, dtype=D), (0.0, 1.0), args=(rate,), compile=compile).y1
    torch.testing.assert_close(y1, rate.resolve_neg())
