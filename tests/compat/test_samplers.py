"""k-diffusion's and diffusers' own SDE samplers, run with our Brownian sources in torchsde's place.

The denoiser is exact, that of data N(MEAN, SPREAD^2), so that samples have a known law.
"""

import importlib
import importlib.util
import math
import sys
import types
import warnings

import pytest
import torch

import dxdt.compat.torchsde

MEAN, SPREAD = 0.7, 0.5
PIXELS = (4, 8, 8)
SEEDS = [11, 12, 13]


def clean(x, sigma):
    """E[clean | x] where x = clean + sigma noise."""
    share = SPREAD**2 / (SPREAD**2 + sigma**2)
    return MEAN + share * (x - MEAN)


def pure(rows, sigma):
    """x at the largest sigma, one seed a row."""
    noise = [torch.randn(PIXELS, generator=torch.Generator().manual_seed(row)) for row in range(rows)]
    return MEAN + math.sqrt(SPREAD**2 + sigma**2) * torch.stack(noise)


def has_unit_variance(noise):
    each = torch.stack(noise)
    assert len(each) > 10
    n = each.numel()
    assert abs(each.mean()) < 4 / math.sqrt(n)
    assert abs(each.square().mean() - 1) < 4 * math.sqrt(2 / n)


def has_law_of_data(x, slack):
    n = x.numel()
    assert abs(x.mean() - MEAN) < 4 * SPREAD / math.sqrt(n) + slack
    assert abs(x.std() / SPREAD - 1) < 4 / math.sqrt(2 * n) + slack


@pytest.fixture
def substituted(monkeypatch):
    """Import a module of another package, with ours where it imports torchsde."""
    ours = dxdt.compat.torchsde

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "torchsde", ours)
        module = importlib.import_module(name)
        assert module.torchsde is ours
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return load


@pytest.fixture
def k_diffusion(monkeypatch, substituted):
    """k_diffusion.sampling alone: the rest of the package needs image libraries, the samplers none."""
    pytest.importorskip("torchdiffeq")
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed (pip install --no-deps k-diffusion)")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = found.submodule_search_locations
    utils.append_dims = lambda x, target: x[(...,) + (None,) * (target - x.ndim)]
    package.utils = utils
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.utils", utils)
    return substituted("k_diffusion.sampling")


class Recorded:
    """A noise sampler that remembers what it gave, and over which interval."""

    def __init__(self, sampler):
        self.sampler, self.noise, self.spans = sampler, [], []

    def __call__(self, a, b):
        noise = self.sampler(a, b)
        self.noise.append(noise)
        self.spans.append((float(a), float(b)))
        return noise

    def inside(self):
        """Noise of the steps between positive sigmas."""
        return [noise for noise, span in zip(self.noise, self.spans, strict=True) if min(span) > 0]


def denoise(x, sigma):
    return clean(x, sigma[:, None, None, None])


K_SAMPLERS = ["sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"]


