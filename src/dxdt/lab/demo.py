"""The demonstration: a generative model of real images and a model of a pendulum, from nothing.

Part one trains a score model on handwritten digits, draws samples by solving its reverse equation
in two ways, and measures what it has learned. Part two fits neural ODEs to trajectories.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dxdt.diffusion import (
    VP,
    Denoiser,
    DenoisingScoreMatching,
    Mixed,
    UniformLogSNR,
    UniformTime,
    bits_per_dim,
    integrate,
    prior_noise,
    sample,
)
from dxdt.lab import plots
from dxdt.lab.data import Images, Trajectory, data_folder, digits, measured_pendulum
from dxdt.lab.metrics import Classifier, Recognition, novelty
from dxdt.lab.report import Picture, Section, Table, write_report
from dxdt.lab.run import Run
from dxdt.lab.train import Training, train
from dxdt.lab.trajectory import Shooting, TrajectoryModel, shooting_loss, simulated_pendulum
from dxdt.nn import UNet
from dxdt.ops.autodiff import Hutchinson
from dxdt.solve import Save

SIZE = (1, 8, 8)


@dataclass(frozen=True)
class Demo:
    """Everything the demonstration can be told.

    Attributes:
        seed: names every random choice.
        score: training of the score model.
        channels: width of its U-Net.
        batch: images per step.
        samples: images drawn by each solver.
        sde_steps: steps of the reverse SDE.
        measured: held-out images whose likelihood is measured.
        trajectory: training of the neural ODEs.
        shooting: how these meet their data.
        held_out: digits kept from training.
    """

    seed: int = 0
    score: Training = Training(steps=1600)
    channels: int = 32
    batch: int = 128
    samples: int = 200
    sde_steps: int = 400
    measured: int = 360
    trajectory: Training = Training(steps=1000, lr=1e-2, warmup=20, average=0.99)
    shooting: Shooting = Shooting()
    held_out: int = 360


def quick(seed: int = 0) -> Demo:
    """Return a demonstration of seconds, for tests: it runs every part and learns little."""
    return Demo(
        seed=seed,
        score=Training(steps=20, save_every=10),
        channels=8,
        batch=32,
        samples=20,
        sde_steps=20,
        measured=8,
        trajectory=Training(steps=10, lr=1e-2, warmup=5, average=0.9),
        shooting=Shooting(width=8, horizon=4, batch=4),
    )


def run_demo(settings: Demo, folder: Path, *, fresh: bool = False, quiet: bool = False) -> Path:
    """Run the demonstration in `folder` and return the path of its report.

    A run that was interrupted goes on where its last checkpoints were written.

    Args:
        settings: what to do.
        folder: where.
        fresh: empty the folder first, if it holds a run.
        quiet: no progress bars.
    """
    begin = time.monotonic()
    run = Run(folder, settings, fresh=fresh)
    data = digits(held_out=settings.held_out)
    denoiser = train_score(data, settings, run, quiet=quiet)
    sections = [*_images(data, denoiser, settings, run, quiet=quiet)]
    sections.append(_trajectory(simulated_pendulum(), "pendulum", settings, run, quiet=quiet))
    outside = data_folder()
    if outside is not None:
        real = measured_pendulum(outside)
        sections.append(_trajectory(real, "measured", settings, run, quiet=quiet))
    sections.append(_training(run))
    minutes = (time.monotonic() - begin) / 60
    run.log("demo", minutes=minutes)
    report = folder / "report.html"
    write_report(report, "Learning with differential equations", _SUMMARY, sections,
                 f"Seed {settings.seed}; torch {torch.__version__}; {minutes:.1f} minutes. "
                 "Settings are in config.json, numbers in metrics.jsonl, weights in checkpoints/."
                 )  # fmt: skip
    return report


def train_score(data: Images, settings: Demo, run: Run, *, quiet: bool = False) -> Denoiser:
    """Train the score model of the digits (or go on with it) and return its average."""
    torch.manual_seed(settings.seed)
    net = UNet(1, channels=settings.channels, multipliers=(1, 2), blocks=1, attention=(1,))
    denoiser = Denoiser(net, VP())
    objective = DenoisingScoreMatching(Mixed(UniformTime(), UniformLogSNR(), share=0.7))

    def loss(model: Denoiser, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(data.train), (settings.batch,), generator=generator)
        levels = data.train[rows]
        x0 = data.levels.dequantise(levels, torch.rand(levels.shape, generator=generator))
        return objective(model, x0, generator).mean()

    training = _seeded(settings.score, settings.seed)
    return train(denoiser, loss, training, run, "score", quiet=quiet)


def _seeded(training: Training, seed: int) -> Training:
    return Training(**{**asdict(training), "seed": training.seed + seed})


class _Bar:
    """A progress bar for `dxdt.solve`, whose steps are even in log(a / c) rather than in time."""

    def __init__(self, name: str, quiet: bool, start: float, end: float) -> None:
        self.ends = start, end
        self.bar = tqdm(total=100, desc=name, unit="%", disable=quiet)

    def update(self, fraction: float) -> None:
        start, end = self.ends
        now = start + fraction * (end - start)
        first, here, last = VP().lam(torch.tensor([start, now, end], dtype=torch.float64)).tolist()
        self.bar.update(round(100 * (here - first) / (last - first), 1) - self.bar.n)

    def close(self) -> None:
        self.bar.close()


@torch.no_grad()
def _draw(denoiser: Denoiser, settings: Demo, *, tau: float, quiet: bool) -> Tensor:
    name = "reverse SDE" if tau else "flow ODE"
    return sample(
        denoiser,
        (settings.samples, *SIZE),
        steps=settings.sde_steps if tau else None,
        tau=tau,
        seed=settings.seed,
        progress=_Bar(name, quiet, 1.0, 1e-3),
    )


@torch.no_grad()
def _images(
    data: Images, denoiser: Denoiser, settings: Demo, run: Run, *, quiet: bool
) -> list[Section]:
    flow = _draw(denoiser, settings, tau=0.0, quiet=quiet)
    noisy = _draw(denoiser, settings, tau=1.0, quiet=quiet)
    bits = bits_per_dim(
        denoiser,
        data.held_out[: settings.measured],
        levels=data.levels,
        divergence=Hutchinson(probes=1, seed=settings.seed),
        seed=settings.seed,
        batch=settings.measured,
        progress=_Bar("likelihood", quiet, 1e-5, 1.0),
    )
    run.log("bits_per_dim", mean=bits.mean, standard_error=bits.standard_error,
            images=len(bits.each), evaluations=bits.evaluations)  # fmt: skip
    classifier = Classifier(data)
    levels = {
        "flow ODE": data.levels.quantise(flow),
        "reverse SDE": data.levels.quantise(noisy),
    }
    read = {"real, held out": classifier.read(data.held_out)}
    read |= {name: classifier.read(images) for name, images in levels.items()}
    for name, seen in read.items():
        run.log("recognition", set=name, confidence=seen.confidence, sure=seen.sure,
                histogram=seen.histogram)  # fmt: skip
    run.log("classifier", accuracy=classifier.accuracy)
    samples = Section(
        "Digits that nobody wrote",
        [
            "A small U-Net was shown handwritten digits (8 by 8 pixels, 17 grey levels) with "
            "Gaussian noise added, at every strength from none to all, and learned to tell the "
            "noise from the digit. That answer is the score of the noisy images, and the score "
            "turns noise into digits by a differential equation that runs backwards in time.",
            "The same equation is solved in two ways: as an ordinary one (the probability flow, "
            "by Tsit5 with adaptive steps) and as a stochastic one (by Euler-Maruyama with "
            f"{settings.sde_steps} steps). Both end in the same law of images.",
        ],
        pictures=[
            _compare(data, flow, noisy, run),
            _course(denoiser, settings, run),
        ],
    )
    return [
        samples,
        _quality(data, read, classifier.accuracy, f"{bits}", len(bits.each), run),
        _new(data, levels, run),
    ]


def _compare(data: Images, flow: Tensor, noisy: Tensor, run: Run) -> Picture:
    path = run.folder / "samples.png"
    real = data.held_out[:100] / (data.levels.count - 1)
    plots.side_by_side(
        path,
        {
            "real digits, never trained on": real,
            "samples: probability flow, Tsit5": plots.to_unit(flow[:100]),
            "samples: reverse SDE, Euler-Maruyama": plots.to_unit(noisy[:100]),
        },
    )
    caption = (
        "Left: real digits. Middle and right: samples, not selected; each began as pure noise."
    )
    return Picture(path, caption)


@torch.no_grad()
def _course(denoiser: Denoiser, settings: Demo, run: Run) -> Picture:
    path = run.folder / "course.png"
    times = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 1e-3]
    rows: dict[str, list[Tensor]] = {}
    x1 = prior_noise((3, *SIZE), settings.seed)
    for name, tau in (("flow ODE", 0.0), ("reverse SDE", 1.0)):
        found = integrate(
            denoiser,
            x1,
            steps=settings.sde_steps if tau else None,
            tau=tau,
            seed=settings.seed,
            save=Save(times=torch.tensor(times, dtype=torch.float64)),
        )
        for k in range(len(x1)):
            label = name if k == 1 else " " * (k + 1 + (4 if tau else 0))
            rows[label] = [plots.to_unit(y) for y in found.ys[:, k]]
    plots.course(path, rows, times)
    caption = (
        "Three samples on their way from noise (t = 1) to digits (t = 0), by either equation, "
        "from the same noise. The flow is smooth; the SDE keeps adding fresh noise and forgets "
        "where it began."
    )
    return Picture(path, caption)


def _quality(
    data: Images, read: dict[str, Recognition], accuracy: float, bits: str, images: int, run: Run
) -> Section:
    path = run.folder / "classes.png"
    plots.histogram(path, {name: seen.histogram for name, seen in read.items()})
    rows = [
        [name, f"{seen.confidence:.3f}", f"{100 * seen.sure:.0f} %"] for name, seen in read.items()
    ]
    return Section(
        "How good are they?",
        [
            f"The probability flow gives the exact likelihood of images it has never seen: {bits} "
            f"(mean and standard error over {images} held-out digits, with uniform "
            "dequantisation). A model that knows nothing but the 17 grey levels needs 4.087.",
            f"A classifier trained on the real digits alone ({100 * accuracy:.1f} % right on "
            "held-out ones) reads the samples. If it is about as sure of them as it is of real "
            "digits, and sees all ten classes in like shares, the samples are digits and no kind "
            "is missing.",
        ],
        Table(["images", "mean confidence", "above 0.9"], rows),
        [Picture(path, "Share of each digit, as the classifier reads them.")],
    )


def _new(data: Images, levels: dict[str, Tensor], run: Run) -> Section:
    found = {name: novelty(x, data.train, data.held_out) for name, x in levels.items()}
    for name, it in found.items():
        run.log("novelty", set=name, ratio=it.ratio, copies=it.copies)
    first = next(iter(found.values()))
    images = next(iter(levels.values()))
    top = data.levels.count - 1
    strip, spread = run.folder / "nearest.png", run.folder / "distances.png"
    plots.nearest(strip, images[:14] / top, data.train[first.nearest[:14]] / top)
    plots.distances(
        spread,
        {"held-out digits": first.held_out} | {name: it.samples for name, it in found.items()},
    )
    rows = [[name, f"{it.ratio:.2f}", f"{100 * it.copies:.1f} %"] for name, it in found.items()]
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
            rows,
        ),
        [
            Picture(strip, "Samples of the flow, and the training image nearest to each."),
            Picture(spread, "Distances to the nearest training image, for all of them."),
        ],
    )


@contextmanager
def _one_thread() -> Generator[None]:
    # Products of a few dozen numbers: a second thread costs more than it saves.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trajectory(data: Trajectory, name: str, settings: Demo, run: Run, *, quiet: bool) -> Section:
    torch.manual_seed(settings.seed)
    shooting = settings.shooting

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return shooting_loss(cast(TrajectoryModel, model), data, shooting, generator)

    with _one_thread():
        training = _seeded(settings.trajectory, settings.seed)
        model = train(TrajectoryModel(data, shooting), loss, training, run, name, quiet=quiet)
        ts = torch.linspace(float(data.ts[0]), float(data.ts[-1]), 800, dtype=torch.float64)
        with torch.no_grad():
            course, at = model.forecast(data, ts), model.forecast(data, data.ts)
    path = run.folder / f"{name}.png"
    plots.trajectory(path, data, ts, course)
    missed = (at - data.ys).square().mean(1)
    seen, unseen = (m.mean().sqrt().item() for m in missed.tensor_split([data.trained]))
    run.log("trajectory", set=name, seen=seen, unseen=unseen)
    rows = [["seen", f"{seen:.3f}"], ["never seen", f"{unseen:.3f}"]]
    text = _MEASURED if data.truth is None else _SIMULATED
    return Section(
        "A measured pendulum" if data.truth is None else "A neural ODE that goes on by itself",
        text,
        Table(["readings", "root mean square error"], rows),
        [Picture(path, "White: the readings the model was fitted to. Shaded: its forecast.")],
    )


def _training(run: Run) -> Section:
    path = run.folder / "training.png"
    names = {"score": "score model", "pendulum": "simulated pendulum",
             "measured": "measured pendulum"}  # fmt: skip
    series: dict[str, Any] = {title: run.read(name) for name, title in names.items()}
    plots.losses(path, {title: rows for title, rows in series.items() if rows})
    return Section(
        "How the training went",
        ["Pale: the loss of single steps. Strong: its running mean."],
        pictures=[Picture(path, "Training losses.")],
    )


_SUMMARY = [
    "Everything on this page was learned from scratch in a few minutes on a processor, by solving "
    "differential equations: a generative model of real handwritten digits, and models of moving "
    "pendulums. One function, dxdt.solve, does all the solving.",
]
_SIMULATED = [
    "A pendulum with friction is read at random times, with noise. A neural network is to find "
    "the law of motion: its value is the time derivative of (angle, angular velocity), and what "
    "is compared with the readings are solutions of that equation. Since it has learned the "
    "law and not the curve, it can go on after the last reading it saw.",
]
_MEASURED = [
    "The same on a real pendulum, filmed by Schmidt and Lipson (2009): readings at irregular "
    "times, with the errors of a real measurement. The whole blue curve is one solution from one "
    "initial state, so small errors of the law add up to a slow drift of the phase.",
]
