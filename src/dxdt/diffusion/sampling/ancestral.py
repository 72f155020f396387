"""Steps by the law of x_s given x_t and a guess of the datum: DDIM, DDPM and all between.

With D = E[x_0 | x_t], eps = E[eps | x_t] and the posterior of the strided chain,
x_s | x_t, x_0 ~ N(., c_s^2 S), S = 1 - exp(2 (lam_t - lam_s)),

    x_s = b_s mu + a_s D + c_s sqrt(1 - eta^2 S) eps + eta c_s sqrt(S) z

has the marginals of the process for every eta if D is the datum itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from dxdt.diffeq.methods.solver import State
from dxdt.diffeq.problem.equation import Rows
from dxdt.diffusion.denoisers.posterior import Posterior
from dxdt.diffusion.processes.process import along
from dxdt.diffusion.sampling.predictor import FACTS, Hop, Predictor, equation_of
from dxdt.diffusion.sampling.reverse import Reverse
from dxdt.ops.times import Ticks

__all__ = ["DDIM", "Ancestral"]


def interpolated(hop: Hop, known: Posterior) -> tuple[Tensor, Tensor]:
    """The mean above and the deviation of its noise, for eta = tau."""
    x, process = known.x, hop.process
    s, _, _, decay = process._between(hop.s, hop.t)  # decay = -S
    a, b, c = process.a(s), process.b(s), process.c(s)
    # In float64, where 1 - eta^2 S does not cancel.
    kept = c * (1 + hop.tau**2 * decay).sqrt()
    mean = along(a, x) * known.data + along(kept, x) * known.noise
    if known.mu is not None:
        mean = mean + along(b, x) * known.mu
    return mean, along(hop.tau * c * (-decay).sqrt(), x)


@final
@dataclass(frozen=True)
class DDIM(Predictor):
    """Denoising diffusion implicit models, for every process.

        x_s = b_s mu + a_s D + sqrt(c_s^2 - rho^2) eps + rho z,    rho = eta c_s sqrt(1 - e^{2 (lam_t - lam_s)})

    eta = 0 is the exponential integrator of order one of the probability flow, eta = 1 ancestral sampling
    of DDPM on any subset of its times. One evaluation a step; dense output is linear.

    Song et al., "Denoising diffusion implicit models" (2021), equations 12 and 16.

    Args:
        eta: share of noise; None takes that of the equation, tau.

    Raises:
        ValueError: eta outside [0, 1], or against an equation whose noise has another share.
    """

    eta: float | None = None

    def __post_init__(self) -> None:
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM(eta={self.eta}): choose a share of noise from 0 (none) to 1 (ancestral sampling)")
        # With noise of its own it asks for a driver.
        self.claim(replace(FACTS, stochastic=bool(self.eta)))

    def share(self, equation: Reverse, t: Tensor, s: Tensor) -> float | Tensor:
        return super().share(equation, t, s) if self.eta is None else self.eta

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        tau = equation_of(self, eq).tau
        if self.eta is not None and tau not in (0, self.eta):
            raise ValueError(
                f"DDIM(eta={self.eta}) meets an equation with tau={tau}: leave one of the two out, they mean the same"
            )
        return ()

    def move(self, hop: Hop, known: Posterior) -> tuple[Tensor, Tensor]:
        return interpolated(hop, known)


@final
@dataclass(frozen=True)
class Ancestral(Predictor):
    """Ancestral sampling: draws from the law of x_s given x_t and x_0 = D, for every process and stride.

        x_s = k x_t + (a_s - k a_t) D + (b_s - k b_t) mu + tau v z,     k = r c_s^2 / c_t^2
        v^2 = q^2 (c_s^2 / c_t^2)^{1 - width},                          q^2 = c_t^2 - r^2 c_s^2

    Width 0 takes the variance of the posterior (exact for one datum), width 1 that of the forward
    transition (exact for normal data of the process's own width); between, their geometric mean. score_sde
    takes width 0 for the exploding and 1 for the preserving process; mean-reverting restoration takes 0.
    With tau < 1 the noise shrinks as in `DDIM`, which this is for width 0. One evaluation a step.

    Ho et al., "Denoising diffusion probabilistic models" (2020), equations 6, 7 and section 3.2; Nichol and
    Dhariwal, "Improved denoising diffusion probabilistic models" (2021), equation 15; Song et al.,
    "Score-based generative modeling through stochastic differential equations" (2021), appendix F.

    Args:
        width: 0 to 1, of the noise.

    Raises:
        ValueError: another width.
    """

    width: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.width <= 1:
            raise ValueError(
                f"Ancestral(width={self.width}): choose from 0 (variance of the posterior) to 1 (of the transition)"
            )

    def move(self, hop: Hop, known: Posterior) -> tuple[Tensor, Tensor]:
        mean, std = interpolated(hop, known)
        return mean, std if self.width == 0 else std * self._widening(hop, known.x)

    def _widening(self, hop: Hop, x: Tensor) -> Tensor:
        """(c_t / c_s)^width, which turns the one variance into the other; zero where c_s is."""
        c = hop.process.c
        ratio = (c(hop.t.double()) / c(hop.s.double())) ** self.width
        return along(ratio.nan_to_num(posinf=0.0), x)