@pytest.mark.parametrize("name", K_SAMPLERS)
def test_samplers_of_k_diffusion(k_diffusion, name):
    sample = getattr(k_diffusion, name)
    sigmas = k_diffusion.get_sigmas_karras(30, 0.02, 14.6)

    def run(rows, seed, sigmas=sigmas):
        x = pure(rows, float(sigmas[0]))
        noise = Recorded(k_diffusion.BrownianTreeNoiseSampler(x, 0.02, 14.6, seed=seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return sample(denoise, x, sigmas, noise_sampler=noise, disable=True), noise

    x, noise = run(3, SEEDS)
    again, _ = run(3, SEEDS)
    assert torch.equal(x, again)
    for row, seed in enumerate(SEEDS[:2]):
        assert torch.equal(run(row + 1, SEEDS[: row + 1])[0][row], x[row]), seed
    assert not torch.equal(run(3, [11, 12, 14])[0][2], x[2])
    assert torch.equal(run(3, [11, 12, 14])[0][:2], x[:2])
    has_unit_variance(noise.inside())
    many, noise = run(40, 5)
    assert torch.equal(run(2, 5)[0], many[:2])
    has_unit_variance(noise.inside())
    has_law_of_data(many, 0.04)


def test_noise_of_k_diffusion_adds_up(k_diffusion):
    """What the samplers need of a tree: the noise of a step is that of its parts."""
    x = torch.zeros(2, *PIXELS)
    sampler = k_diffusion.BrownianTreeNoiseSampler(x, 0.02, 14.6, seed=SEEDS[:2])
    sigmas = k_diffusion.get_sigmas_karras(7, 0.02, 14.6)[:-1]
    parts = sum(sampler(a, b) * (a - b).sqrt() for a, b in zip(sigmas, sigmas[1:], strict=False))
    whole = sampler(sigmas[0], sigmas[-1]) * (sigmas[0] - sigmas[-1]).sqrt()
    assert torch.allclose(parts, whole, atol=1e-4)


@pytest.fixture
def diffusers(substituted, monkeypatch):
    """The schedulers of diffusers that stand on torchsde."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (pip install dxdt[interop])")
    tree = substituted("diffusers.schedulers.scheduling_dpmsolver_sde")
    cosine = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    monkeypatch.setattr(cosine, "BrownianTreeNoiseSampler", tree.BrownianTreeNoiseSampler)
    return {"DPMSolverSDE": tree.DPMSolverSDEScheduler, "Cosine": cosine.CosineDPMSolverMultistepScheduler}


def run_dpm_sde(kind, rows, seed):
    scheduler = kind(use_karras_sigmas=True, noise_sampler_seed=seed)
    scheduler.set_timesteps(25)
    x = pure(rows, float(scheduler.sigmas[0]))
    logs = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log()
    for t in scheduler.timesteps:
        low = int(t.floor().clamp(0, len(logs) - 2))
        sigma = torch.lerp(logs[low], logs[low + 1], (t - low).float()).exp()
        eps = (x - clean(x, sigma)) / sigma
        x = scheduler.step(eps, t, x)[0]
        if not isinstance(scheduler.noise_sampler, Recorded):
            scheduler.noise_sampler = Recorded(scheduler.noise_sampler)
    return x, scheduler.noise_sampler


def run_cosine(kind, rows, seed):
    scheduler = kind(sigma_min=0.02, sigma_max=20.0, sigma_data=SPREAD, prediction_type="epsilon")
    scheduler.set_timesteps(40)
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    x = pure(rows, 20.0)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        # The scheduler forms the clean image as EDM does: c_skip x + c_out output.
        norm = sigma**2 + SPREAD**2
        output = (clean(x, sigma) - SPREAD**2 / norm * x) / (sigma * SPREAD / norm.sqrt())
        with warnings.catch_warnings():
            # In its last step it asks for noise down to sigma = 0, which it multiplies by zero.
            warnings.filterwarnings("ignore", message=".*is outside")
            x = scheduler.step(output, t, x, generator=generators if isinstance(seed, list) else generators[0])[0]
        if not isinstance(scheduler.noise_sampler, Recorded):
            scheduler.noise_sampler = Recorded(scheduler.noise_sampler)
    return x, scheduler.noise_sampler


RUNS = {"DPMSolverSDE": run_dpm_sde, "Cosine": run_cosine}


@pytest.mark.parametrize("name", RUNS)
def test_schedulers_of_diffusers(diffusers, name):
    run, kind = RUNS[name], diffusers[name]
    x, noise = run(kind, 3, SEEDS)
    assert torch.equal(run(kind, 3, SEEDS)[0], x)
    assert torch.equal(run(kind, 1, SEEDS[:1])[0][0], x[0])
    other = run(kind, 3, [11, 12, 14])[0]
    assert torch.equal(other[:2], x[:2]) and not torch.equal(other[2], x[2])
    has_unit_variance(noise.inside())
    many, noise = run(kind, 40, 5)
    has_unit_variance(noise.inside())
    has_law_of_data(many, 0.04)
