"""Our solvers beside those of diffusers and k-diffusion: one grid, one network, one noise, and the same samples.

What a peer rounds to float32 (its levels of noise, and its states) is patched to float64, so that every
comparison is to 1e-10, where the peers as they come would allow about 1e-6.
"""

import importlib
import importlib.util
import math
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dxdt
from dxdt import DataPrediction, Exponential, InRatio, Inside, NoisePrediction, Rising
from dxdt.diffusion import (
    DDIM,
    EDM,
    VP,
    Ancestral,
    EDMPreconditioning,
    Given,
    Preconditioned,
    Process,
    integrate,
    reverse,
)
from dxdt.ops.tree import Layout
from dxdt.paths.driver import Increment

pytestmark = [
    pytest.mark.filterwarnings("ignore:Exponential:RuntimeWarning"),
    # diffusers 0.42 with numpy 2, and its farewell to noise prediction
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type:FutureWarning"),
]

SPREAD = 0.5
SHAPE = (3, 2, 4, 4)
STEPS = 9
D, N = DataPrediction(), NoisePrediction()


class Net(nn.Module):
    """A small random network F(c_in y, c_noise), smooth so that every order shows."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = math.prod(SHAPE[1:])
        self.into, self.out = (
            torch.randn(*shape, generator=generator, dtype=torch.float64) / 6 for shape in ((size, 24), (24, size))
        )

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        inner = (x.flatten(1) @ self.into + told.double().reshape(-1, 1)).tanh()
        return (inner @ self.out).reshape(x.shape)


NET = Net()


def denoiser(process: Process) -> Preconditioned:
    return Preconditioned(NET, process, EDMPreconditioning(SPREAD))


VE_ORACLE, VP_ORACLE = denoiser(EDM()), denoiser(VP())


def clean(y: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | y] for y = x_0 + sigma noise: what k-diffusion calls a model."""
    return VE_ORACLE(y, sigma.double()).data


def noise_at(x: Tensor, sigma: Tensor) -> Tensor:
    """E[eps | x] where x = (x_0 + sigma noise) / sqrt(1 + sigma^2), as diffusers scales its states."""
    y = x * (1 + sigma**2).sqrt()
    return (y - clean(y, sigma)) / sigma


def levels(zero: bool = False) -> Tensor:
    """An uneven grid of sigma."""
    rho = torch.linspace(12.0 ** (1 / 5), 0.05 ** (1 / 5), STEPS + 1, dtype=torch.float64) ** 5
    return torch.cat([rho, torch.zeros(1, dtype=torch.float64)]) if zero else rho


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@dataclass(frozen=True)
class Told:
    """A driver whose normals are given, one for each step."""

    z: Tensor
    adaptive: bool = False
    levy: Any = None

    def bind(self, *given: Any) -> "Told":
        return self

    def increment(self, t: Any, dt: Any, step: Any = 0) -> Increment:
        """The increment of one step, the same for all rows of the batch."""
        k = int(np.ravel(step)[0])
        scale = float(np.ravel(np.abs(dt))[0]) ** 0.5
        return Increment(dt, scale * self.z[k].flatten(1), None)

    def normals(self, step: Any, stream: int, size: int) -> Tensor:
        """For methods that take noise beside the path: the same numbers."""
        return self.z[int(np.ravel(step)[0])].flatten(1)


def ours(process: Process, sigmas: Tensor, x: Tensor, solver: Any, **options: Any) -> Tensor:
    """Our solver on the same levels; the state of a process with a < 1 is scaled by a."""
    times = process.time(-sigmas.log())
    if sigmas[-1] == 0:
        times[-1] = 0.0
    return integrate(denoiser(process), x, grid=Given(times), solver=solver, **options).y1


def agree(found: Tensor, peer: Tensor, bound: float = 1e-10) -> None:
    assert torch.isfinite(found).all() and found.abs().max() > 0.1
    assert (found - peer).abs().max() <= bound * max(1.0, float(peer.abs().max()))


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Any:
    """k_diffusion.sampling alone: the rest of the package needs image libraries, the samplers none."""
    for needed in ("torchdiffeq", "torchsde", "scipy"):
        pytest.importorskip(needed)
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed (pip install --no-deps k-diffusion)")
    package: Any = types.ModuleType("k_diffusion")
    utils: Any = types.ModuleType("k_diffusion.utils")
    package.__path__ = found.submodule_search_locations
    utils.append_dims = lambda x, target: x[(...,) + (None,) * (target - x.ndim)]
    package.utils = utils
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.utils", utils)
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling", raising=False)
    module = importlib.import_module("k_diffusion.sampling")
    monkeypatch.setitem(sys.modules, "k_diffusion.sampling", module)
    return module


TWO_M = Exponential(2, D, second=dxdt.B2(), start=Rising())
TWO_S = Exponential(2, D, Inside(0.5), second=dxdt.B2())


