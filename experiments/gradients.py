"""Two small models trained by every gradient rule: the same losses, at what time and memory.

A neural ODE learns a spiral, y' = A y^3, from short pieces of one trajectory (R. Chen et al.,
"Neural ordinary differential equations", 2018), and a continuous normalizing flow learns the
density of a ring of eight Gaussians (W. Grathwohl et al., "FFJORD", 2019). The initial weights and
the batches are the same for every rule, so that losses differ by what the gradients differ by.

    python -m experiments.gradients [table.md]
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.entry import solve
from dxdt.diffeq.gradients.backsolve import Backsolve
from dxdt.diffeq.gradients.checkpointed import Checkpointed
from dxdt.diffeq.gradients.gradient import Direct, Gradient
from dxdt.diffeq.problem.density import augment
from dxdt.diffeq.problem.equation import ODE
from dxdt.diffeq.solution import Solution
from dxdt.lab.evaluation.memory import LiveBytes
from dxdt.nn.mlp import MLP, ConcatSquashField
from dxdt.ops.autodiff import Exact

__all__ = ["Comparison", "run", "table"]


@dataclass(frozen=True)
class Comparison:
    """Settings of the comparison.

    Attributes:
        iterations: optimizer steps of each training.
        batch: pieces of the trajectory, or points of the density, in a step.
        width: hidden units.
        tolerance: of the solves, relative; the absolute one is a thousandth of it.
        rate: of Adam.
        seed: of weights and batches.
    """

    iterations: int = 100
    batch: int = 64
    width: int = 48
    tolerance: float = 1e-5
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        first, last: mean loss of the first and of the last tenth of the iterations.
        deviation: largest difference of a loss from that by `Direct` in the same iteration.
        seconds: of an iteration, of the processor (steady where others use the machine).
        kept, peak: bytes of tensors alive after a forward pass, and at most in an iteration.
        forward, backward: evaluations of the field in one iteration, the last; those of the way
            back are counted where that is a solve of its own.
    """

    model: str
    rule: str
    first: float
    last: float
    deviation: float
    seconds: float
    kept: int
    peak: int
    forward: int
    backward: int | None


RULES: dict[str, Callable[[Counter[str]], Gradient]] = {
    "Direct()": lambda counts: Direct(),
    "Checkpointed()": lambda counts: Checkpointed(),
    "Checkpointed(slots=16)": lambda counts: Checkpointed(16),
    "Backsolve()": lambda counts: Backsolve(counts=counts),
    "Backsolve(seminorm=False)": lambda counts: Backsolve(seminorm=False, counts=counts),
}

Loss = Callable[[Gradient], tuple[Tensor, Solution]]


class Cubed(nn.Module):
    """The spiral's field with learnt weights: a perceptron of y^3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = MLP(2, 2, width=width, depth=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Return f(t, y)."""
        return self.mlp(y**3)


