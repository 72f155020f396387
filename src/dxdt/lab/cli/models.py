"""What the commands on a trained model share: opening it, of whatever kind, and batches of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dxdt.diffusion import Levels
from dxdt.interop import load
from dxdt.interop.diffusers_folder import is_diffusers, sample_shape
from dxdt.lab.cli.sampling import Sampling
from dxdt.lab.cli.solvers import grid_named, solver_named
from dxdt.lab.data.folder import data_folder
from dxdt.lab.evaluation.pretrained import MNIST_DDPM_LEVELS, mnist_ddpm
from dxdt.lab.runs.bar import progress_bar
from dxdt.lab.training.score_model import ScoreModel, draw, load_model
from dxdt.lab.training.settings import Score


def open_model(
    path: str, shape: tuple[int, int, int] | None = None, low: float | None = None, high: float | None = None
) -> ScoreModel:
    """Return a model from a run, one of our files, a foreign checkpoint, or the name mnist_ddpm.

    Args:
        path: folder or file, or the name.
        shape: channels, height, width of the images, where the file does not say.
        low, high: interval of their levels, where the file does not say; -1 and 1 by default.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be read, or does not say of which shape its images are.
    """
    if path == "mnist_ddpm":
        folder = data_folder()
        if folder is None:
            raise FileNotFoundError("mnist_ddpm is read from the folder that DXDT_DATA names; set it.")
        return ScoreModel(mnist_ddpm(folder), Score(), (1, 28, 28), MNIST_DDPM_LEVELS, None, 0)
    place = Path(path)
    if (place / "config.json").exists() and not (place / "model.safetensors").exists():
        return load_model(place)  # says that nothing is trained yet
    if (place / "model.safetensors").exists():
        return load_model(place)
    denoiser = load(place)
    if shape is None and is_diffusers(place):
        shape = sample_shape(place)
    if place.suffix == ".safetensors":
        try:
            return load_model(place)
        except ValueError:
            pass  # one of our files that knows nothing about images
    if shape is None:
        raise ValueError(f"{path} does not say of which shape its images are; give --shape CHANNELS HEIGHT WIDTH.")
    levels = Levels(256, -1.0 if low is None else low, 1.0 if high is None else high)
    return ScoreModel(denoiser.eval().requires_grad_(False), Score(), shape, levels, None, 0)


def drawn(model: ScoreModel, count: int, how: Sampling, *, quiet: bool = False) -> Iterator[Tensor]:
    """Yield batches of samples (n, channels, height, width) in [0, 1]; of the classes in turn.

    Raises:
        ValueError: the solver, the grid or the class does not exist, or samples are not finite.
    """
    options: dict[str, Any] = {"steps": how.steps or None, "tau": how.tau, "t0": how.t0}
    if how.solver is not None:
        options["solver"] = solver_named(how.solver, how.order or None)
    if how.grid is not None:
        options["grid"] = grid_named(how.grid)
    bar = progress_bar(count, "sampling", "image", quiet=quiet)
    with bar:
        for first in range(0, count, how.batch):
            images = draw(model, min(how.batch, count - first), seed=how.seed, first=first, label=how.label, **options)
            if not bool(images.isfinite().all()):
                raise ValueError(
                    "samples that are not finite: the network, or the solver with these steps, does not answer on the "
                    "whole span; try --how.solver exponential, more steps, or train further. Nothing was written"
                )
            yield images
            bar.update(min(how.batch, count - first))
