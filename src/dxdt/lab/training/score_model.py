"""Score models of images: what one is, how it is trained, and the file that holds it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from dxdt.diffusion import Conditioned, Levels, Objective, sample
from dxdt.interop import load_own, save
from dxdt.interop.checkpoint import read_safetensors
from dxdt.lab.data.batch_rng import Draws, Order
from dxdt.lab.data.images import Augmentation, ImageSet, grid_picture
from dxdt.lab.data.readers import open_images
from dxdt.lab.report.plots import losses
from dxdt.lab.runs.config import from_plain, to_plain
from dxdt.lab.runs.files import write_picture
from dxdt.lab.runs.run import Run
from dxdt.lab.training.averaging import PowerFunction
from dxdt.lab.training.build import augmentations, denoiser, network, objective, process
from dxdt.lab.training.ema import reconstruct
from dxdt.lab.training.settings import Score
from dxdt.lab.training.snapshots import keep_snapshot, read_snapshots
from dxdt.lab.training.trainer import Trainer, processes, train

FORMAT = "dxdt score model 1"
SERIES = "score"
FREE = (
    *(f"training.{name}" for name in ("steps", "lr", "warmup", "floor", "clip", "save_every", "log_every", "compile")),
    "augment",
    "pictures",
    "picture_steps",
)
"""Settings that a run may change as it goes on; the others say what the network is, what it learns and from what."""


@final
@dataclass(frozen=True)
class ScoreModel:
    """A trained score model with what is needed to use it.

    Attributes:
        denoiser: answers E[x_0 | x_t].
        settings: of its training.
        shape: channels, height, width of the images.
        levels: how grey levels lie in the interval that it was trained on.
        classes: names of the classes that it can be asked for, or None.
        step: training steps taken.
    """

    denoiser: nn.Module
    settings: Score
    shape: tuple[int, int, int]
    levels: Levels
    classes: tuple[str, ...] | None
    step: int

    def of_class(self, labels: Tensor) -> Any:
        """Return the denoiser told the labels (batch,) of a batch.

        Raises:
            ValueError: the model knows no classes, or not these.
        """
        if self.classes is None:
            raise ValueError("this model was trained without classes; sample without one.")
        if int(labels.max()) >= len(self.classes):
            raise ValueError(f"there is no class {int(labels.max())}; choose from 0 to {len(self.classes) - 1}.")
        return Conditioned(self.denoiser, labels=labels)


def build(settings: Score, shape: tuple[int, int, int], classes: int | None) -> nn.Module:
    """Return the untrained denoiser of some settings, its weights named by the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.training.seed)
        net = network(settings.net, shape, classes)
    return denoiser(settings.answer, net, process(settings.process))


