"""States: any pytree, real and complex, of any precision; arguments, tolerances and norms."""

from typing import NamedTuple

import pytest
import torch

import dxdt
from claims import ORDINARY, chosen
from oracles import COMPLEX, GENERIC, LINEAR


class Body(NamedTuple):
    place: torch.Tensor
    speed: torch.Tensor


def rate(t, y):
    return {"a": -y["a"], "b": [y["b"][0] * 2 * t, y["b"][1]]}


def tree(a=torch.float64, b=torch.float64, c=torch.float64, batch=()):
    return {
        "a": torch.ones(*batch, 2, dtype=a),
        "b": [torch.full((*batch, 1, 3), 2.0, dtype=b), (torch.ones(batch or (), dtype=c),)],
    }


@pytest.mark.parametrize("solver", chosen(ORDINARY))
def test_trees(solver):
    y0 = tree()
    sol = dxdt.solve(dxdt.ODE(rate), y0, (0, 1), dt=0.01, solver=solver, save=[0.0, 0.5, 1.0])
    tol = 0.06 if solver.facts.order < 2 else 2e-4
    for i, t in enumerate(torch.tensor([0.0, 0.5, 1.0])):
        assert (sol.ys["a"][i] - torch.exp(-t)).abs().max() < tol
        assert (sol.ys["b"][0][i] - 2 * torch.exp(t * t)).abs().max() < 4 * tol
        assert (sol.ys["b"][1][0][i] - torch.exp(t)).abs() < tol
    assert isinstance(sol.ys["b"], list) and isinstance(sol.ys["b"][1], tuple)
    assert sol.ys["b"][0].shape == (3, 1, 3) and sol.ys["b"][1][0].shape == (3,)
    assert sol.y1["b"][1][0].shape == ()


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64, torch.float16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.complex64, torch.float32, torch.float64),
        (torch.float16, torch.complex128, torch.bfloat16),
    ],
    ids=str,
)
def test_leaves_keep_their_dtypes(dtypes, per_sample):
    """In what the field sees and in what is saved."""
    y0 = tree(*dtypes, batch=(4,))
    seen = []

    def field(t, y):
        leaves = (y["a"], y["b"][0], y["b"][1][0])
        seen.append((t.dtype, *(x.dtype for x in leaves)))
        if per_sample:
            assert t.shape == (4,)
            t = t[:, None, None]
        out = rate(t, y)
        out["b"][0] = out["b"][0].to(y["b"][0].dtype)
        return out

    sol = dxdt.solve(
        dxdt.ODE(field),
        y0,
        (0.0, 1.0),
        per_sample=per_sample,
        save=dxdt.Save(start=True, times=[0.3], end=True, dense=True),
    )
    real = [d.to_real() if d.is_complex else d for d in dtypes]
    widest = real[0]
    for d in real[1:]:
        widest = torch.promote_types(widest, d)
    assert set(seen) == {(widest, *dtypes)}
    got = (sol.ys["a"], sol.ys["b"][0], sol.ys["b"][1][0])
    assert tuple(x.dtype for x in got) == dtypes
    path = sol.path(0.7)
    assert (path["a"].dtype, path["b"][0].dtype, path["b"][1][0].dtype) == dtypes
    assert (sol.y1["a"].to(torch.complex64) - 0.36788).abs().max() < 5e-3


@pytest.mark.parametrize(
    "dtype, tol",
    [
        (torch.float16, 2e-3),
        (torch.bfloat16, 1.5e-2),
        (torch.float32, 1e-5),
        (torch.float64, 1e-5),
        (torch.complex64, 1e-5),
        (torch.complex128, 1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_precisions(dtype, tol, per_sample):
    y0 = torch.linspace(0.5, 1.5, 6).reshape(3, 2).to(dtype)
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: -y),
        y0,
        (0.0, 1.0),
        controller=dxdt.PID(1e-6, 1e-6),
        per_sample=per_sample,
    )
    assert sol.y1.dtype == dtype
    wanted = y0.to(torch.complex128) * 0.36787944117144233
    assert (sol.y1.to(torch.complex128) - wanted).abs().max() < tol


def test_half_precision_does_not_lose_small_increments():
    """A thousand steps of 1e-3 add up, although one is below the resolution of bfloat16."""
    y0 = torch.ones(2, dtype=torch.bfloat16)
    sol = dxdt.solve(dxdt.ODE(lambda t, y: torch.ones_like(y)), y0, (0, 1), dt=1e-3, solver=dxdt.Euler())
    assert (sol.y1.float() - 2).abs().max() < 1e-2


@pytest.mark.parametrize("solver", chosen(ORDINARY))
def test_complex_is_the_pair_of_reals(solver):
    """A complex solve takes the steps of the real one, to rounding."""

    def real(t, y):
        return torch.view_as_real(COMPLEX.field(t, torch.view_as_complex(y)))

    a = dxdt.solve(dxdt.ODE(COMPLEX.field), COMPLEX.y0, (0, 2), dt=0.1, solver=solver)
    y0 = torch.view_as_real(COMPLEX.y0).contiguous()
    b = dxdt.solve(dxdt.ODE(real), y0, (0, 2), dt=0.1, solver=solver)
    assert (torch.view_as_real(a.y1) - b.y1).abs().max() < 1e-14


def test_zero_dimensional_state():
    seen = []

    def field(t, y):
        seen.append((t.shape, y.shape))
        return -y

    sol = dxdt.solve(
        dxdt.ODE(field),
        torch.tensor(2.0),
        (0, 1),
        save=dxdt.Save(start=True, times=[0.5], end=True),
    )
    assert sol.ys.shape == (3,) and sol.y1.shape == ()
    assert set(seen) == {((), ())}
    assert abs(sol.y1 - 2 * 0.36788) < 1e-3


def test_per_sample_state_without_further_axes():
    y0 = torch.tensor([1.0, 2.0, 3.0])
    sol = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0, 1), per_sample=True)
    assert sol.ys.shape == (1, 3) and sol.ts.shape == (1, 3)
    assert (sol.y1 / y0 - 0.36788).abs().max() < 1e-3


