"""`dxdt bench sample`: what samplers and likelihoods cost beside their network, by every library installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measure import CLOCKS, Times, time_together
from benchmarks.report import Line, missing, show, table_of, write
from dxdt.diffeq import B2, Dopri5, Exponential, Rising
from dxdt.diffusion import VP, Denoiser, Given, Index, integrate, log_likelihood, reverse
from dxdt.nn import UNet
from dxdt.ops.autodiff import Hutchinson
from dxdt.ops.optional import require

__all__ = ["bench_sample"]

_SHAPE = (16, 3, 32, 32)
_IMAGES = (4, 3, 8, 8)
_EARLY, _LATE = 0.05, 12.0


def bench_sample(
    part: tuple[Literal["steps", "likelihood"], ...] = ("steps", "likelihood"),
    steps: int = 20,
    repeats: int = 9,
    clock: Literal["wall", "cpu"] = "wall",
    tol: float = 1e-5,
    out: Path | None = None,
) -> list[Line]:
    """Time samplers and likelihoods by dxdt and its peers, side by side, one thread.

    Samplers: batch 16 of 3x32x32 in float32 with a network that costs nothing, so that the time is the solver's own:
    DPM-Solver++(2M) on one grid of noise levels by all, and order 3 by dxdt. "solve" is a whole solve from the
    choice of times to the last state, over its steps; "step" is what each further step adds. The error is the
    distance from k-diffusion's result, or from that of dxdt where it is not installed.

    Likelihood: a U-Net, one Hutchinson probe, the probability flow in t, against the loop of score_sde (scipy's
    RK45, which is Dopri5, on the host, the network asked twice for each value); steps are calls of the network. The
    error is the largest distance from a tight reference with the same probe, in nats per dimension.

    Args:
        part: steps, likelihood.
        steps: steps of the samplers.
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too.
        tol: relative and absolute tolerance of the likelihoods.
        out: folder for results.json, table.txt and times.png.
    """
    torch.set_num_threads(1)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    lines, tables = list[Line](), []
    if "steps" in part:
        found = _steps(steps, repeats, clock, console)
        lines += found
        title = f"samplers, batch {_SHAPE[0]} of 3x32x32, {steps} steps, time of the solver alone"
        tables.append(table_of(title, found))
        show(console, tables[-1:])
    if "likelihood" in part:
        found = _likelihoods(max(3, repeats // 3), clock, tol, console)
        lines += found
        tables.append(table_of(f"likelihood of {_IMAGES[0]} images 3x8x8 under a U-Net, tolerance {tol:g}", found))
        show(console, tables[-1:])
    if out is not None:
        write(out, lines, tables, {"repeats": repeats, "clock": clock, "versions_of_peers": _versions()})
        console.print(f"wrote {out}/results.json, table.txt and times.png")
    return lines


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in ("diffusers", "scipy", "k-diffusion"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _levels(steps: int) -> Tensor:
    """Noise levels sigma that all samplers step through."""
    return torch.linspace(_LATE ** (1 / 7), _EARLY ** (1 / 7), steps + 1, dtype=torch.float64) ** 7


Sampler = Callable[[int], Callable[[], Tensor]]
"""From a number of steps to a run that returns the last state, where x = x_0 + sigma noise."""


@dataclass(frozen=True)
class _Still:
    """A network that answers at once, and always the same."""

    answer: Tensor

    def __call__(self, x: Tensor, told: Tensor) -> Tensor:
        return self.answer


def _noise(seed: int) -> Tensor:
    return torch.randn(_SHAPE, generator=torch.Generator().manual_seed(seed))


def _steps(steps: int, repeats: int, clock: str, console: Console) -> list[Line]:
    samplers: dict[str, Sampler] = {
        "dxdt, order 2": lambda n: _ours(n, Exponential(2, second=B2(), start=Rising())),
        "dxdt, order 3": lambda n: _ours(n, Exponential(3)),
    }
    for package, name, made in (("diffusers", "diffusers", _diffusers), ("k_diffusion", "k-diffusion", _k_diffusion)):
        line = missing(package, name)
        if line is None:
            samplers[name] = made
        else:
            console.print(line, style="yellow", highlight=False)
    more = 3 * steps
    runs = {(name, n): made(n) for name, made in samplers.items() for n in (steps, more)}
    ends = {name: runs[name, steps]().double() for name in samplers}
    reference = ends.get("k-diffusion", ends["dxdt, order 2"])
    errors = {name: float((end - reference).norm() / reference.norm()) for name, end in ends.items()}
    timed = time_together({f"{name}|{n}": run for (name, n), run in runs.items()}, repeats, clock=CLOCKS[clock])
    found: list[Line] = []
    for work in ("solve", "step"):
        times = {name: _share(timed[f"{name}|{steps}"], timed[f"{name}|{more}"], work, steps) for name in samplers}
        base = times["dxdt, order 2"].median
        found += [
            Line("sampler", _SHAPE[0], work, name, t, steps, errors[name], t.median / base) for name, t in times.items()
        ]
    return found


def _share(few: Times, many: Times, work: str, steps: int) -> Times:
    """Times of a solve, or those of `steps` further steps."""
    if work == "solve":
        return few
    middle = (many.median - few.median) / 2
    spread = ((many.high - many.low) + (few.high - few.low)) / 4
    return Times(middle, middle - spread, middle + spread, few.first)


def _ours(steps: int, solver: Exponential) -> Callable[[], Tensor]:
    process, sigmas = VP(), _levels(steps)
    denoiser = Denoiser(_Still(_noise(1)), process, clock=Index())
    times = process.time(-sigmas.log())
    x, grid = _noise(2), Given(times)
    scale = float(1 / process.a(times[-1]))

    def run() -> Tensor:
        with torch.no_grad():
            return integrate(denoiser, x, grid=grid, solver=solver).y1 * scale

    return run


def _diffusers(steps: int) -> Callable[[], Tensor]:
    module = require("diffusers", "interop")
    scheduler = module.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", lower_order_final=False)
    sigmas, network, x = _levels(steps).float(), _Still(_noise(1)), _noise(2)
    scale = float((1 + sigmas[-1] ** 2).sqrt())

    def run() -> Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.set_timesteps(steps)
            scheduler.sigmas = sigmas
            scheduler.set_begin_index(0)
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(network(state, t), t, state, return_dict=False)[0]
            return state * scale

    return run


def _sampling() -> ModuleType:
    """k_diffusion.sampling alone: the rest of the package needs image libraries, the samplers none."""
    if "k_diffusion" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        assert found is not None
        package: Any = ModuleType("k_diffusion")
        utils: Any = ModuleType("k_diffusion.utils")
        package.__path__ = found.submodule_search_locations
        utils.append_dims = lambda x, target: x[(...,) + (None,) * (target - x.ndim)]
        package.utils = utils
        sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"] = package, utils
    return require("k_diffusion.sampling", "bench")


def _k_diffusion(steps: int) -> Callable[[], Tensor]:
    sampling = _sampling()
    sigmas, network = _levels(steps).float(), _Still(_noise(1))
    x = _noise(2) * float((1 + sigmas[0] ** 2).sqrt())

    def model(y: Tensor, sigma: Tensor) -> Tensor:
        """The least that turns noise into data; its own wrappers look the time up in a table besides."""
        return y - sigma[:, None, None, None] * network(y, sigma)

    return lambda: sampling.sample_dpmpp_2m(model, x, sigmas, disable=True)


class _Counted(nn.Module):
    """A network that counts its calls."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x, told)


