"""`dxdt bench train`: images a second of training, against the same net in a plain PyTorch loop.

Both loops take one step in turn in one process, on the same images, with the same loss, Adam, clipping
and moving average; the plain one draws by `torch.randn` and knows no devices, parts or checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measure import CLOCKS, Times, time_together
from dxdt.diffusion import Levels
from dxdt.lab.data.images import Pixels
from dxdt.lab.training.build import objective as objective_of
from dxdt.lab.training.score_model import BatchLoss, LossModule, build
from dxdt.lab.training.settings import Score, SmallUNet, Training
from dxdt.lab.training.trainer import Trainer

__all__ = ["Speed", "bench_train"]


@dataclass(frozen=True)
class Speed:
    """One line of the table.

    Attributes:
        loop: dxdt or plain.
        compiled: whether the network is.
        images: a second, at the median step.
        times: seconds of a step.
        ratio: images a second over those of the plain loop.
    """

    loop: str
    compiled: bool
    images: float
    times: Times
    ratio: float


def bench_train(
    batch: int = 64,
    size: int = 28,
    repeats: int = 15,
    compile: bool = False,
    clock: Literal["wall", "cpu"] = "wall",
    net: SmallUNet = SmallUNet(multipliers=(1, 2), attention=(1,), patch=2),  # noqa: B008
    out: Path | None = None,
) -> list[Speed]:
    """Time steps of training a small U-Net, side by side with a plain PyTorch loop.

    Args:
        batch: images in a step.
        size: height and width of the images.
        repeats: steps that are timed.
        compile: compiled networks too.
        clock: of the wall, or of the processor where others use the machine too.
        net: the network.
        out: a JSON file of the numbers.
    """
    rows: list[Speed] = []
    for compiled in (False, True)[: 1 + compile]:
        settings = Score(net=net, training=Training(batch=batch, compile=compiled))
        images = Pixels("noise", torch.randint(256, (1024, 1, size, size)))
        runs = {"plain": _plain(images, settings), "dxdt": _own(images, settings)}
        found = time_together(runs, repeats, clock=CLOCKS[clock])
        base = found["plain"].median
        rows += [Speed(n, compiled, batch / t.median, t, base / t.median) for n, t in found.items()]
        torch.compiler.reset()
    Console().print(_table(rows, batch, size))
    if out is not None:
        out.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return rows


def _own(images: Pixels, settings: Score) -> Callable[[], Tensor]:
    objective = objective_of(settings.objective)
    trainer = Trainer(LossModule(build(settings, images.shape, None), objective), settings.training)
    loss = BatchLoss(images, settings, Levels(), objective, ())
    return lambda: trainer.advance(loss)


def _plain(images: Pixels, settings: Score) -> Callable[[], Tensor]:
    """The loop that one writes by hand: the noise of a variance-preserving process, predicted."""
    denoiser = build(settings, images.shape, None)
    net: nn.Module = denoiser.net  # pyright: ignore[reportAssignmentType]
    average = [p.detach().clone() for p in net.parameters()]
    if settings.training.compile:
        net.compile()
    adam = torch.optim.Adam(net.parameters(), lr=settings.training.lr)

    def step() -> Tensor:
        x0 = images.images[torch.randint(len(images), (settings.training.batch,))].float()
        x0 = (x0 + torch.rand_like(x0)) / 128 - 1
        t = torch.rand(len(x0), 1, 1, 1)
        total = 0.1 * t + 9.95 * t * t
        eps = torch.randn_like(x0)
        x = (-0.5 * total).exp() * x0 + (-torch.expm1(-total)).sqrt() * eps
        lam = -0.5 * total - 0.5 * (-torch.expm1(-total)).log()
        loss = (net(x, lam.flatten()) - eps).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.training.clip)
        adam.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters(), strict=True):
                a.lerp_(p, 0.002)
        return loss.detach()

    return step


def _table(rows: list[Speed], batch: int, size: int) -> Table:
    table = Table(title=f"training, batch {batch}, {size} x {size} pixels", title_justify="left", box=None)
    for column in ("loop", "network", "images/s", "ms a step", "quartiles", "x plain"):
        table.add_column(column, justify="left" if column in ("loop", "network") else "right")
    for r in rows:
        t = r.times
        spread = f"{1e3 * t.low:.1f}-{1e3 * t.high:.1f}"
        kind = "compiled" if r.compiled else "eager"
        table.add_row(r.loop, kind, f"{r.images:.0f}", f"{1e3 * t.median:.1f}", spread, f"{r.ratio:.2f}")
    return table
