"""Neural ODEs: values and gradients against the matrix exponential."""

import pytest
import torch
from torch import Tensor, nn

import dxdt
from dxdt.diffeq import PID, Checkpointed
from dxdt.models import Augmented, NeuralODE
from dxdt.nn import MLPField


class Linear(nn.Module):
    """The field A y, whose solution is expm(A t) y0."""

    def __init__(self, n: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(n)
        self.A = nn.Parameter(torch.randn(n, n, generator=generator, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.A.T


TIGHT = PID(1e-10, 1e-10)


def test_a_pair_gives_the_end_and_a_tensor_every_time():
    field, y0 = Linear(3), torch.randn(4, 3, dtype=torch.float64)
    node = NeuralODE(field, controller=TIGHT)
    ts = torch.tensor([0.0, 0.3, 0.7, 1.5], dtype=torch.float64)
    exact = torch.stack([y0 @ torch.matrix_exp(field.A * t).T for t in ts])
    assert torch.allclose(node(y0, ts), exact, atol=1e-8)
    assert torch.allclose(node(y0, (0.0, 1.5)), exact[-1], atol=1e-8)
    assert torch.allclose(node(exact[-1], (1.5, 0.0)), y0, atol=1e-7)


@pytest.mark.parametrize("gradient", [None, Checkpointed()])
def test_gradients_are_those_of_the_exact_solution(gradient):
    field, y0 = Linear(3), torch.randn(4, 3, dtype=torch.float64)
    node = NeuralODE(field, controller=TIGHT, gradient=gradient)
    node(y0, (0.0, 1.0)).sin().sum().backward()
    found = field.A.grad.clone()
    field.A.grad = None
    (y0 @ torch.matrix_exp(field.A).T).sin().sum().backward()
    assert torch.allclose(found, field.A.grad, atol=1e-6)


def test_extra_arguments_reach_the_field():
    node = NeuralODE(lambda t, y, k: k * y, controller=TIGHT)
    y0, k = torch.ones(1, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    assert node(y0, (0.0, 2.0), k).item() == pytest.approx(torch.tensor(-1.0).exp().item())


def test_augmented_pads_with_zeros_and_drops_them():
    field = Linear(5)
    model = Augmented(NeuralODE(field, controller=TIGHT), extra=2)
    y0 = torch.randn(4, 3, dtype=torch.float64)
    exact = (y0 @ torch.matrix_exp(field.A)[:, :3].T)[:, :3]
    assert torch.allclose(model(y0, (0.0, 1.0)), exact, atol=1e-8)


def test_augmentation_lets_paths_pass_through_each_other():
    # x -> -x cannot be the flow of a field on the line, but is a half turn of the plane.
    turn = NeuralODE(lambda t, y: y @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).to(y))
    x = torch.tensor([[-1.0], [0.5], [2.0]])
    assert torch.allclose(Augmented(turn, extra=1)(x, (0.0, torch.pi)), -x, atol=1e-2)


def test_it_learns():
    torch.manual_seed(0)
    node = NeuralODE(MLPField(1, width=16))
    x = torch.linspace(-1, 1, 16)[:, None]
    optimizer = torch.optim.Adam(node.parameters(), lr=2e-2)
    first = None
    for _ in range(40):
        loss = (node(x, (0.0, 1.0)) - (2 * x + 0.5)).square().mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NeuralODE(Linear(2))(torch.zeros(1, 2), torch.zeros(1)), "list of at least"),
        (lambda: NeuralODE(Linear(2))(torch.zeros(1, 2), torch.zeros(2, 2)), "per_sample=True"),
        (lambda: NeuralODE(Linear(2))(torch.zeros(1, 2), (0.0,)), "no span"),
        (lambda: Augmented(NeuralODE(Linear(2)), 0), "extra=0"),
    ],
)
def test_bad_times_are_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words):
        call()


def oscillator(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


TIMES = {
    "tensor": torch.linspace(0, 10, 21, dtype=torch.float64),
    "two": torch.tensor([0.0, 3.0], dtype=torch.float64),
    "back": torch.linspace(2, -1, 5, dtype=torch.float64),
    "array": torch.linspace(0, 1, 7, dtype=torch.float64).numpy(),
    "list": [0.0, 0.5, 2.0],
    "rows": torch.stack([torch.linspace(0, 1, 4), torch.linspace(0, -2, 4)], 1).double(),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_mean_where_to_save_at_every_door(name):
    """`solve` and the module answer alike, at all times, with error control."""
    times = TIMES[name]
    y0 = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    options = dict(rtol=1e-9, atol=1e-9, per_sample=name == "rows")
    found = dxdt.solve(dxdt.ODE(oscillator), y0, times, **options)
    t = torch.as_tensor(times).reshape(len(times), -1)
    exact = torch.stack([torch.sin(t - t[0]), torch.cos(t - t[0])], -1).expand(-1, 2, 2)
    assert (found.ys - exact).abs().max() < 1e-7
    assert torch.equal(NeuralODE(oscillator, **options)(y0, times), found.ys)
    assert torch.equal(found.y1, found.ys[-1])


@pytest.mark.parametrize("options", [dict(solver=dxdt.RK4()), dict(save=[0.3])], ids=["no estimate", "beside save"])
def test_the_old_reading_as_steps_tells_how_to_name_a_grid(options):
    y0, grid = torch.ones(1, dtype=torch.float64), torch.linspace(0, 1, 11, dtype=torch.float64)
    with pytest.warns(DeprecationWarning, match=r"controller=dxdt.Grid\(times\)"):
        old = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, grid, **options)
    named = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, (0.0, 1.0), controller=dxdt.Grid(grid), **options)
    assert old.stats.steps == named.stats.steps == 10 and torch.equal(old.y1, named.y1)


@pytest.mark.parametrize("option", ["rtoll", "solvers", "save", "max_step", "method"])
def test_a_model_refuses_options_when_it_is_made(option):
    with pytest.raises(TypeError, match=f"NeuralODE has no option {option}: (did you mean|it is called) .*"):
        NeuralODE(oscillator, **{option: 1})


def test_a_model_solves_with_the_tolerances_of_solve():
    y0 = torch.tensor([0.0, 1.0])
    assert torch.equal(NeuralODE(oscillator)(y0, (0.0, 5.0)), dxdt.solve(dxdt.ODE(oscillator), y0, (0.0, 5.0)).y1)
    with pytest.raises(ValueError, match="Euler has no error estimate"):
        NeuralODE(oscillator, solver=dxdt.Euler())


@pytest.mark.parametrize("kind", ["tensor", "list"])
def test_times_in_a_list_have_gradients(kind):
    """The state at time k moves with time k by f, and with the first by -f carried along."""
    times = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
    given = times if kind == "tensor" else [times[0], 0.25, 0.5, 0.75, times[-1]]
    y0 = torch.ones(1, dtype=torch.float64)
    ys = dxdt.solve(dxdt.ODE(lambda t, y: -y), y0, given, rtol=1e-10, atol=1e-10).ys
    (slope,) = torch.autograd.grad(ys[-1].sum(), times)
    right = torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0], dtype=torch.float64) * torch.tensor(-1.0).double().exp()
    assert torch.allclose(slope, right, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*its steps too.*:DeprecationWarning")
def test_the_old_reading_takes_times_that_require_a_gradient():
    t0 = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    y1 = dxdt.solve(dxdt.ODE(lambda t, y: -y), torch.ones(1).double(), [t0, 0.5, 1.0], solver=dxdt.RK4()).y1
    (slope,) = torch.autograd.grad(y1.sum(), t0)
    assert abs(float(slope) - float(y1)) < 1e-2