def test_named_tuples_and_images():
    y0 = Body(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
    sol = dxdt.solve(dxdt.ODE(lambda t, y: Body(y.speed, -y.place)), y0, (0, 1))
    assert isinstance(sol.ys, Body)
    assert (sol.y1.place - torch.sin(torch.tensor(1.0))).abs().max() < 1e-3


def test_arguments():
    """Any tree, in order; a single argument need not be wrapped."""
    seen = []

    def field(t, y, *args):
        seen.append(args)
        return -y

    y0, extra = torch.ones(2), {"a": torch.ones(1), "b": 3}
    dxdt.solve(dxdt.ODE(field), y0, (0, 1), args=(extra, "word", None))
    assert all(a[0] is extra and a[1:] == ("word", None) for a in seen)
    seen.clear()
    dxdt.solve(dxdt.ODE(field), y0, (0, 1), args=extra)
    assert all(a == (extra,) for a in seen)


def test_modules_and_their_bound_methods_are_fields():
    module = torch.nn.Linear(3, 3)
    y0 = torch.ones(2, 3)

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def rate(self, t, y):
            return self.inner(y)

    sol = dxdt.solve(dxdt.ODE(Wrapped().rate), y0, (0, 1), gradient=dxdt.Checkpointed())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(sol.y1.sum(), module.parameters()))


def test_a_subclassed_equation_keeps_its_drift():
    class Doubled(dxdt.ODE):
        def drift(self, t, y, *args):
            return 2 * self.field(t, y, *args)

    sol = dxdt.solve(Doubled(lambda t, y: -y), torch.ones(1, 2).double(), (0, 1), dt=0.05)
    assert (sol.y1 - torch.exp(torch.tensor(-2.0))).abs().max() < 1e-5


# Tolerances and norms


def steps(rtol, atol, norm=dxdt.rms, y0=None, field=None):
    y0 = {"a": torch.ones(3).double(), "b": torch.ones(2).double()} if y0 is None else y0

    def both(t, y):
        return {"a": -y["a"], "b": torch.cos(20 * t) * y["b"]}

    sol = dxdt.solve(dxdt.ODE(field or both), y0, (0, 1), controller=dxdt.PID(rtol, atol, norm=norm))
    return sol.stats.accepted


def test_tolerances_per_leaf():
    tight = steps(1e-9, 1e-9)
    assert steps({"a": 1e-9, "b": 1e-9}, {"a": 1e-9, "b": 1e-9}) == tight
    loose = steps({"a": 1e-9, "b": 1.0}, {"a": 1e-9, "b": 1.0})
    assert loose < tight / 2
    per_entry = steps({"a": 1e-9, "b": torch.tensor([1.0, 1.0])}, {"a": 1e-9, "b": 1.0})
    assert per_entry == loose


def test_norms():
    """The largest entry decides under the max norm; others do not dilute it."""
    y0 = {"a": torch.ones(10_000).double(), "b": torch.ones(2).double()}
    assert steps(1e-9, 1e-9, dxdt.max_norm, y0) > 1.5 * steps(1e-9, 1e-9, dxdt.rms, y0)
    assert steps(1e-9, 1e-9, lambda r: 0 * r.abs().amax(-1), y0) < 10


def test_joint_steps_are_those_of_the_worst_and_per_sample_steps_are_ones_own():
    y0 = GENERIC.y0 * torch.tensor([[1e-3], [1.0], [3.0]], dtype=torch.float64)
    options = dict(controller=dxdt.PID(1e-8, 1e-8))
    together = dxdt.solve(dxdt.ODE(GENERIC.field), y0, (0, 2), **options)
    apart = dxdt.solve(dxdt.ODE(GENERIC.field), y0, (0.0, 2.0), per_sample=True, **options)
    assert len(set(apart.stats.accepted.tolist())) > 1
    assert isinstance(together.stats.accepted, int)
    assert (together.y1 - apart.y1).abs().max() < 1e-6


def test_the_default_dtype_of_torch_plays_no_role():
    torch.set_default_dtype(torch.float64)
    sol = dxdt.solve(dxdt.ODE(LINEAR.field), LINEAR.y0.float(), (0, 1))
    assert sol.y1.dtype == torch.float32 and sol.ts.dtype == torch.float64
