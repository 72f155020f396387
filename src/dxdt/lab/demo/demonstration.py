"""The demonstration: models of real images, of a pendulum and of random paths, from nothing.

Part one trains a score model on handwritten digits, draws samples by solving its reverse equation
in two ways, and measures what it has learned. Part two fits neural ODEs to trajectories, part three
neural SDEs to ensembles of random paths.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dxdt.diffeq import Save
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
from dxdt.lab.data.batch_rng import Draws
from dxdt.lab.data.datasets import Images, Trajectory, digits, measured_pendulum
from dxdt.lab.data.folder import data_folder
from dxdt.lab.demo import pages, path_pages
from dxdt.lab.demo.few_step_page import Few, few_steps
from dxdt.lab.demo.pages import Course
from dxdt.lab.evaluation.metrics import Classifier, controls, novelty
from dxdt.lab.evaluation.two_sample import compare_paths
from dxdt.lab.report import plots
from dxdt.lab.report.page import Section, write_report
from dxdt.lab.runs.bar import progress_bar
from dxdt.lab.runs.run import Run
from dxdt.lab.training.averaging import WarmUp
from dxdt.lab.training.ensemble import (
    Ensemble,
    EnsembleModel,
    Windows,
    air_quality,
    double_well,
    transition_loss,
    window_loss,
)
from dxdt.lab.training.settings import Training
from dxdt.lab.training.trainer import train
from dxdt.lab.training.trajectory import Shooting, TrajectoryModel, shooting_loss, simulated_pendulum
from dxdt.nn import UNet
from dxdt.ops.autodiff import Hutchinson

SIZE = (1, 8, 8)
# Even in the ratio of signal and noise where digits take shape, which is early on this clock.
TIMES = (1.0, 0.63, 0.55, 0.46, 0.36, 0.26, 0.17, 0.065, 1e-3)
SERIES = {
    "score": "score model",
    "pendulum": "simulated pendulum",
    "measured": "measured pendulum",
    "double_well": "paths between two wells",
}


@dataclass(frozen=True)
class Demo:
    """Everything the demonstration can be told.

    Attributes:
        seed: names every random choice.
        score: training of the score model.
        channels: width of its U-Net.
        samples: images drawn by each solver.
        sde_steps: steps of the reverse SDE.
        few: how much is drawn in few steps.
        measured: held-out images whose likelihood is measured.
        trajectory: training of the neural ODEs.
        shooting: how these meet their data.
        held_out: digits kept from training.
        transitions: training of the neural SDEs on single transitions.
        paths: training of the simulated one on short solves, after that.
        windows: how these meet their data.
        ensemble: simulated paths, half of them held out.
    """

    seed: int = 0
    score: Training = Training(steps=1600)
    channels: int = 32
    samples: int = 200
    sde_steps: int = 400
    few: Few = Few()
    measured: int = 360
    trajectory: Training = Training(steps=1000, lr=1e-2, warmup=20, average=WarmUp(0.99))
    shooting: Shooting = Shooting()
    held_out: int = 360
    transitions: Training = Training(steps=800, batch=2048, lr=1e-2, warmup=20, average=WarmUp(0.99))
    paths: Training = Training(steps=300, lr=3e-3, warmup=20, average=WarmUp(0.98))
    windows: Windows = Windows()
    ensemble: int = 2048


def quick(seed: int = 0) -> Demo:
    """Return a demonstration of seconds, for tests: it runs every part and learns little."""
    return Demo(
        seed=seed,
        score=Training(steps=20, batch=32, save_every=10),
        channels=8,
        samples=20,
        sde_steps=20,
        few=Few(shown=(5,), measured=(5, 10), samples=2, reference=12),
        measured=8,
        trajectory=Training(steps=10, lr=1e-2, warmup=5, average=WarmUp(0.9)),
        shooting=Shooting(width=8, horizon=4, batch=4),
        transitions=Training(steps=20, batch=64, lr=1e-2, warmup=5, average=WarmUp(0.9)),
        paths=Training(steps=10, batch=16, lr=3e-3, warmup=5, average=WarmUp(0.9)),
        windows=Windows(width=8, horizon=1, samples=2, substeps=2),
        ensemble=128,
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
    wells = double_well(paths=settings.ensemble, seed=settings.seed)
    sections.append(_ensemble(wells, "double_well", settings.windows, settings, run, quiet=quiet))
    if outside is not None:
        windows = replace(settings.windows, substeps=2, periodic=True)
        sections.append(_ensemble(air_quality(outside), "air_quality", windows, settings, run, quiet=quiet))
    losses = {title: run.read(name) for name, title in SERIES.items()}
    sections.append(pages.training(run.folder, losses))
    overview = [folder / "samples.png", folder / "pendulum.png", folder / "double_well.png"]
    plots.stack(folder / "overview.png", overview)
    minutes = (time.monotonic() - begin) / 60
    run.log("demo", minutes=minutes)
    report = folder / "report.html"
    write_report(report, "Learning with differential equations", pages.SUMMARY, sections,
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

    def loss(model: Denoiser, draws: Draws) -> Tensor:
        generator = draws.generator()
        rows = torch.randint(len(data.train), (draws.batch,), generator=generator)
        levels = data.train[rows]
        x0 = data.levels.dequantise(levels, torch.rand(levels.shape, generator=generator))
        return objective(model, x0, generator).mean()

    training = _seeded(settings.score, settings.seed)
    return train(denoiser, loss, training, run, "score", quiet=quiet)


def _seeded(training: Training, seed: int) -> Training:
    return replace(training, seed=training.seed + seed)


class _Bar:
    """A progress bar for `dxdt.solve`, whose steps are even in log(a / c) rather than in time."""

    def __init__(self, name: str, quiet: bool, start: float, end: float) -> None:
        self.ends = start, end
        self.bar = progress_bar(100, name, "%", quiet=quiet)

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
def _images(data: Images, denoiser: Denoiser, settings: Demo, run: Run, *, quiet: bool) -> list[Section]:
    samples = {
        "flow ODE": data.levels.quantise(_draw(denoiser, settings, tau=0.0, quiet=quiet)),
        "reverse SDE": data.levels.quantise(_draw(denoiser, settings, tau=1.0, quiet=quiet)),
    }
    bits = bits_per_dim(
        denoiser,
        data.held_out[: settings.measured],
        levels=data.levels,
        divergence=Hutchinson(probes=1, seed=settings.seed),
        seed=settings.seed,
        batch=settings.measured,
        rtol=1e-4,  # changes the mean by 1e-5, a thousandth of its standard error
        atol=1e-4,
        progress=_Bar("likelihood", quiet, 1e-5, 1.0),
    )
    run.log("bits_per_dim", mean=bits.mean, standard_error=bits.standard_error,
            images=len(bits.each), evaluations=bits.evaluations)  # fmt: skip
    classifier = Classifier(data)
    shown = {"real, held out": data.held_out} | samples | controls(data.held_out)
    read = {name: classifier.read(images) for name, images in shown.items()}
    for name, seen in read.items():
        run.log("recognition", set=name, confidence=seen.confidence, histogram=seen.histogram)
    run.log("classifier", accuracy=classifier.accuracy)
    found = {name: novelty(x, data.train, data.held_out) for name, x in samples.items()}
    for name, it in found.items():
        run.log("novelty", set=name, ratio=it.ratio, copies=it.copies)
    return [
        pages.samples(run.folder, data, samples, _course(denoiser, settings), settings.sde_steps),
        few_steps(run.folder, denoiser, SIZE, settings.few, settings.seed),
        pages.quality(run.folder, read, classifier.accuracy, bits, levels=data.levels.count),
        pages.new(run.folder, data, samples["flow ODE"], found),
    ]


def _course(denoiser: Denoiser, settings: Demo) -> Course:
    rows: dict[str, list[Tensor]] = {}
    x1 = prior_noise((2, *SIZE), settings.seed)
    for name, tau in (("flow ODE", 0.0), ("reverse SDE", 1.0)):
        found = integrate(
            denoiser,
            x1,
            steps=settings.sde_steps if tau else None,
            tau=tau,
            seed=settings.seed,
            save=Save(times=torch.tensor(TIMES, dtype=torch.float64)),
        )
        for k in range(len(x1)):
            rows[f"{name} {k + 1}"] = [plots.to_unit(y) for y in found.ys[:, k]]
    return Course(rows, TIMES)


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

    def loss(model: nn.Module, draws: Draws) -> Tensor:
        return shooting_loss(cast(TrajectoryModel, model), data, shooting, draws.generator())

    with _one_thread():
        training = _seeded(settings.trajectory, settings.seed)
        model = train(TrajectoryModel(data, shooting), loss, training, run, name, quiet=quiet)
        ts = torch.linspace(float(data.ts[0]), float(data.ts[-1]), 800, dtype=torch.float64)
        with torch.no_grad():
            course, at = model.forecast(data, ts), model.forecast(data, data.ts)
    missed = (at - data.ys).square().mean(1)
    seen, unseen = (m.mean().sqrt().item() for m in missed.tensor_split([data.trained]))
    run.log("trajectory", set=name, seen=seen, unseen=unseen)
    return pages.trajectory(run.folder / f"{name}.png", data, ts, course, seen, unseen)


def _ensemble(data: Ensemble, name: str, windows: Windows, settings: Demo, run: Run, *, quiet: bool) -> Section:
    """Fit transitions, then, where an SDE is known to be behind the data, short solves."""
    torch.manual_seed(settings.seed)

    def transitions(model: nn.Module, draws: Draws) -> Tensor:
        return transition_loss(cast(EnsembleModel, model), data, draws.batch, draws.generator())

    def paths(model: nn.Module, draws: Draws) -> Tensor:
        return window_loss(cast(EnsembleModel, model), data, windows, draws.batch, draws.generator())

    with _one_thread():
        training = _seeded(settings.transitions, settings.seed)
        model = train(EnsembleModel(data, windows), transitions, training, run, f"{name}_transitions", quiet=quiet)
        if data.truth is not None:
            model = train(
                model.requires_grad_(True), paths, _seeded(settings.paths, settings.seed), run, name, quiet=quiet
            )
        count = len(data.held_out)
        order = torch.randperm(len(data.seen), generator=torch.Generator().manual_seed(settings.seed))[:count]
        drawn = model.sample(data.seen[order][:, 0], data.ts, settings.seed)
    found = {"samples of the neural SDE": compare_paths(data.held_out, drawn),
             "as many seen data": compare_paths(data.held_out, data.seen[order])}  # fmt: skip
    for kind, verdicts in found.items():
        for what, it in verdicts.items():
            run.log("two_sample", set=name, of=kind, what=what, distance=it.distance, limit=it.limit, p=it.p)
    return path_pages.ensemble(run.folder, name, data, model, drawn, found)