@pytest.mark.parametrize(
    ("name", "solver", "zero", "options"),
    [
        ("sample_euler", dxdt.Euler(), False, {}),
        ("sample_euler", Exponential(1), True, {}),
        ("sample_euler", Exponential(1, N), True, {}),
        ("sample_euler", DDIM(), True, {}),
        ("sample_heun", dxdt.Heun(), False, {}),
        ("sample_dpmpp_2m", TWO_M, False, {}),
        ("sample_dpmpp_2m", TWO_M, True, {}),
        ("sample_dpmpp_2s_ancestral", TWO_S, True, {"eta": 0.0}),
        ("sample_lms", Exponential(4, N, InRatio(), start=Rising()), False, {"order": 4}),
        ("sample_lms", Exponential(3, N, InRatio(), start=Rising()), False, {"order": 3}),
    ],
)
def test_k_diffusion_without_noise(sampling: Any, name: str, solver: Any, zero: bool, options: dict[str, Any]):
    sigmas = levels(zero)
    x = sigmas[0] * start()
    peer = getattr(sampling, name)(clean, x, sigmas, disable=True, **options)
    agree(ours(EDM(), sigmas, x, solver), peer)


@pytest.mark.parametrize(("solver", "tau"), [(Ancestral(), 1.0), (DDIM(), 1.0), (DDIM(eta=1.0), 0.0)], ids=str)
def test_k_diffusion_with_given_noise(sampling: Any, solver: Any, tau: float):
    sigmas = levels(True)
    x = sigmas[0] * start()
    z = torch.randn(STEPS + 1, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = iter(z)
    peer = sampling.sample_euler_ancestral(clean, x, sigmas, disable=True, noise_sampler=lambda a, b: next(given))
    agree(ours(EDM(), sigmas, x, solver, tau=tau, driver=Told(z)), peer)


def test_k_diffusion_on_one_brownian_path(sampling: Any):
    """DPM-Solver++ with noise inside its steps: its sampler is handed our path."""
    sigmas = levels()
    x = sigmas[0] * start()
    driver = dxdt.Brownian(7)
    equation = reverse(VE_ORACLE, 1.0)
    layout = Layout.of(x, per_sample=True)
    ends = (np.full(SHAPE[0], float(s)) for s in (sigmas[0], sigmas[-1]))
    path = TWO_S.bind(driver, equation, *ends, layout)

    def noise(a: Tensor, b: Tensor) -> Tensor:
        start, end = (np.full(SHAPE[0], -math.log(s)) for s in (a, b))
        return path.unit(start, end, 0).reshape(SHAPE)

    peer = sampling.sample_dpmpp_sde(clean, x, sigmas, disable=True, noise_sampler=noise)
    agree(ours(EDM(), sigmas, x, TWO_S, tau=1.0, driver=driver), peer)


class Doubled:
    """The module torch, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a scheduler of diffusers on given levels in float64."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (pip install dxdt[interop])")

    def make(module: str, name: str, steps: int, **config: Any) -> Any:
        found = importlib.import_module(f"diffusers.schedulers.{module}")
        monkeypatch.setattr(found, "torch", Doubled())
        made = getattr(found, name)(**config)
        made.set_timesteps(steps)
        return made

    return make


def placed(made: Any, sigmas: Tensor) -> Any:
    made.sigmas = sigmas
    made.set_begin_index(0)
    return made


MULTISTEP = [
    ("dpmsolver", Exponential(1), dict(solver_order=1)),
    ("dpmsolver", TWO_M, dict(solver_order=2, lower_order_final=False)),
    ("dpmsolver", Exponential(2, D, second=dxdt.B2(), start=Rising(), lower_final=True), dict(solver_order=2)),
    (
        "dpmsolver",
        Exponential(2, N, second=dxdt.B2(), start=Rising()),
        dict(solver_order=2, algorithm_type="dpmsolver", lower_order_final=False),
    ),
]
MULTISTEP += [
    (
        "unipc",
        Exponential(order + 1, kind, corrector=dxdt.Corrector(), second=second, start=Rising()),
        dict(solver_order=order, solver_type=name, predict_x0=kind == D, lower_order_final=False),
    )
    for order in (1, 2, 3)
    for name, second in (("bh1", dxdt.B1()), ("bh2", dxdt.B2()))
    for kind in (D, N)
]
SCHEDULERS = {
    "dpmsolver": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "unipc": ("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
}


@pytest.mark.parametrize(("family", "solver", "config"), MULTISTEP)
def test_multistep_schedulers_of_diffusers(scheduler: Any, family: str, solver: Any, config: dict[str, Any]):
    sigmas = levels()
    made = placed(scheduler(*SCHEDULERS[family], STEPS, final_sigmas_type="sigma_min", **config), sigmas)
    x = start()
    peer = x
    for k, t in enumerate(made.timesteps):
        peer = made.step(noise_at(peer, sigmas[k]), t, peer)[0]
    agree(ours(VP(), sigmas, x, solver), peer)


def test_dpm_solver_with_given_noise(scheduler: Any):
    """SDE-DPM-Solver++(2M): the weights of the ordinary method at twice the step."""
    sigmas = levels()
    config = dict(algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min", lower_order_final=False)
    made = placed(scheduler(*SCHEDULERS["dpmsolver"], STEPS, **config), sigmas)
    z = torch.randn(STEPS, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = start()
    peer = x
    for k, t in enumerate(made.timesteps):
        peer = made.step(noise_at(peer, sigmas[k]), t, peer, variance_noise=z[k])[0]
    agree(ours(VP(), sigmas, x, TWO_M, tau=1.0, driver=Told(z)), peer)


def test_heun_of_diffusers(scheduler: Any):
    sigmas = levels()
    twice = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    made = placed(scheduler("scheduling_heun_discrete", "HeunDiscreteScheduler", STEPS), twice)
    x = sigmas[0] * start()
    peer = x
    for k in range(2 * STEPS):
        peer = made.step((peer - clean(peer, twice[k])) / twice[k], made.timesteps[0], peer)[0]
    agree(ours(EDM(), sigmas, x, dxdt.Heun()), peer)


def test_euler_of_edm(scheduler: Any):
    sigmas = levels(True)
    made = scheduler("scheduling_edm_euler", "EDMEulerScheduler", STEPS + 1, sigma_data=SPREAD)
    placed(made, sigmas).is_scale_input_called = True
    x = sigmas[0] * start()
    peer = x
    for k, t in enumerate(made.timesteps):
        peer = made.step(peer, t, peer, pred_original_sample=clean(peer, sigmas[k]))[0]
    agree(ours(EDM(), sigmas, x, Exponential(1)), peer)


@pytest.mark.parametrize("zero", [False, True])
def test_dpm_solver_of_edm(scheduler: Any, zero: bool):
    sigmas = levels(zero)
    made = scheduler(
        "scheduling_edm_dpmsolver_multistep",
        "EDMDPMSolverMultistepScheduler",
        len(sigmas) - 1,
        sigma_data=SPREAD,
        final_sigmas_type="zero" if zero else "sigma_min",
        lower_order_final=False,
    )
    placed(made, sigmas)
    x = sigmas[0] * start()
    peer = x
    for k, t in enumerate(made.timesteps):
        norm = sigmas[k] ** 2 + SPREAD**2
        # The scheduler forms the clean state as EDM does: c_skip x + c_out output.
        output = (clean(peer, sigmas[k]) - SPREAD**2 / norm * peer) / (sigmas[k] * SPREAD / norm.sqrt())
        peer = made.step(output, t, peer)[0]
    agree(ours(EDM(), sigmas, x, TWO_M), peer)


def test_the_comparison_sees_a_weight(sampling: Any):
    """The exact weight of the second order is another method than the peers'."""
    sigmas = levels()
    x = sigmas[0] * start()
    peer = sampling.sample_dpmpp_2m(clean, x, sigmas, disable=True)
    exact = ours(EDM(), sigmas, x, Exponential(2, start=Rising()))
    assert 1e-4 < (exact - peer).abs().max() < 1.0


def table() -> Tensor:
    """Our process at the thousand levels of a discrete model."""
    return VP().a(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2


def discrete(timesteps: Tensor) -> Given:
    return Given(torch.cat([(timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)]))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_of_diffusers(scheduler: Any, eta: float):
    made = scheduler("scheduling_ddim", "DDIMScheduler", STEPS, clip_sample=False)
    made.alphas_cumprod, made.final_alpha_cumprod = table(), torch.ones((), dtype=torch.float64)
    z = torch.randn(STEPS, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = start()
    peer = x
    for k, t in enumerate(made.timesteps):
        sigma = (1 / table()[t] - 1).sqrt()
        peer = made.step(noise_at(peer, sigma), t, peer, eta=eta, variance_noise=z[k])[0]
    options: dict[str, Any] = dict(grid=discrete(made.timesteps), tau=eta, **({"driver": Told(z)} if eta else {}))
    agree(integrate(VP_ORACLE, x, solver=DDIM(), **options).y1, peer)
    if eta == 0:
        agree(integrate(VP_ORACLE, x, solver=Exponential(1), **options).y1, peer)


@pytest.mark.parametrize(("variance", "width"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_ancestral_sampling_of_diffusers(scheduler: Any, monkeypatch: pytest.MonkeyPatch, variance: str, width: float):
    made = scheduler("scheduling_ddpm", "DDPMScheduler", 10, clip_sample=False, variance_type=variance)
    made.alphas_cumprod, made.one = table(), torch.ones((), dtype=torch.float64)
    z = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = iter(z)
    monkeypatch.setattr(sys.modules[type(made).__module__], "randn_tensor", lambda *a, **b: next(given))
    x = start()
    peer = x
    for t in made.timesteps:
        sigma = (1 / table()[t] - 1).sqrt()
        peer = made.step(noise_at(peer, sigma), t, peer)[0]
    found = integrate(VP_ORACLE, x, grid=discrete(made.timesteps), tau=1.0, solver=Ancestral(width), driver=Told(z)).y1
    agree(found, peer)
