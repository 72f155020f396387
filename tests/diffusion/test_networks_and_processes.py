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
            d.Denoiser(Small(), process, answer)
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
        d.Preconditioned(Small(), d.RectifiedFlow(), d.EDMPreconditioning())
    assert math.isfinite(float(d.EDMPreconditioning().told(torch.tensor(80.0))))
