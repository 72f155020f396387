"""Every process with every answer of a small network, sampled by every kind of solver: finite samples."""

import math

import pytest
import torch
from torch import nn

import dxdt
from dxdt import diffusion as d

PROCESSES = [d.VP(), d.SubVP(), d.VE(), d.EDM(), d.RectifiedFlow()]
ANSWERS = [d.Noise(), d.Data(), d.Velocity(), d.Score(), d.AngularVelocity()]
WAYS = {
    "default": {},
    "tau": {"tau": 1.0},
    "heun": {"solver": dxdt.Heun()},
    "ddim": {"solver": d.DDIM()},
    "ancestral": {"solver": d.Ancestral()},
}


class Small(nn.Module):
    """A random network, which remembers in how many axes it was told the time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.axes = nn.Linear(5, 4), set()

    def forward(self, x, told):
        self.axes.add(told.ndim)
        assert torch.isfinite(told).all()
        return self.inner(torch.cat([x, torch.tanh(told).expand(len(x))[:, None].to(x)], -1))


def undefined(process, answer):
    return isinstance(process, d.RectifiedFlow) and isinstance(answer, d.Noise | d.Score)


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_samples_are_finite(process, answer):
    if undefined(process, answer):
        with pytest.raises(ValueError, match=r"says nothing about the data at t = 1 .*use Velocity\(\) or Data\(\)"):
            d.sample(d.Denoiser(Small(), process, answer), (3, 4), steps=4)
        return
    denoiser = d.Denoiser(Small(), process, answer)
    for way, options in WAYS.items():
        for steps in (1, 6):
            x = d.sample(denoiser, (3, 4), steps=steps, seed=0, **options)
            assert torch.isfinite(x).all(), (way, steps)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_defaults_are_defined(process):
    denoiser = d.Denoiser(Small(), process)
    assert torch.isfinite(d.sample(denoiser, (3, 4), steps=5, seed=0)).all()
    loss = d.DenoisingScoreMatching()(denoiser, torch.randn(16, 4), torch.Generator().manual_seed(0))
    assert torch.isfinite(loss).all()


def test_a_flow_answers_as_its_oracle():
    """A network that answers the exact velocity of a Gaussian gives samples of it."""
    process, mean, std = d.RectifiedFlow(), 0.3, 0.5
    oracle = d.gaussian_oracle(process, *torch.tensor([[mean], [std]], dtype=torch.float64).expand(2, 4))
    exact = d.Denoiser(lambda x, t: oracle(x, t).velocity, process)
    assert isinstance(exact.parameterisation, d.Velocity) and exact.clock is d.diffusion_time
    options = dict(steps=40, seed=1, dtype=torch.float64)
    a, b = (d.sample(f, (4000, 4), **options) for f in (exact, oracle))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert abs(a.mean() - mean) < 0.02 and abs(a.std() - std) < 0.02


def test_a_preconditioning_at_the_end_of_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"EDMPreconditioning tells the network inf at t = 1 .*Velocity"):
        d.sample(d.Preconditioned(Small(), d.RectifiedFlow(), d.EDMPreconditioning()), (3, 4), steps=4)
    assert math.isfinite(float(d.EDMPreconditioning().told(torch.tensor(80.0))))


# --- networks as people have them


class Wrapped(nn.Module):
    """A network that returns its answer in something."""

    def __init__(self, wrap, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.wrap = nn.Linear(4, 4).to(dtype), wrap

    def forward(self, x, told, labels=None):
        return self.wrap(self.inner(x) if labels is None else self.inner(x) + labels[:, None])


class Output:
    def __init__(self, sample):
        self.sample = sample


@pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: [x, None], lambda x: {"sample": x}, Output])
def test_answers_in_something(wrap):
    a, b = (d.sample(d.Denoiser(Wrapped(w), d.VP(), d.Data()), (2, 4), steps=4) for w in (wrap, lambda x: x))
    assert torch.equal(a, b)


@pytest.mark.parametrize("wrap", [lambda x: {"logits": x}, lambda x: (None, x), lambda x: 3.0])
def test_answers_in_something_unknown(wrap):
    with pytest.raises(TypeError, match="in which no tensor is known: return a tensor"):
        d.sample(d.Denoiser(Wrapped(wrap), d.VP(), d.Data()), (2, 4), steps=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_draws_have_the_dtype_of_the_network(dtype):
    denoiser = d.Denoiser(Wrapped(lambda x: x, dtype), d.VP(), d.Data())
    assert d.sample(denoiser, (2, 4), steps=4).dtype is torch.promote_types(dtype, torch.float32)
    assert d.sample(denoiser, (2, 4), steps=4, dtype=torch.float64).dtype is torch.float64
    assert torch.isfinite(d.encode(denoiser, torch.randn(2, 4))).all()


@pytest.mark.parametrize("grid", [d.LogSNR(), d.Karras(), d.Time(), d.Quadratic(), d.Angle(), None], ids=repr)
def test_one_step_asks_once_at_the_prior(grid):
    net = Small()
    denoiser = d.Denoiser(net, d.VP(), d.Data())
    drawn = d.draw(denoiser, (3, 4), steps=1, grid=grid, seed=0)
    x = d.VP().prior().sample(d.prior_noise((3, 4), 0)) if hasattr(d, "prior_noise") else None
    assert torch.isfinite(drawn.x).all() and drawn.evaluations == 1
    assert x is None or torch.equal(drawn.x, denoiser(x, torch.ones(3)).data)


def test_a_network_is_told_one_time_for_each_row_everywhere():
    net = Small()
    denoiser = d.Denoiser(net, d.VP(), d.Data())
    d.sample(denoiser, (3, 4), steps=3)
    d.encode(denoiser, torch.randn(3, 4))
    d.log_likelihood(denoiser, torch.randn(3, 4))
    d.DenoisingScoreMatching()(denoiser, torch.randn(3, 4), torch.Generator())
    denoiser(torch.randn(3, 4), torch.tensor(0.5))
    assert net.axes == {1}


def test_conditions_and_gradients_of_samples():
    denoiser = d.Denoiser(Wrapped(lambda x: x), d.VP(), d.Data())
    labels = torch.tensor([0.5, -0.5], requires_grad=True)
    plain = d.sample(denoiser, (2, 4), steps=3)
    assert not plain.requires_grad
    told = d.sample(denoiser, (2, 4), steps=3, condition={"labels": labels})
    assert told.requires_grad and not torch.equal(told, plain)
    assert d.sample(denoiser, (2, 4), steps=3, gradient=dxdt.Direct()).requires_grad
    wrapped = d.sample(d.Conditioned(denoiser, labels=labels), (2, 4), steps=3)
    assert torch.equal(wrapped, told.detach())
    with pytest.raises(TypeError, match="no option context"):
        d.sample(denoiser, (2, 4), steps=3, context=labels)


@pytest.mark.parametrize("process", [d.VP(), d.SubVP(), d.EDM()], ids=lambda p: type(p).__name__)
def test_a_solver_that_asks_at_the_data_is_refused_where_the_flow_is_singular(process):
    denoiser = d.Denoiser(Wrapped(lambda x: x), process, d.Data())
    with pytest.raises(ValueError, match=r"Heun asks for the flow at t0=0, where it is singular"):
        d.sample(denoiser, (3, 4), steps=4, solver=dxdt.Heun(), t0=0.0)
    for solver in (dxdt.Euler(), dxdt.Exponential(2), d.DDIM()):
        assert torch.isfinite(d.sample(denoiser, (3, 4), steps=4, solver=solver, t0=0.0)).all()
