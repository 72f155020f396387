"""What solves with noise cost, in steps, evaluations and questions to the path; and their first step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

import dxdt


@dataclass
class Counted:
    """A driver that counts the questions it is asked."""

    driver: Any
    asked: list[tuple[Any, Any]] = field(default_factory=list)

    adaptive: ClassVar[bool] = True

    @property
    def levy(self) -> Any:
        return self.driver.levy

    def bind(self, *args: Any, **given: Any) -> Any:
        self.bound = self.driver.bind(*args, **given)
        return self

    def increment(self, t: Any, dt: Any, step: Any = 0) -> Any:
        self.asked.append((t, dt))
        return self.bound.increment(t, dt, step)


SPANS = {
    "torchsde#109": (1.0, 0.01, 100),
    "torchsde#105": (20.0, 1e-3, 20_000),
    "a fraction of it": (1.0, 1e-3, 1000),
}


@pytest.mark.parametrize("path", [dxdt.Brownian, dxdt.Increments])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "105" in n else ()) for n in SPANS])
def test_cost_is_linear_in_the_steps(name: str, path: Any):
    """torchsde slows down a hundredfold on the first and overflows its stack on the second."""
    end, dt, steps = SPANS[name]
    driver = Counted(path(0))
    times = torch.tensor([0.0, end], dtype=torch.float32)
    sol = dxdt.solve(
        dxdt.SDE(lambda t, y: -0.1 * y, lambda t, y: 0.1 * torch.cos(y)),
        torch.ones(2, 2),
        (times[0], times[1]),
        dt=dt,
        solver=dxdt.EulerMaruyama(),
        driver=driver,
        max_steps=30_000,
    )
    assert int(sol.stats.steps) == int(sol.stats.evaluations) == len(driver.asked) == steps
    assert min(float(h) for _, h in driver.asked) > 0.9 * dt  # no sliver is left by rounding
    assert torch.isfinite(sol.y1).all()


NOISES = {
    "diagonal": (dxdt.Diagonal(), lambda t, y: 0.3 * y),
    "scalar": (dxdt.Scalar(), lambda t, y: 0.3 * y),
    "additive": (dxdt.Additive(), lambda t, y: 0.3 * torch.ones_like(y)),
    "additive matrix": (dxdt.Additive(3), lambda t, y: 0.3 * y.new_ones(*y.shape, 3)),
    "general": (dxdt.General(2), lambda t, y: 0.3 * torch.stack((y, y.flip(-1)), -1)),
    "sum": (
        dxdt.Sum(dxdt.Diagonal(), dxdt.General(2)),
        lambda t, y: (0.1 * y, 0.1 * torch.stack((y, y.flip(-1)), -1)),
    ),
}


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("noise", NOISES)
def test_a_first_step_is_found(noise: str, per_sample: bool):
    """It is taken, and a few steps that grow tenfold lead to those that the tolerance asks for."""
    kind, g = NOISES[noise]
    driver = Counted(dxdt.Brownian(1))
    sol = dxdt.solve(
        dxdt.SDE(lambda t, y: -y, g, kind, dxdt.Stratonovich()),
        torch.linspace(1, 2, 8, dtype=torch.float64).reshape(4, 2),
        (0.0, 1.0),
        controller=dxdt.PID(1e-2, 1e-2, p=0.1, i=0.3),
        solver=dxdt.StochasticHeun(),
        driver=driver,
        per_sample=per_sample,
    )
    assert torch.isfinite(sol.y1).all()
    first, second = (torch.as_tensor(driver.asked[i][1]).abs().reshape(-1) for i in (0, 1))
    assert (second >= first).all()  # a rejected step is followed by a smaller one
    assert (first > 1e-5).all() and (first < 0.2).all()
