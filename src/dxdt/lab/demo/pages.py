"""What the demonstration's report says: each function draws its pictures and explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dxdt.diffusion import BitsPerDim
from dxdt.lab.data.datasets import Images, Trajectory
from dxdt.lab.evaluation.metrics import Novelty, Recognition
from dxdt.lab.report import plots
from dxdt.lab.report.page import Picture, Section, Table

SUMMARY = [
    "Everything on this page was learned from scratch in a few minutes on a processor, by solving "
    "differential equations: a generative model of real handwritten digits, and models of moving "
    "pendulums. One function, dxdt.solve, does all the solving.",
]


@dataclass(frozen=True)
class Course:
    """Images on their way from noise to data.

    Attributes:
        rows: for each name the images (1, h, w) in [0, 1] at the times.
        times: falling.
    """

    rows: Mapping[str, Sequence[Tensor]]
    times: Sequence[float]


def samples(folder: Path, data: Images, drawn: Mapping[str, Tensor], course: Course, sde_steps: int) -> Section:
    """Show samples beside real images, and how they came about."""
    top = data.levels.count - 1
    grid, strip = folder / "samples.png", folder / "course.png"
    titles = {
        "flow ODE": "probability flow, Tsit5",
        "reverse SDE": "reverse SDE, Euler-Maruyama",
    }
    sets = {"real digits, held out": data.held_out[:100] / top}
    plots.side_by_side(grid, sets | {titles[k]: x[:100] / top for k, x in drawn.items()})
    plots.course(strip, course.rows, course.times)
    return Section(
        "Digits that nobody wrote",
        [
            "A small U-Net was shown handwritten digits (8 by 8 pixels, 17 grey levels) with "
            "Gaussian noise added, at every strength from none to all, and learned to tell the "
            "noise from the digit. That answer is the score of the noisy images, and the score "
            "turns noise into digits by a differential equation that runs backwards in time.",
            "The equation is solved in two forms: an ordinary one (the probability flow, by Tsit5 "
            "with adaptive steps) and a stochastic one (by Euler-Maruyama with "
            f"{sde_steps} steps). Both end in the same law of images.",
        ],
        pictures=[
            Picture(
                grid,
                "Left: real digits. Middle and right: samples, not selected; each began as noise.",
            ),
            Picture(
                strip,
                "Two samples on their way from noise (t = 1) to digits (t = 0) by either "
                "equation, from the same noise. The flow is smooth; the SDE keeps adding fresh "
                "noise and forgets where it began.",
            ),
        ],
    )


def quality(
    folder: Path,
    read: Mapping[str, Recognition],
    accuracy: float,
    bits: BitsPerDim,
    *,
    levels: int,
) -> Section:
    """Tell the likelihood of held-out images, and what a classifier makes of the samples."""
    path = folder / "classes.png"
    digits = {name: seen for name, seen in read.items() if "control" not in name}
    shares, errors = ({k: getattr(v, part) for k, v in digits.items()} for part in ("histogram", "errors"))
    plots.histogram(path, shares, errors)
    return Section(
        "How good are they?",
        [
            "The probability flow gives the likelihood of images it has never seen: "
            f"{bits} (mean and standard error over {len(bits.each)} held-out digits, uniform "
            "dequantisation, random traces). A model that knows nothing but the number of grey "
            f"levels needs log2 {levels} = {math.log2(levels):.3f}.",
            "A classifier (a forest of 300 trees, trained on the real digits alone, "
            f"{100 * accuracy:.1f} % right on held-out ones) reads the samples. Its confidence is "
            "the share of trees that agree. Real digits show what confidence to expect, and two "
            "controls show that it falls for what is no digit: averages of two different real "
            "digits, and real digits with their pixels shuffled.",
        ],
        Table(
            ["images", "mean confidence"],
            [[name, f"{seen.confidence:.3f}"] for name, seen in read.items()],
        ),
        [
            Picture(
                path, f"Share of each digit, as the classifier reads them, with standard errors. {_farthest(digits)}"
            )
        ],
    )


def _farthest(digits: Mapping[str, Recognition]) -> str:
    """Which share of the samples lies farthest from that of the real digits, in standard errors."""
    (_, real), *others = digits.items()
    found: list[tuple[float, str]] = []
    for name, seen in others:
        for k, (p, q) in enumerate(zip(seen.histogram, real.histogram, strict=True)):
            error = (seen.errors[k] ** 2 + real.errors[k] ** 2) ** 0.5
            apart = abs(p - q) / error if error else 0.0
            found.append((apart, f"{name} has {p:.3f} of digit {k}, real digits {q:.3f}, {apart:.1f} standard errors"))
    apart, told = max(found)
    return f"Farthest apart: {told}" + (": more than chance." if apart > 3 else ".")


def new(folder: Path, data: Images, drawn: Tensor, found: Mapping[str, Novelty]) -> Section:
    """Tell whether samples are copies of training images."""
    top = data.levels.count - 1
    strip, spread = folder / "nearest.png", folder / "distances.png"
    first = next(iter(found.values()))
    plots.nearest(strip, drawn[:14] / top, data.train[first.nearest[:14]] / top)
    sets = {"held-out digits": first.held_out}
    plots.distances(spread, sets | {name: it.samples for name, it in found.items()})
    return Section(
        "Are they new?",
        [
            "A model that only repeated its training images would look perfect. So every sample "
            "is compared with all of them, and so is every held-out digit, which is new by "
            "construction. A ratio of typical distances near or above 1 means that samples are as "
            "new as fresh handwriting; copies would sit near 0.",
        ],
        Table(
            ["samples", "distance, relative to held-out digits", "nearer than any held-out digit"],
            [[k, f"{it.ratio:.2f}", f"{100 * it.copies:.1f} %"] for k, it in found.items()],
        ),
        [
            Picture(strip, "Samples of the flow, and the training image nearest to each."),
            Picture(spread, "Distances to the nearest training image, for all of them."),
        ],
    )


def trajectory(path: Path, data: Trajectory, ts: Tensor, course: Tensor, seen: float, unseen: float) -> Section:
    """Show a fitted trajectory and its forecast."""
    plots.trajectory(path, data, ts, course)
    simulated = data.truth is not None
    return Section(
        "A neural ODE that goes on by itself" if simulated else "A measured pendulum",
        _SIMULATED if simulated else _MEASURED,
        Table(
            ["readings", "root mean square error"],
            [["seen", f"{seen:.3f}"], ["never seen", f"{unseen:.3f}"]],
        ),
        [Picture(path, "White: the readings the model was fitted to. Shaded: its forecast.")],
    )


def training(folder: Path, losses: Mapping[str, Sequence[dict[str, float]]]) -> Section:
    """Show the losses of all trainings."""
    path = folder / "training.png"
    plots.losses(path, {title: rows for title, rows in losses.items() if rows})
    return Section("How the training went", [], pictures=[Picture(path, "Pale: single steps. Strong: mean.")])


_SIMULATED = [
    "A pendulum with friction is read at random times, with noise. A neural network is to find "
    "the law of motion: its value is the time derivative of (angle, angular velocity), and what "
    "is compared with the readings are solutions of that equation. Since it has learned the law "
    "and not the curve, it can go on after the last reading it saw.",
]
_MEASURED = [
    "The same on a real pendulum, measured by Schmidt and Lipson (2009): readings at irregular "
    "times, with the errors of a real measurement. The whole blue curve is one solution from one "
    "initial state, so small errors of the law add up to a slow drift of the phase.",
]
