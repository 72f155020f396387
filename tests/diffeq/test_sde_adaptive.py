"""Adaptive steps where noise does not commute: rejected ends must be met again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffeq.control.controller import Controller, Decision, Scale, Span

F64 = torch.float64
ROWS, END = 1000, 4.0


def areas(t: Tensor, y: Tensor) -> Tensor:
    """dy = (t dW_1, t dW_2, dW_1, y_3 dW_2): the last is int W_1 dW_2."""
    zero, one, t = torch.zeros_like(y[:, 0]), torch.ones_like(y[:, 0]), t.expand(len(y))
    first = torch.stack((t, zero, one, zero), -1)
    second = torch.stack((zero, t, zero, y[:, 2]), -1)
    return torch.stack((first, second), -1)


def still(t: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def equation(noise: Any) -> dxdt.SDE:
    return dxdt.SDE(still, areas, noise, dxdt.Stratonovich())


def signs(error: Tensor) -> Tensor:
    """Which of W_1, W_2 rose over the step, coded in one number: errors of y_1, y_2 have their sign."""
    return 0.1 * (error[:, 0] > 0) + 0.2 * (error[:, 1] > 0)


@dataclass(frozen=True, eq=False)
class Biased(Controller):
    """Legal and malicious: it looks at the path, and likes some areas better than others.

    A step over 2h is rejected where W_1 rose; then follow h, and 2h where W_2 rises over it, else
    h. Where the second step passes the end of the rejected one, W_1 is known to rise first.
    """

    h: float
    adaptive: ClassVar[bool] = True

    def scale(self, layout: Any) -> Scale:
        return Scale(1.0, 0.0, signs)

    def start(self, span: Span, dt: Any, order: Any) -> tuple[Any, tuple[Any, ...]]:
        return span.clock.full(span.t0, 2 * self.h), (span.clock.full(span.t0, 0.0),)

    def decide(self, span: Span, error: Any, t: Any, dt: Any, state: tuple[Any, ...]) -> Decision:
        (stage,) = state
        second = error > 0.15
        first = error - 0.2 * second > 0.05
        reject = ((stage == 0) & first) | ((stage == 2) & ~second)
        after = np.where(reject, stage + 1, np.where(stage == 1, 2.0, 0.0))
        size = np.where(after % 2 == 1, self.h, 2 * self.h)
        return Decision(~reject, size, (after,), np.zeros_like(reject))


def solve(noise: Any, driver: Any, **given: Any) -> Any:
    y = torch.zeros(ROWS, 4, dtype=F64)
    return dxdt.solve(
        equation(noise),
        y,
        (0.0, END),
        solver=dxdt.StochasticHeun(),
        driver=driver,
        per_sample=True,
        max_steps=10**5,
        **given,
    )


def test_revisiting_keeps_the_limit_that_forgetting_loses():
    driver = dxdt.Brownian(2, depth=14)
    exact = solve(dxdt.General(2), driver, dt=END / 1024).ys[-1, :, 3]
    wrong, spread = exact, [0.0, 0.0]
    for h in (0.04, 0.01):
        gaps = {}
        # Noise that is said to commute is not revisited.
        for noise in (dxdt.General(2), dxdt.Commutative(2)):
            sol = solve(noise, driver, controller=Biased(h), dt=h)
            gaps[type(noise)] = sol.ys[-1, :, 3] - exact
        right, wrong = gaps[dxdt.General], gaps[dxdt.Commutative]
        spread = [float(x.std()) / ROWS**0.5 for x in (right, wrong)]
        assert abs(float(right.mean())) < 4 * spread[0]
        assert -0.05 < float(wrong.mean()) < -0.02
    assert float(wrong.mean()) < -6 * spread[1]


def test_strong_error_falls_with_the_tolerance_without_commuting():
    driver = dxdt.Brownian(2, depth=14)
    exact = solve(dxdt.General(2), driver, dt=END / 2048).ys[-1, :, 3]
    errors = []
    for tol in (0.3, 0.03):
        controller = dxdt.PID(0.0, tol, p=0.1, i=0.3)
        sol = solve(dxdt.General(2), driver, controller=controller, dt=0.1)
        errors.append(float((sol.ys[-1, :, 3] - exact).square().mean().sqrt()))
    assert errors[1] < 0.6 * errors[0]


@dataclass(frozen=True, eq=False)
class Scripted(Controller):
    """Rejects the first attempts, each for a tenth less."""

    rejections: int
    adaptive: ClassVar[bool] = True

    def start(self, span: Span, dt: Any, order: Any) -> tuple[Any, tuple[Any, ...]]:
        return np.sign(span.t1 - span.t0) * dt, (span.clock.full(span.t0, 0.0),)

    def decide(self, span: Span, error: Any, t: Any, dt: Any, state: tuple[Any, ...]) -> Decision:
        (count,) = state
        accept = count >= self.rejections
        return Decision(accept, np.where(accept, 1.0, 0.9) * dt, (count + 1,), accept & False)


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
def test_steps_meet_the_ends_of_rejected_ones(per_sample: bool, backwards: bool):
    y = torch.ones(2, 2, dtype=F64)
    controller = dxdt.Revisit(Scripted(4), depth=4)
    sol = dxdt.solve(
        dxdt.ODE(lambda t, y: -y),
        y,
        (1.0, 0.0) if backwards else (0.0, 1.0),
        solver=dxdt.Bosh3(),
        controller=controller,
        dt=0.4,
        save=dxdt.Save(steps=True),
        per_sample=per_sample,
    )
    ends = 0.4 * np.cumprod([1.0, 0.9, 0.9, 0.9, 0.9])
    found = sol.ts[:, 0] if per_sample else sol.ts
    found = 1 - found.numpy() if backwards else found.numpy()
    np.testing.assert_allclose(found[:5], ends[::-1], rtol=1e-12)
    assert found[-1] == 1


def test_too_many_rejections_have_a_status():
    with pytest.warns(RuntimeWarning, match="rejected more steps in a row than Revisit remembers"):
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y: -y),
            torch.ones(2, 2, dtype=F64),
            (0.0, 1.0),
            solver=dxdt.Bosh3(),
            controller=dxdt.Revisit(Scripted(4), depth=3),
            dt=0.4,
            per_sample=True,
        )
    assert sol.status == [dxdt.Status.REVISITS] * 2


def test_revisit_refuses_rules_that_never_reject():
    with pytest.raises(ValueError, match="Constant, which never rejects"):
        dxdt.Revisit(dxdt.Constant(0.1))
    with pytest.raises(ValueError, match="depth=0"):
        dxdt.Revisit(dxdt.PID(), depth=0)