@final
class LossModule(nn.Module):
    """A denoiser with its objective: the loss of every sample, in one call that devices can share."""

    def __init__(self, denoiser: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss (batch,) of data at times and noise."""
        given = {} if labels is None else {"labels": labels}
        denoiser: Any = self.denoiser
        return self.objective.at(denoiser, x0, t, eps, **given)


@final
@dataclass(frozen=True)
class BatchLoss:
    """The loss of a step: images in the order of the seed, their times and noise."""

    images: ImageSet
    settings: Score
    levels: Levels
    objective: Objective
    augmentations: tuple[Augmentation, ...]

    def __call__(self, module: Callable[..., Tensor], draws: Draws) -> Tensor:
        """Return the mean loss of the rows of `draws`."""
        s = self.settings
        levels, labels = self.images.read(Order(len(self.images), draws.seed).rows(draws))
        for change in self.augmentations:
            levels = change(levels, draws)
        shape = levels.shape[1:]
        u = draws.uniform("level", *shape) if s.dequantise else 0.5
        x0 = self.levels.low + (levels + u) * self.levels.width
        t = self.objective.times(process(s.process), draws.even("time"))
        eps = draws.normal("noise", shape)
        device = _device(module)
        sent = [v.to(device) for v in (x0, t, eps)]
        if not s.conditional or labels is None:
            return module(*sent).mean()
        told = torch.where(draws.uniform("label") < s.drop, -1, labels)
        return module(*sent, told.to(device)).mean()


def _device(module: Any) -> torch.device:
    return next(module.parameters()).device


def train_score(
    settings: Score, folder: Path, *, start: Path | None = None, fresh: bool = False, quiet: bool = False
) -> ScoreModel:
    """Train a score model in a folder, or go on with it, and return its average.

    A run goes on with more steps, another learning rate or other pictures (`FREE`) where its folder is given again.

    The folder gets config.json, metrics.jsonl, checkpoints/score.safetensors (all that resuming needs),
    model.safetensors (the average, for use), pictures/ of samples, losses.png, TensorBoard's events and,
    for power-function averages, snapshots/.

    Args:
        settings: what to train, and how.
        folder: of the run.
        start: a model whose weights a new run begins with: its file, or the folder of its run.
        fresh: start over, deleting what a former run left in the folder.
        quiet: no progress bar.

    Raises:
        ValueError: the folder holds another run, settings do not fit the images, or `start` is another network.
    """
    images = open_images(settings.data, size=settings.size)
    if settings.conditional and images.classes is None:
        raise ValueError(f"{images.name} has no classes to be told; train with conditional off.")
    classes = images.classes if settings.conditional else None
    levels = Levels(images.levels, settings.low, settings.high)
    shared = processes()
    with shared.main_process_first():  # the others find the run that the first has begun
        run = Run(folder, settings, fresh=fresh and shared.is_main_process, free=FREE)
    loss_of = objective(settings.objective)
    module = LossModule(build(settings, images.shape, len(classes) if classes else None), loss_of)
    if start is not None:
        begin_with(module.denoiser, start)
    loss = BatchLoss(images, settings, levels, loss_of, augmentations(settings.augment))
    about = {"format": FORMAT, "settings": to_plain(settings), "shape": images.shape, "classes": classes}
    about["levels"] = images.levels

    ema = settings.training.average
    widths = ema.widths if isinstance(ema, PowerFunction) else ()

    def watch(trainer: Trainer) -> None:
        averages: list[Any] = [trainer.averaged(k) for k in range(len(trainer.averages.tensors))]
        average = averages[0]
        if not trainer.main:
            return
        model = ScoreModel(average.denoiser, settings, images.shape, levels, classes, trainer.step)
        save_model(folder / "model.safetensors", model, about)
        for width, one in zip(widths, averages if widths else (), strict=True):
            keep_snapshot(folder, width, trainer.step, one)
        if rows := run.read(SERIES):
            losses(folder / "losses.png", {SERIES: rows})
        if settings.pictures:
            path = folder / "pictures" / f"{trainer.step:07d}.png"
            drawn = draw(model, settings.pictures, steps=settings.picture_steps)
            if bool(drawn.isfinite().all()):
                write_picture(path, grid_picture(drawn, 10))
            else:
                warnings.warn(f"samples at step {trainer.step} are not finite: no picture was written", stacklevel=2)

    board = folder / "tensorboard"
    train(module, loss, settings.training, run, SERIES, about=about, watch=watch, board=board, quiet=quiet)
    shared.wait_for_everyone()
    return load_model(folder)


def begin_with(denoiser: nn.Module, start: Path) -> None:
    """Give a denoiser the weights of a trained model.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no model of `train_score`, or its network is another.
    """
    former = load_model(start).denoiser.state_dict()
    own = denoiser.state_dict()
    odd = [k for k in sorted({*former, *own}) if k not in own or k not in former or own[k].shape != former[k].shape]
    if odd:
        raise ValueError(
            f"{start} has another network than is to be trained: {len(odd)} tensors differ, {odd[0]} first; "
            "take its settings of net, answer, classes and channels."
        )
    denoiser.load_state_dict(former)


@torch.no_grad()
def draw(
    model: ScoreModel, count: int, *, seed: int = 0, first: int = 0, label: int | None = None, **options: Any
) -> Tensor:
    """Return samples (count, channels, height, width) in [0, 1].

    Args:
        model: where from.
        count: how many.
        seed: names the samples.
        first: number of the first one, so that many may be drawn in parts.
        label: class of all; every class in turn by default, where the model knows classes.
        options: as in `dxdt.diffusion.sample`.
    """
    device = _device(model.denoiser)
    denoiser: Any = model.denoiser
    if label is not None:
        denoiser = model.of_class(torch.full((count,), label, device=device))
    elif model.classes is not None:
        denoiser = model.of_class((first + torch.arange(count, device=device)) % len(model.classes))
    x = sample(denoiser, (count, *model.shape), seed=seed, first=first, device=device, **options)
    return ((x - model.levels.low) / (model.levels.high - model.levels.low)).clamp(0, 1)


def save_model(path: Path, model: ScoreModel, about: dict[str, Any]) -> None:
    """Write a model for use: weights, network, process and settings, in one safetensors file."""
    denoiser: Any = model.denoiser
    save(path, denoiser, about={**about, "step": model.step})


def average_model(folder: Path, width: float, step: int | None = None) -> tuple[ScoreModel, dict[str, Any]]:
    """Return the power-function average of any width of a run that kept snapshots, and its file's header.

    Args:
        folder: of the run.
        width: relative standard deviation of the average.
        step: at which step; the last by default.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: it kept no snapshots, none as late as `step`, or no average has this width.
    """
    model = load_model(folder)
    taken = read_snapshots(folder)
    tensors = reconstruct(taken, width, step)
    with torch.no_grad():
        for name, p in model.denoiser.named_parameters():
            p.copy_(tensors[f"denoiser.{name}"])
    about = json.loads(read_safetensors(folder / "model.safetensors")[1]["dxdt"])["about"]
    last = max(s.step for s in taken) if step is None else step
    return replace(model, step=last), {**about, "width": width}


def load_model(path: Path) -> ScoreModel:
    """Read a model from its file, or from the folder of its run; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the file is broken, of another kind, or its settings do not match its weights.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"there is no model {file}; train one with dxdt train score --out {path}.")
    denoiser = load_own(file)
    about = json.loads(read_safetensors(file)[1]["dxdt"]).get("about", {})
    if about.get("format") != FORMAT:
        raise ValueError(f"{file} holds a denoiser, and nothing about its images; load it by dxdt.interop.load.")
    settings = from_plain(Score, about["settings"])
    channels, height, width = about["shape"]
    classes = None if about["classes"] is None else tuple(about["classes"])
    levels = Levels(about["levels"], settings.low, settings.high)
    denoiser = denoiser.eval().requires_grad_(False)
    return ScoreModel(denoiser, settings, (channels, height, width), levels, classes, about["step"])
