"""Fit a neural SDE to an ensemble of paths: first its transitions, then its solutions.

First the transitions of the data are made likely, each as one Euler step, which costs no solve:

    - log N(y_{i+1}; y_i + f h, g g^T h),        h = t_{i+1} - t_i.

That leaves an error of the order of h in the fields. Then, from states of the data at random times,
several paths are solved over the next few times, and scored against what followed:

    mean over windows of ES((X_{i+1}, ..., X_{i+k}); (y_{i+1}, ..., y_{i+k})),        X_i = y_i,

with gradients through the solve. The energy score is proper: where the law of the data is that of
some SDE of the model, this is least there.

Source: Elerian, Chib, Shephard, "Likelihood inference for discretely observed nonlinear diffusions"
(2001), for the first; `dxdt.models.energy_score` for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffeq import SDE, Diagonal, General, Ito, Milstein, solve
from dxdt.models import NeuralSDE, energy_score
from dxdt.nn import MLP
from dxdt.paths import Increments

_SOFT_ONE = 0.541324854612918  # softplus of it is one

Field = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class Ensemble:
    """Paths at common times, split for fitting and holding out.

    Attributes:
        ts: (times,), float64, increasing.
        seen, held_out: (paths, times, features), float32.
        names: of the features, for readers.
        truth: drift and diffusion, where they are known.
        unit: of time.
    """

    ts: Float[Tensor, " times"]
    seen: Float[Tensor, "paths times features"]
    held_out: Float[Tensor, "held times features"]
    names: tuple[str, ...]
    truth: tuple[Field, Field] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Windows:
    """How an ensemble is fitted.

    Attributes:
        width, depth: of both networks.
        horizon: times that each short solve must meet.
        samples: paths for each.
        substeps: solver steps between two times of the data.
        periodic: the fields see the time, as an angle that turns once from the first to the last.
    """

    width: int = 48
    depth: int = 2
    horizon: int = 2
    samples: int = 8
    substeps: int = 5
    periodic: bool = False


@final
class _Net(nn.Module):
    """A perceptron of the state and, for a day, of the time as an angle."""

    def __init__(self, features: int, outputs: int, settings: Windows, day: float | None) -> None:
        super().__init__()
        self.day = day
        inputs = features + (0 if day is None else 2)
        self.net = MLP(inputs, outputs, width=settings.width, depth=settings.depth, output_scale=0.1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.day is not None:
            angle = (2 * torch.pi / self.day * t).to(y.dtype).reshape(*t.shape, 1).expand(*y.shape[:-1], 1)
            y = torch.cat((y, angle.sin(), angle.cos()), -1)
        return self.net(y)


@final
class _Factor(nn.Module):
    """A lower triangular matrix with positive diagonal: every covariance has one such factor."""

    def __init__(self, features: int, settings: Windows, day: float | None, level: float) -> None:
        super().__init__()
        self.features, self.level = features, level
        self.net = _Net(features, features * (features + 1) // 2, settings, day)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        n, value = self.features, self.net(t, y)
        diagonal = nn.functional.softplus(value[..., :n] + _SOFT_ONE)
        below = torch.tril_indices(n, n, -1, device=y.device)
        flat = torch.diag_embed(diagonal).flatten(-2)
        if n > 1:
            flat = flat.index_add(-1, below[0] * n + below[1], value[..., n:])
        return self.level * flat.unflatten(-1, (n, n))


@final
class EnsembleModel(nn.Module):
    """A neural SDE in the units in which the data have deviation one."""

    centre: Tensor
    scale: Tensor

    def __init__(self, data: Ensemble, settings: Windows) -> None:
        super().__init__()
        features = data.seen.shape[-1]
        self.register_buffer("centre", data.seen.mean((0, 1)))
        self.register_buffer("scale", data.seen.flatten(0, 1).std(0))
        ts = data.ts
        step = float(ts[1:].sub(ts[:-1]).mean())
        day = float(ts[-1] - ts[0]) + step if settings.periodic else None
        # The level of noise at the start: what the increments of the data say.
        moved = (data.seen[:, 1:] - data.seen[:, :-1]) / self.scale
        level = float((moved.square().mean() / step).sqrt())
        self.sde = NeuralSDE(
            _Net(features, features, settings, day),
            _Factor(features, settings, day, level),
            dt=step / settings.substeps,
            noise=General(features),
        )

    def fields(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return drift (*batch, n) and diffusion (*batch, n, n) at states (*batch, n), in data units."""
        scaled = (y - self.centre) / self.scale
        return self.sde.drift(t, scaled) * self.scale, self.sde.diffusion(t, scaled) * self.scale.unsqueeze(-1)

    @torch.no_grad()
    def sample(self, start: Tensor, ts: Tensor, seed: int) -> Tensor:
        """Return one path from each state (paths, features), as (paths, times, features), in data units."""
        paths = self.sde((start - self.centre) / self.scale, ts, seed=seed)
        return (paths * self.scale + self.centre).transpose(0, 1)


