"""The drop-in for torchdiffeq compiles its solves when it is asked to."""

import pytest
import torch

import dxdt
from dxdt.compat.torchdiffeq import odeint, odeint_adjoint


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(y)) * torch.cos(t)


@pytest.mark.parametrize("method", [pytest.param("dopri5", marks=pytest.mark.slow), "adaptive_heun"])
def test_odeint_compiles_forward_and_backward(method, traced, strict):
    field, y0 = Field(), torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    inputs = [y0, *field.parameters()]

    def run(options):
        ys = odeint(field, y0, t, rtol=1e-4, atol=1e-6, method=method, options=options)
        return ys, torch.autograd.grad(ys.sin().sum(), inputs)

    ys, gradients = run({"compile": True})
    assert len(traced) == 2
    wanted, exact = run({})
    assert torch.allclose(ys, wanted, rtol=1e-10, atol=1e-12)
    for g, w in zip(gradients, exact, strict=True):
        assert torch.allclose(g, w, rtol=1e-9, atol=1e-11)


class Pair(Field):
    def forward(self, t, y):
        return super().forward(t, y[0]), -y[1]


JUMPS = {"jump_t": torch.tensor([0.3], dtype=torch.float64), "step_t": torch.tensor([0.5, 0.6], dtype=torch.float64)}


def largest(x):
    return x.abs().amax()


@pytest.mark.parametrize(
    ("api", "method", "options", "field"),
    [
        pytest.param(odeint, "euler", {}, Field, marks=pytest.mark.slow),
        (odeint, "midpoint", {"step_size": 0.13, "interp": "cubic"}, Field),
        (
            odeint_adjoint,
            "euler",
            {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], 8, dtype=t.dtype)},
            Field,
        ),
        (odeint, "adaptive_heun", {"norm": largest, **JUMPS}, Field),
        pytest.param(odeint, "bosh3", JUMPS, Pair, marks=pytest.mark.slow),
        pytest.param(odeint_adjoint, "rk4", {"step_size": 0.1}, Field, marks=pytest.mark.slow),
        pytest.param(odeint, "explicit_adams", {"step_size": 0.1}, Field, marks=pytest.mark.slow),
        pytest.param(odeint, "fixed_adams", {"step_size": 0.06}, Field, marks=pytest.mark.slow),
    ],
    ids=["euler", "cubic", "adjoint-grid", "norm-jumps", "tuple-jumps", "adjoint", "explicit-adams", "fixed-adams"],
)
def test_fixed_grids_norms_tuples_and_jumps(api, method, options, field, traced, strict):
    func, y0 = field(), torch.rand(2, 3, dtype=torch.float64)
    start = (y0, y0[0]) if field is Pair else y0
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    found = []
    for compile in (True, False):
        ys = api(func, start, t, rtol=1e-3, atol=1e-4, method=method, options={**options, "compile": compile})
        ys = ys if isinstance(ys, tuple) else (ys,)
        grads = torch.autograd.grad(sum(y.sin().sum() for y in ys), list(func.parameters()))
        found.append((*ys, *grads))
    assert len(traced) >= 1
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_calls_share_a_program(traced, strict):
    """Solvers and norms are made anew in each call, programs are not."""
    with torch.no_grad():
        for size in (0.1, 0.07, 0.05):
            odeint(Field(), torch.rand(3, dtype=torch.float64), torch.linspace(0, 1, 4), method="euler",
                   options={"step_size": size, "compile": True})  # fmt: skip
    assert len(traced) == 1


def test_callbacks_are_called(fresh):
    seen = []

    class Seen(Field):
        def callback_step(self, t, y, dt):
            seen.append(float(t))

    with torch.no_grad(), pytest.warns(RuntimeWarning, match="callbacks"):
        odeint(Seen(), torch.rand(3, dtype=torch.float64), torch.linspace(0, 1, 4), options={"compile": True})
    assert len(seen) > 1


ADJOINTS = {
    "full-norm": (Field, {}),
    "seminorm-tuple": (Pair, dict(method="adaptive_heun", adjoint_options={"norm": "seminorm"})),
    "other-method": (Field, dict(adjoint_rtol=1e-4, adjoint_method="bosh3", adjoint_options={"first_step": 0.05})),
    "fixed-steps": (Field, dict(method="rk4", options={"step_size": 0.1})),
}


@pytest.mark.parametrize(
    "name", [n if n == "seminorm-tuple" else pytest.param(n, marks=pytest.mark.slow) for n in ADJOINTS]
)
def test_the_adjoint_compiles(name, traced, strict):
    """Both solves by a program each, with the options of each; gradients for times too."""
    kind, options = ADJOINTS[name]
    func, found = kind(), []
    for compile in (True, False):
        y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
        t = torch.linspace(0, 1, 4, dtype=torch.float64, requires_grad=True)
        with dxdt.compiling(compile):
            ys = odeint_adjoint(func, (y0, y0[0]) if kind is Pair else y0, t, rtol=1e-4, atol=1e-5, **options)
        loss = sum(y.sin().sum() for y in (ys if isinstance(ys, tuple) else (ys,)))
        found.append(torch.autograd.grad(loss, [y0, t, *func.parameters()]))
    assert len(traced) == 2
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_training_by_the_adjoint_is_one_program(traced, strict):
    """Thirty steps of training: one program forward, one backward, whatever the number of times."""
    func, losses = Field(), []
    optimiser = torch.optim.SGD(func.parameters(), lr=0.1)
    for i in range(30):
        t = torch.linspace(0, 1, 2 + i % 3, dtype=torch.float64)
        options = dict(method="euler", options={"step_size": 0.5, "compile": True})
        loss = odeint_adjoint(func, torch.ones(3, dtype=torch.float64), t, **options)[-1].square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert len(traced) == 2 and losses[-1] < losses[0]


def test_what_of_the_adjoint_runs_eager_says_so(fresh):
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t, y0 = torch.linspace(0, 1, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with dxdt.compiling():
        ys = odeint_adjoint(lambda t, y: -rate * y, y0, t, adjoint_params=(rate,), method="euler")
        with pytest.warns(RuntimeWarning, match="belongs to no module of the field"):
            ys.sum().backward()
        field = Field()
        ys = odeint_adjoint(field, torch.ones(3, dtype=torch.float64), t, method="euler", options={"step_size": 0.5})
        with pytest.warns(RuntimeWarning, match="second derivatives through odeint_adjoint"):
            torch.autograd.grad(ys.sum(), list(field.parameters()), create_graph=True)
    assert rate.grad is not None and rate.grad.isfinite()
