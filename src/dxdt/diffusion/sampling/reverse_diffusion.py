"""The reverse-diffusion predictor: the discrete forward chain of the grid, reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.problem.equation import Rows
from dxdt.diffusion.denoisers.posterior import Posterior
from dxdt.diffusion.processes.process import along
from dxdt.diffusion.sampling.predictor import Hop, Predictor, equation_of
from dxdt.ops.times import Ticks

__all__ = ["ReverseDiffusion"]


@final
@dataclass(frozen=True)
class ReverseDiffusion(Predictor):
    """The forward chain between neighbouring times s < t of the grid, reversed as an equation is.

        x_t = x_s + F(x_s) + q z,    F(x) = (r - 1) x + m mu       (exact transition from s to t)
        x_s = x_t - F(x_t) + (1 + tau^2)/2 q^2 score(x_t) + tau q z

    On the grids of variance-exploding and variance-preserving chains this is the update of score_sde
    (tau = 1) and its probability flow (tau = 0); it holds for every process, sub-VP among them. One
    evaluation a step, order one; dense output is linear.

    Song et al., "Score-based generative modeling through stochastic differential equations" (2021),
    equations 46 and 47 and appendix E.

    Raises:
        ValueError: the solve begins where a = 0.
    """

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        process = equation_of(self, eq).process
        if bool((process.a(torch.as_tensor(t, dtype=torch.float64)) == 0).any()):
            raise ValueError(
                f"ReverseDiffusion undoes the scaling of the data, which {type(process).__name__} has forgotten "
                f"where the solve begins (a = 0): begin a little later, or use Ancestral() or DDIM()"
            )
        return ()

    def move(self, hop: Hop, known: Posterior) -> tuple[Tensor, Tensor]:
        x = known.x
        chain = hop.process.transition(hop.s, hop.t, x)
        back = 2 * x - chain.mean(x, known.mu)
        tau = along(hop.tau, x) if isinstance(hop.tau, Tensor) else hop.tau
        pull = 0.5 * (1 + tau**2) * chain.std.square()
        return back + pull * known.score, tau * chain.std
