"""Predictors: steps of a reverse equation that ask the denoiser once, where they begin.

They see the equation through its transitions between the two ends of a step, not through its rates, so
that they are the discrete chains of the literature on the grid that they are given.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.equation import Rows, constants
from dxdt.diffeq.problem.noise import Additive
from dxdt.diffusion.denoisers.posterior import Posterior
from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.sampling.reverse import Reverse
from dxdt.ops.times import Ticks

__all__ = [
    "CLAIMS",
    "FACTS",
    "Hop",
    "Identity",
    "Predictor",
    "answer",
    "ends_of",
    "equation_of",
    "normals",
    "reverse_of",
    "settled",
    "unit",
]

CLAIMS = Noisy((), 1.0, 1.0, 1.0, 1.0, 1.0, noises=(Additive,))
FACTS = Facts(1, 1, noise=CLAIMS)
"""What methods of order one claim on the noise of reverse equations."""


def reverse_of(eq: Rows) -> Reverse:
    """The reverse equation behind rows that were checked."""
    return cast(Reverse, eq.equation)


def equation_of(solver: Any, eq: Rows) -> Reverse:
    """The reverse equation behind rows.

    Raises:
        TypeError: another equation, which has no denoiser to ask.
    """
    equation = eq.equation
    if isinstance(equation, Reverse):
        return equation
    raise TypeError(
        f"{type(solver).__name__} asks a denoiser, which {type(equation).__name__} does not have: "
        f"solve dxdt.diffusion.reverse(denoiser, tau), or use dxdt.Tsit5()"
    )


def ends_of(eq: Rows, t: Ticks, dt: Ticks) -> tuple[Tensor, Tensor]:
    """Both ends of a step in float64: () jointly, on the host where the clock is, else (batch,)."""
    if not isinstance(t, Tensor) and not isinstance(dt, Tensor):
        both = torch.from_numpy(np.stack((t, t + dt)).astype(np.float64))
        start, end = both.to(eq.layout.device) if both.dim() > 1 else both
        return start, end
    start, end = t + dt * 0, t + dt
    return (start, end) if eq.layout.per_sample else (start.reshape(()), end.reshape(()))


def answer(eq: Rows, t: Tensor, x: Tensor) -> Posterior:
    """What the denoiser says at times t () or (batch,), counted."""
    if eq.meter is not None:
        eq.meter.evaluations += 1
    return reverse_of(eq).remainder(t.to(x.device), x)


def normals(eq: Rows, index: Ticks, stream: int) -> Tensor:
    """Standard normals shaped like the state, independent of the path: named by seed, step and stream."""
    with constants():
        rows = eq.noise.normals(index, stream, eq.layout.size)
    return eq.layout.unpack(rows)


def unit(eq: Rows, t: Ticks, dt: Ticks, index: Ticks) -> Tensor:
    """The path's increment over a step in units of its standard deviation, shaped like the state."""
    w = eq.increment(t, dt, index).W
    length = abs(dt.detach() if isinstance(dt, Tensor) else dt)
    scale = (length + (length == 0)) ** -0.5
    if isinstance(scale, np.ndarray | Tensor):
        scale = torch.as_tensor(scale, device=w.device).to(w.dtype).reshape(-1, 1)
    return eq.layout.unpack(w * scale)


def settled(eq: Rows, x: Tensor, y: Tensor) -> Tensor:
    """The state x as rows, and ``y`` in rows of which nothing is wanted."""
    rows = eq.layout.pack(x)
    return rows if eq.muted is None else torch.where(eq.muted.to(rows.device), y, rows)


@final
class Hop(NamedTuple):
    """One step, from t down to s < t.

    Attributes:
        process: the diffusion.
        t, s: float64, () or (batch,).
        tau: share of noise, a number or shaped like t.
    """

    process: Process
    t: Tensor
    s: Tensor
    tau: float | Tensor


class Predictor(Solver):
    """Base: a predictor is a subclass that gives ``move``; without state, linear dense output.

    On an equation without noise (tau = 0) it takes its step without noise.
    """

    facts = FACTS

    @abstractmethod
    def move(self, hop: Hop, known: Posterior) -> tuple[Tensor, Tensor]:
        """Mean of x_s given what is known at x_t, and standard deviation of the noise around it."""

    def share(self, equation: Reverse, t: Tensor, s: Tensor) -> float | Tensor:
        """The share of noise of this method's steps from t to s."""
        return equation.share_between(t, s)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        equation_of(self, eq)
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        start, end = ends_of(eq, t, dt)
        known = answer(eq, start, eq.layout.unpack(y))
        equation = reverse_of(eq)
        hop = Hop(equation.process, start, end, self.share(equation, start, end))
        x, std = self.move(hop, known)
        if eq.noise is not None and (isinstance(hop.tau, Tensor) or hop.tau > 0):
            x = torch.addcmul(x, std, unit(eq, t, dt, index))
        return Step(settled(eq, x, y), None, (), ())

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)


@final
@dataclass(frozen=True)
class Identity(Solver):
    """The step that stays where it is: beside a corrector, sampling by the corrector alone."""

    facts = Facts(0, 0, noise=CLAIMS)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        return ()

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        return Step(y, None, (), ())

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        return (step.y - y).unsqueeze(0)