def _likelihoods(repeats: int, clock: str, tol: float, console: Console) -> list[Line]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(_IMAGES[1], channels=16, attention=(1,))
        for p in net.parameters():  # the last convolution begins at zero, which would say nothing
            nn.init.normal_(p, std=0.05)
    counted = _Counted(net)
    denoiser = Denoiser(counted, VP())
    images = 0.5 * torch.randn(_IMAGES, generator=torch.Generator().manual_seed(3))
    dims, kind = math.prod(_IMAGES[1:]), Hutchinson(1, seed=5)

    def ours(tight: float = tol, pair: Any = None) -> Tensor:
        options: dict[str, Any] = dict(divergence=kind, t0=1e-3, rtol=tight, atol=tight, solver=pair)
        with torch.no_grad():
            return log_likelihood(denoiser, images, **options).log_prob

    runs: dict[str, Callable[[], Tensor]] = {"dxdt, Dopri5": lambda: ours(pair=Dopri5()), "dxdt, Tsit5": ours}
    if missing("scipy", "scipy") is None:
        runs["score_sde's loop"] = lambda: _score_sde(denoiser, images, kind, tol)
    else:
        console.print(missing("scipy", "scipy"), style="yellow", highlight=False)
    reference = ours(tol / 30, Dopri5())
    errors, calls = {}, {}
    for name, run in runs.items():
        counted.calls = 0
        errors[name] = float((run() - reference).abs().max()) / dims
        calls[name] = counted.calls
    times = time_together(runs, repeats, clock=CLOCKS[clock])
    base = times["dxdt, Dopri5"].median
    return [
        Line("likelihood", _IMAGES[0], "likelihood", name, t, calls[name], errors[name], t.median / base)
        for name, t in times.items()
    ]


def _score_sde(denoiser: Denoiser, images: Tensor, kind: Hutchinson, tol: float) -> Tensor:
    """Log densities as score_sde finds them: the state goes to the host and back, and the drift is formed once for
    itself and once for its divergence."""
    integrate_host = require("scipy.integrate", "bench")
    equation, shape, batch = reverse(denoiser), images.shape, len(images)
    (direction,) = kind.directions(images)

    def drift(x: Tensor, t: float) -> Tensor:
        return equation.drift(torch.full((batch,), t, dtype=x.dtype), x)

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(y[:-batch].reshape(shape)).float()
        with torch.no_grad():
            value = drift(x, t)
        with torch.enable_grad():
            x.requires_grad_(True)
            (pulled,) = torch.autograd.grad((drift(x, t) * direction).sum(), x)
        change = (pulled * direction).flatten(1).sum(1)
        return np.concatenate([value.reshape(-1).numpy(), change.numpy()])

    start = np.concatenate([images.reshape(-1).numpy(), np.zeros(batch)])
    y = integrate_host.solve_ivp(slope, (1e-3, 1.0), start, rtol=tol, atol=tol, method="RK45").y[:, -1]
    latent = torch.from_numpy(y[:-batch].reshape(shape)).float()
    return denoiser.process.prior().log_prob(latent) + torch.from_numpy(y[-batch:])
