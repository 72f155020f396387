"""What the demonstration's report says of samplers of a few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dxdt.diffeq import Exponential, Heun
from dxdt.diffusion import DDIM, DenoiserLike, LogSNR, sample
from dxdt.lab.demo import few_step_plots
from dxdt.lab.demo.few_step_samplers import Ours
from dxdt.lab.report import plots
from dxdt.lab.report.page import Picture, Section, Table

FLOW = {
    "DDIM": Ours(DDIM()),
    "Heun": Ours(Heun()),
    "Exponential(2), default": Ours(Exponential(order=2)),
    "Exponential(3)": Ours(Exponential(order=3)),
}
SDE = {"Exponential(2), tau=1": Ours(Exponential(order=2), tau=1.0)}


@dataclass(frozen=True)
class Few:
    """How much is drawn.

    Attributes:
        shown: evaluations of the pictures.
        measured: evaluations at which distances are measured.
        samples: how many are shown, and measured.
        reference: steps of the solution that counts as exact.
    """

    shown: tuple[int, ...] = (5, 10, 20)
    measured: tuple[int, ...] = (5, 7, 10, 14, 20, 28, 40, 56, 80)
    samples: int = 8
    reference: int = 240


@dataclass(frozen=True)
class Curve:
    """Root mean square distances from the converged solution at numbers of evaluations."""

    evaluations: Sequence[int]
    distances: Sequence[float]


@torch.no_grad()
def few_steps(folder: Path, denoiser: DenoiserLike, size: Sequence[int], few: Few, seed: int) -> Section:
    """Draw the same digits by several samplers in few evaluations, and show how fast each converges.

    Args:
        folder: of the pictures.
        denoiser: of images in [-1, 1].
        size: of an image.
        few: how much is drawn.
        seed: of the common initial noise.
    """
    shape = (few.samples, *size)
    drawn = {name: {n: sampler(denoiser, shape, n, seed) for n in few.shown} for name, sampler in (FLOW | SDE).items()}
    exact = sample(denoiser, shape, steps=few.reference, solver=Exponential(order=3), grid=LogSNR(), seed=seed)
    grid, lines = folder / "few_steps.png", folder / "convergence.png"
    rows = {name: [plots.to_unit(found[n].x) for n in few.shown] for name, found in drawn.items()}
    titles = [f"{n} evaluations" for n in few.shown]
    few_step_plots.side_by_side(grid, rows | {"converged flow": [plots.to_unit(exact)] * len(titles)}, titles)
    curves = _curves(denoiser, shape, exact, few, seed)
    few_step_plots.convergence(lines, {name: (it.evaluations, it.distances) for name, it in curves.items()})
    return Section("Few steps", [*_TEXT, _verdict(curves, few)], _table(curves, few), _pictures(grid, lines))


def _curves(denoiser: DenoiserLike, shape: Sequence[int], exact: Tensor, few: Few, seed: int) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for name, sampler in FLOW.items():
        found = [sampler(denoiser, shape, n, seed) for n in few.measured]
        apart = [(it.x - exact).square().mean().sqrt().item() for it in found]
        curves[name] = Curve([it.evaluations for it in found], apart)
    return curves


def _table(curves: Mapping[str, Curve], few: Few) -> Table:
    places = [k for k, n in enumerate(few.measured) if n in few.shown]
    rows = [[name, *(f"{it.distances[k]:.3f}" for k in places)] for name, it in curves.items()]
    return Table(["distance from the converged flow", *(f"{few.measured[k]} evaluations" for k in places)], rows)


def _verdict(curves: Mapping[str, Curve], few: Few) -> str:
    """Which method is nearest at each number of evaluations that the table shows."""
    told: list[str] = []
    for k, n in enumerate(few.measured):
        if n in few.shown:
            at = {name: curve.distances[k] for name, curve in curves.items()}
            near, following, *_ = sorted(at, key=lambda name: at[name])
            told.append(f"at {n} evaluations {near} ({following} is {at[following] / at[near]:.1f} times as far)")
    return f"Nearest to the converged digits is here {'; '.join(told)}."


def _pictures(grid: Path, lines: Path) -> list[Picture]:
    return [
        Picture(grid, "Each column of digits began as the same noise in every row; nothing is selected."),
        Picture(
            lines,
            "Root mean square distance from the converged solution, pixels lying in [-1, 1]. Dotted: slopes of "
            "orders 1, 2 and 3.",
        ),
    ]


_TEXT = [
    "What costs time is asking the network. A solver that knows which part of the equation is linear solves that part "
    "exactly and asks the network only where its answer changes: an exponential integrator. The steps count the last "
    "answer of the network, so 'steps' "
    "are evaluations for methods that ask once a step; Heun asks twice, and Exponential(3) twice in its first steps, "
    "so they take fewer steps here.",
    "The first rows solve the probability flow, whose samples depend on the first noise alone, so all of them "
    "approach the same digits, the last row. The SDE keeps adding noise: it draws other digits, and needs more steps.",
]