def window_loss(
    model: EnsembleModel, data: Ensemble, settings: Windows, batch: int, generator: torch.Generator
) -> Tensor:
    """Return the energy score of a batch of short solves, all over one random window of time."""
    horizon, k = settings.horizon, settings.samples
    first = int(torch.randint(len(data.ts) - horizon, (), generator=generator))
    rows = torch.randint(len(data.seen), (batch,), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    window = (data.seen[rows, first : first + horizon + 1] - model.centre) / model.scale
    start = window[:, 0].repeat(k, 1)
    paths = model.sde(start, data.ts[first : first + horizon + 1], seed=seed)[1:]
    samples = paths.permute(1, 0, 2).reshape(k, batch, -1)
    return energy_score(samples, window[:, 1:].flatten(1)).mean()


def transition_loss(model: EnsembleModel, data: Ensemble, batch: int, generator: torch.Generator) -> Tensor:
    """Return the mean negative log-likelihood of single transitions, taken as one Euler step each."""
    paths, times, _ = data.seen.shape
    row, i = (torch.randint(n, (batch,), generator=generator) for n in (paths, times - 1))
    here, there = ((data.seen[row, j] - model.centre) / model.scale for j in (i, i + 1))
    h = (data.ts[i + 1] - data.ts[i]).to(here.dtype).unsqueeze(-1)
    factor = model.sde.diffusion(data.ts[i], here)
    miss = (there - here - h * model.sde.drift(data.ts[i], here)).unsqueeze(-1)
    unit = torch.linalg.solve_triangular(factor, miss, upper=False).squeeze(-1)
    logs = factor.diagonal(dim1=-2, dim2=-1).log()
    return (0.5 * unit.square() / h + logs).sum(-1).mean()


def double_well(*, paths: int = 2048, seed: int = 0) -> Ensemble:
    """Return paths of dy = 2 (y - y^3) dt + (1 + tanh(2 y) / 2) / 2 dW, half of them held out.

    They begin between two wells, at N(0, 0.3^2), and are read at 21 times in [0, 5]; the right well
    is noisier than the left. Solved by Milstein's method with steps of 0.01.
    """
    drift, diffusion = _double_well_drift, _double_well_diffusion
    ts = torch.linspace(0, 5, 21, dtype=torch.float64)
    start = 0.3 * torch.randn(paths, 1, generator=torch.Generator().manual_seed(seed))
    sde = SDE(drift, diffusion, noise=Diagonal(), calculus=Ito())
    found = solve(sde, start, (0.0, 5.0), dt=0.01, solver=Milstein(), driver=Increments(seed), save=ts)
    ys = found.ys.transpose(0, 1)
    return Ensemble(ts, ys[: paths // 2], ys[paths // 2 :], ("y",), (drift, diffusion))


def _double_well_drift(t: Tensor, y: Tensor) -> Tensor:
    return 2 * (y - y**3)


def _double_well_diffusion(t: Tensor, y: Tensor) -> Tensor:
    return 0.5 + 0.25 * torch.tanh(2 * y)


def air_quality(folder: Path, *, held_out: int = 400, seed: int = 0) -> Ensemble:
    """Return days of fine dust and ozone at twelve stations in Beijing, 2013 to 2017, hour by hour.

    A path is one day at one station: log PM2.5 and sqrt O3, in micrograms per cubic metre; days with
    missing values are left out. Held-out days are never seen at any station, and give one path each.

    Args:
        folder: laid out as beijing_air/beijing_air.npz, with `x` (stations, hours, columns) and `columns`.
        held_out: days to hold out.
        seed: names their choice.

    Raises:
        FileNotFoundError: the file is missing.

    Source: S. Chen, "Beijing multi-site air quality", UCI (2017).
    """
    path = folder / "beijing_air" / "beijing_air.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; let DXDT_DATA name a folder that holds beijing_air.")
    with np.load(path) as file:
        columns = [str(name) for name in file["columns"]]
        readings = file["x"][..., [columns.index("PM2.5"), columns.index("O3")]]
    stations = readings.shape[0]
    days = np.stack((np.log(readings[..., 0]), np.sqrt(readings[..., 1])), -1).reshape(stations, -1, 24, 2)
    whole: np.ndarray = np.asarray(np.isfinite(days).all(axis=(2, 3)))
    rng = np.random.default_rng(seed)
    kept = np.zeros(days.shape[1], dtype=bool)
    kept[rng.permutation(len(kept))[:held_out]] = True
    seen = days[:, ~kept][whole[:, ~kept]]
    new = [days[rng.choice(np.flatnonzero(whole[:, d])), d] for d in np.flatnonzero(kept & whole.any(0))]
    names = ("log PM2.5", "sqrt O3")
    ts = torch.arange(24, dtype=torch.float64)
    paths, held = (torch.tensor(np.asarray(x), dtype=torch.float32) for x in (seen, new))
    return Ensemble(ts, paths, held, names, unit="hour")
