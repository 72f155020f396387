"""Exponential integrators of semi-linear equations: the samplers of diffusion models as one family.

With y = x - b mu, a step from s to t of length h in lam = log(a / c), and eta = 1 + tau^2,

    data:   y_t = (c_t / c_s) e^{-tau^2 h} y_s + a_t sum_j w_j D_j + c_t sqrt(1 - e^{-2 tau^2 h}) z
    noise:  y_t = (a_t / a_s) y_s - eta c_t sum_j w_j eps_j + tau c_t sqrt(e^{2h} - 1) z

with the weights of `exponential_weights`. Answers of earlier steps make it a multistep method, answers
inside the step a Runge-Kutta method, and an answer at the end a corrector. Coefficients are float64
numbers, made once for a known grid.

Among its members are DDIM (order 1), DPM-Solver (`Inside`, noise), DPM-Solver++(2M) (order 2, `B2`) and
its SDE (tau = 1), DEIS (`InTime`, `InRatio`, noise), UniPC and SA-Solver (`Corrector`), and MRS.

Source: Lu et al., "DPM-Solver" and "DPM-Solver++" (2022); Zhang and Chen, "DEIS" (2023); Zhao et al.,
"UniPC" (2023); Xue et al., "SA-Solver" (2023); Li et al., "MRS" (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.noise import StepNoise
from dxdt.diffeq.methods.exponential.options import Corrector, Inside, Preserving, Rising
from dxdt.diffeq.methods.exponential.prepared import Guide, guide
from dxdt.diffeq.methods.exponential.schemes import course
from dxdt.diffeq.methods.exponential.tables import Cut, Taken
from dxdt.diffeq.methods.exponential.weights import (
    DataPrediction,
    ExactWeight,
    InLogSNR,
    Prediction,
    Rule,
    Second,
    Variable,
)
from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.noise_facts import Noisy
from dxdt.diffeq.methods.solver import Solver, State, Step
from dxdt.diffeq.problem.affine import SemiLinear
from dxdt.diffeq.problem.equation import Equation, Ito, Rows, StochasticEquation, Stratonovich
from dxdt.diffeq.problem.noise import Additive
from dxdt.ops.times import Ticks, scaled_sum
from dxdt.ops.tree import Layout

__all__ = ["Exponential"]

_SHOWN = ("tau", "mu", "a", "b", "c", "lam", "time", "remainder")


@final
@dataclass(frozen=True)
class Exponential(Solver):
    """Exponential integrator of order 1 to 4 for semi-linear equations, ordinary and stochastic.

    Args:
        order: order on the ordinary equation, with the corrector where there is one.
        kind: which of the denoiser's answers is integrated: `DataPrediction()` or `NoisePrediction()`.
        nodes: earlier answers interpolated in `InLogSNR()`, `InTime()` or `InRatio()`, or `Inside()`.
        corrector: `Corrector()`, or None.
        second: second-order weight: `ExactWeight()`, `B1()`, `B2()`.
        start: how a method with history begins: `Preserving()` or `Rising()`.
        lower_final: lower the order over the last steps of a known grid to 2, 1.

    Raises:
        ValueError: orders, nodes and correctors that do not go together.
    """

    order: int = 2
    kind: Prediction = DataPrediction()  # noqa: RUF009
    nodes: Variable | Inside = InLogSNR()  # noqa: RUF009
    corrector: Corrector | None = None
    second: Second = ExactWeight()  # noqa: RUF009
    start: Preserving | Rising = Preserving()  # noqa: RUF009
    lower_final: bool = False

    def __post_init__(self) -> None:
        for name in ("kind", "nodes", "corrector", "second", "start"):
            value = getattr(self, name)
            if isinstance(value, type):
                object.__setattr__(self, name, value())
        single = isinstance(self.nodes, Inside)
        lowest, most = (2, 3) if single else (2 if self.corrector else 1, 4)
        if self.order not in range(lowest, most + 1):
            raise ValueError(
                f"Exponential(order={self.order}, nodes={self.nodes}, corrector={self.corrector}): "
                f"give an order from {lowest} to {most}"
            )
        if single and self.corrector is not None:
            raise ValueError("Exponential: a corrector needs earlier answers: give nodes=InLogSNR(), or no corrector")
        again = self.corrector is not None and self.corrector.again
        # Strong order one on additive noise; pairs (2(1) and 3(2)) ask for noise inside the step.
        noise = Noisy(
            (Ito, Stratonovich), 1.0, 1.0, 1.0, 1.0, 1.0, noises=(Additive,), error=(1.5, 1.5) if single else None,
            inside=single,
        )  # fmt: skip
        self.claim(
            Facts(
                order=self.order,
                stages=self.order if single else 1 + again,
                dense_order=min(3, self.order),
                error_order=self.order if single else None,
                degree=3,
                noise=noise,
                known_grid=self.memory > 0,
                semilinear=True,
                prepares=True,
            )
        )

    @property
    def single(self) -> bool:
        """Whether a step stands alone."""
        return isinstance(self.nodes, Inside)

    @property
    def ahead(self) -> int:
        """Order of the predictor."""
        return self.order - (self.corrector is not None)

    @property
    def memory(self) -> int:
        """Earlier answers that are kept."""
        if self.single:
            return 0
        reuses = self.corrector is not None and not self.corrector.again
        return self.ahead if reuses else self.ahead - 1

    @property
    def rule(self) -> Rule:
        """How earlier answers are integrated."""
        return Rule(self.kind, InLogSNR() if isinstance(self.nodes, Inside) else self.nodes, self.second)

    def check(self, equation: Equation) -> None:
        if not _is_semilinear(equation):
            raise TypeError(
                f"Exponential sees the affine part of an equation, which {type(equation).__name__} does not show: "
                f"give it dxdt.diffusion.reverse(denoiser), or use dxdt.Tsit5()"
            )
        tau = cast(SemiLinear, equation).tau
        if tau and not isinstance(equation, StochasticEquation):
            raise ValueError(
                f"Exponential was given a {type(equation).__name__} with tau={tau} but no diffusion: "
                f"give an equation with noise, or tau=0"
            )

    def bind(self, driver: Any, equation: StochasticEquation, t0: np.ndarray, t1: np.ndarray, layout: Layout) -> Any:
        if driver.adaptive and getattr(equation, "profile", None) is not None:
            raise ValueError(
                "Exponential: where tau varies the noise has no clock of its own that other grids share: "
                "give driver=dxdt.Increments(seed), or an equation without a profile"
            )
        tau = cast(SemiLinear, equation).tau
        return StepNoise(driver, layout, equation.noise_size(layout), self.kind, float(tau))

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        if self.memory == 0:
            return ()
        empty = tuple(torch.zeros_like(y) for _ in range(self.memory))
        if eq.outlook.times is not None and not isinstance(t, Tensor):
            return empty
        return (*empty, torch.zeros(y.shape[0], self.memory, dtype=torch.float64, device=y.device))

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        memory = self.memory
        history, gaps = (state, None) if len(state) == memory else (state[:-1], state[-1])
        known = self._guide(eq, dt, y, gaps)
        if known is None:
            known, index_there = Guide(course(self, eq, y, t, dt, gaps), None), 0
        else:
            index_there = index
        taken = known.course.take(index_there, dt)
        mu = None if eq.affine.mu is None else _mean(eq)
        noises: dict[bytes, Tensor] = {}
        first = eq.answer(taken[0].times[0], y, known.sight(taken[0], 0))
        done = [_Pass(self, eq, y, mu, known, recipe, history, index, noises).run(first) for recipe in taken]
        new, error, between, answer = done[0]
        if len(done) == 1 and gaps is None:
            return Step(new, error, (answer, *history)[:memory], between)
        for recipe, other in zip(taken[1:], done[1:], strict=True):
            rows = torch.from_numpy(recipe.rows).to(y.device)[:, None]
            new, answer = torch.where(rows, other[0], new), torch.where(rows, other[3], answer)
            between = tuple(torch.where(rows, b, a) for a, b in zip(between, other[2], strict=True))
            if error is not None:
                error = torch.where(rows, torch.zeros_like(error) if other[1] is None else other[1], error)
        after: State = (answer, *history)[:memory]
        if gaps is not None:
            length = torch.as_tensor(dt, dtype=torch.float64, device=gaps.device).reshape(-1, 1)
            after = (*after, torch.cat([length, gaps[:, :-1]], 1))
        return Step(new, error, after, between)

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        if not step.data:
            rise = (step.y - y).unsqueeze(0)
            return torch.cat([rise, torch.zeros_like(rise), torch.zeros_like(rise)])
        p, q, r = (x - y for x in (*step.data, step.y))
        return torch.stack([9 * p - 4.5 * q + r, -22.5 * p + 18 * q - 4.5 * r, 13.5 * p - 13.5 * q + 4.5 * r])

    def _guide(self, eq: Rows, dt: Ticks, y: Tensor, gaps: Tensor | None) -> Guide | None:
        """What is known of the whole grid, or None where each step is found as it comes."""
        if eq.outlook.times is None or gaps is not None or isinstance(dt, Tensor):
            return None
        known: Guide | None = eq.outlook.memo.get("exponential")
        if known is None:
            known = eq.outlook.memo["exponential"] = guide(self, eq, y)
        return known


def _is_semilinear(equation: Equation) -> bool:
    """The same as ``isinstance(equation, SemiLinear)`` at a tenth of its cost."""
    return all(hasattr(equation, name) for name in _SHOWN)


def _mean(eq: Rows) -> Tensor:
    """The mean as rows."""
    mu, whole = cast(Tensor, eq.affine.mu), eq.layout.whole
    return eq.layout.pack(mu if tuple(mu.shape) == whole else mu.expand(whole))


@dataclass(frozen=True, eq=False)
class _Pass:
    """One recipe on its way through a step."""

    solver: Exponential
    eq: Rows
    y: Tensor
    mu: Tensor | None
    guide: Guide
    recipe: Taken
    history: State
    index: Ticks
    noises: dict[bytes, Tensor]

    def run(self, first: Any) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...], Tensor]:
        """The state at the end, the error, values inside the step, and the answer at the beginning."""
        recipe = self.recipe
        answers = [self._read(first)]
        new = self._value(recipe.lines[0], answers)
        for k in range(1, len(recipe.times)):
            answers.append(self._read(self.eq.answer(recipe.times[k], new, self.guide.sight(recipe, k))))
            new = self._value(recipe.lines[k], answers)
        error = None
        if recipe.error is not None:
            for w, q in zip(recipe.error, answers, strict=True):
                error = scaled_sum(error, w, q.detach())
        between = tuple(self._value(line, answers) for line in recipe.between)
        return new, error, between, answers[0]

    def _read(self, answer: Any) -> Tensor:
        """Rows of the answer that is integrated."""
        data, layout = self.recipe.data, self.eq.layout
        if data is False:
            return self.eq.unmuted(layout.pack(self.solver.kind.read(answer)))
        clean = layout.pack(answer.data)
        if data is not True:
            rows = torch.from_numpy(data).to(clean.device)[:, None]
            clean = torch.where(rows, clean, layout.pack(self.solver.kind.read(answer)))
        return self.eq.unmuted(clean)

    def _value(self, line: Cut, answers: Sequence[Tensor]) -> Tensor:
        """What a line adds up."""
        alpha, before, after, std = line.head
        start = self.y if self.mu is None else scaled_sum(self.y, -before, self.mu)
        new = start * alpha
        # A number of the host is told by its type: asking whether something is a tensor costs half a sum.
        for w, q in zip((*line.stages, *line.history), (*answers, *self.history), strict=True):
            if type(w) is not float:
                new = torch.addcmul(new, w, q)
            elif w != 0.0:
                new = torch.add(new, q, alpha=w)
        if self.mu is not None:
            new = scaled_sum(new, after, self.mu)
        if self.eq.noise is not None and self.eq.affine.tau and not (type(std) is float and std == 0.0):
            new = scaled_sum(new, std, self._noise(line))
        return new

    def _noise(self, line: Cut) -> Tensor:
        key = line.lam.tobytes()
        if key not in self.noises:
            self.noises[key] = self.eq.unit_noise(self.recipe.lam, line.lam, self.index)
        return self.noises[key]