def spiral(settings: Comparison) -> tuple[nn.Module, Loss]:
    """A field and its loss on random pieces of the spiral: ten points in a time of 2.5."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    times = torch.linspace(0, 25, 251, dtype=torch.float64)
    start = torch.tensor([2.0, 0.0], dtype=torch.float64)
    tight = PID(rtol=1e-9, atol=1e-9)
    truth = solve(ODE(lambda t, y: y**3 @ matrix.T), start, (0.0, 25.0), controller=tight, save=times)
    field = Cubed(settings.width).double()
    controller = PID(rtol=settings.tolerance, atol=settings.tolerance / 1000)

    def loss(rule: Gradient) -> tuple[Tensor, Solution]:
        first = torch.randint(0, 226, (settings.batch,))
        pieces = truth.ys[first + torch.arange(0, 26, 3)[:, None]]
        sol = solve(
            ODE(field),
            pieces[0],
            (0.0, 2.5),
            save=times[3:26:3],
            controller=controller,
            gradient=rule,
        )
        return (sol.ys - pieces[1:]).abs().mean(), sol

    return field, loss


def flow(settings: Comparison) -> tuple[nn.Module, Loss]:
    """A field and the negative log likelihood of points on a ring of eight Gaussians."""
    field = ConcatSquashField(2, width=settings.width).double()
    controller = PID(rtol=settings.tolerance, atol=settings.tolerance / 1000)

    def loss(rule: Gradient) -> tuple[Tensor, Solution]:
        angle = torch.randint(0, 8, (settings.batch,)) * (math.pi / 4)
        centre = 2 * torch.stack([angle.cos(), angle.sin()], -1)
        x = (centre + 0.2 * torch.randn(settings.batch, 2)).double()
        equation, state = augment(ODE(field), x, Exact())
        sol = solve(equation, state, (0.0, 1.0), controller=controller, gradient=rule)
        z, change = sol.y1
        base = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
        return -(base + change[:, 0]).mean(), sol

    return field, loss


MODELS = {"spiral": spiral, "flow": flow}


def run(settings: Comparison) -> dict[str, Any]:
    """Train every model by every rule.

    Returns:
        The settings, the rows of the table, and the losses of every iteration by model and rule.
    """
    rows: list[Row] = []
    curves: dict[str, dict[str, list[float]]] = {}
    for model, make in MODELS.items():
        curves[model] = {}
        for rule in RULES:
            row, losses = _train(model, make, rule, settings, curves[model].get("Direct()"))
            curves[model][rule] = losses
            rows.append(row)
    return {"settings": asdict(settings), "rows": [asdict(r) for r in rows], "losses": curves}


def _train(
    model: str,
    make: Callable[[Comparison], tuple[nn.Module, Loss]],
    rule: str,
    settings: Comparison,
    reference: list[float] | None,
) -> tuple[Row, list[float]]:
    kept, peak = _memory(make, RULES[rule](Counter()), settings)
    torch.manual_seed(settings.seed)
    field, loss = make(settings)
    optimizer = torch.optim.Adam(field.parameters(), lr=settings.rate)
    counts: Counter[str] = Counter()
    gradient = RULES[rule](counts)
    losses: list[float] = []
    forward = 0
    begun = time.process_time()
    for _ in range(settings.iterations):
        counts.clear()
        value, sol = loss(gradient)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        forward = sol.stats.evaluations
    seconds = (time.process_time() - begun) / settings.iterations
    tenth = max(1, settings.iterations // 10)
    deviation = max(abs(a - b) for a, b in zip(losses, reference or losses, strict=True))
    ends = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    backward = counts["evaluations"] or None
    return Row(model, rule, *ends, deviation, seconds, kept, peak, forward, backward), losses


def _memory(
    make: Callable[[Comparison], tuple[nn.Module, Loss]], rule: Gradient, settings: Comparison
) -> tuple[int, int]:
    torch.manual_seed(settings.seed)
    _, loss = make(settings)
    live = LiveBytes()
    with live:
        value, _ = loss(rule)
        kept = live.now
        value.backward()
    return kept, live.peak


def table(result: dict[str, Any]) -> str:
    """Return the rows as a table in Markdown."""
    head = (
        "| model | gradient | loss, first | loss, last | largest difference from Direct "
        "| CPU ms an iteration | kept, kB | peak, kB | evaluations forward | backward |"
    )
    lines = [head, "|---|---|" + "---:|" * 8]
    for r in result["rows"]:
        backward = "" if r["backward"] is None else r["backward"]
        lines.append(
            f"| {r['model']} | `{r['rule']}` | {r['first']:.4f} | {r['last']:.4f} "
            f"| {r['deviation']:.1e} | {1e3 * r['seconds']:.0f} | {r['kept'] / 1e3:,.0f} "
            f"| {r['peak'] / 1e3:,.0f} | {r['forward']} | {backward} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run with the default settings; print the table, and write it where an argument says."""
    text = table(run(Comparison()))
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
