"""Fit a neural ODE to noisy measurements of a trajectory taken at irregular times.

Many short solves start from states near the measurements and must meet the next ones:

    sum over starts i, j <= horizon of |solve(f, s_i, t_i -> t_{i+j}) - y_{i+j}|^2,

over the field f and the states s_i alike. Short solves have no long memory, so the loss has few
bad minima; learned states keep the noise of the first measurement out of the forecast.

Source: Bock and Plitt, "A multiple shooting algorithm" (1984), with the joints left free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from dxdt.diffeq import ODE, PID, RK4, Grid, solve
from dxdt.lab.data.datasets import Trajectory
from dxdt.models import NeuralODE
from dxdt.nn import MLPField


@dataclass(frozen=True)
class Shooting:
    """How a trajectory is fitted.

    Attributes:
        width, depth: of the field's network.
        horizon: measurements that each solve must meet.
        batch: solves per step.
    """

    width: int = 48
    depth: int = 2
    horizon: int = 24
    batch: int = 24


@final
class TrajectoryModel(nn.Module):
    """An autonomous field and one state for each measurement that may be seen, in scaled units."""

    centre: Tensor
    scale: Tensor

    def __init__(self, data: Trajectory, settings: Shooting) -> None:
        super().__init__()
        seen = data.ys[: data.trained]
        self.register_buffer("centre", seen.mean(0))
        self.register_buffer("scale", seen.std(0))
        n = seen.shape[1]
        self.field = MLPField(n, width=settings.width, depth=settings.depth, autonomous=True, output_scale=0.1)
        self.states = nn.Parameter((seen - self.centre) / self.scale)

    def forecast(self, data: Trajectory, ts: Tensor) -> Tensor:
        """Return the model's course at `ts`, solved from the first state alone, in data units."""
        node = NeuralODE(self.field, controller=PID(1e-6, 1e-6))
        start = self.states[0]
        span = torch.cat((data.ts[:1], ts)) if float(ts[0]) > float(data.ts[0]) else ts
        course = node(start, span)[-len(ts) :]
        return course * self.scale + self.centre


def shooting_loss(model: TrajectoryModel, data: Trajectory, settings: Shooting, generator: torch.Generator) -> Tensor:
    """Return the mean squared miss of a batch of random short solves, in scaled units."""
    last = data.trained - settings.horizon
    start = torch.randint(last, (settings.batch,), generator=generator)
    window = start + torch.arange(settings.horizon + 1)[:, None]
    times = data.ts[window] - data.ts[start]
    wanted = (data.ys[window] - model.centre) / model.scale
    # One Runge-Kutta step from each reading to the next: readings are close together in time.
    found = solve(ODE(model.field), model.states[start], times, solver=RK4(), controller=Grid(times), per_sample=True)
    return (found.ys - wanted).square().mean()


def simulated_pendulum(*, noise: float = 0.08, readings: int = 160, seed: int = 0) -> Trajectory:
    """Return noisy readings of theta'' = -sin theta - 0.1 theta' at random times in [0, 20].

    The first 60 % may be seen; the noiseless course up to t = 20 comes with them.
    """
    generator = torch.Generator().manual_seed(seed)

    def field(t: Tensor, y: Tensor) -> Tensor:
        angle, speed = y.unbind(-1)
        return torch.stack((speed, -angle.sin() - 0.1 * speed), -1)

    end = 20.0
    inside = torch.rand(readings - 1, generator=generator, dtype=torch.float64) * end
    ts = torch.cat((torch.zeros(1, dtype=torch.float64), inside.sort().values))
    fine = torch.linspace(0, end, 401, dtype=torch.float64)
    y0 = torch.tensor([0.8 * math.pi, 0.0], dtype=torch.float64)
    node = NeuralODE(field, controller=PID(1e-9, 1e-9))
    clean = node(y0, ts)
    ys = clean + noise * torch.randn(clean.shape, generator=generator)
    names = ("angle", "angular velocity")
    return Trajectory(ts, ys.float(), names, int(0.6 * readings), (fine, node(y0, fine).float()))
