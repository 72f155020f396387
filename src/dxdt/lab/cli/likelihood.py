"""`dxdt likelihood`: bits per dimension of held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from dxdt.lab.cli.parse import call


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(likelihood, args)


def likelihood(
    checkpoint: tyro.conf.Positional[str],
    data: str | None = None,
    count: int = 200,
    repeats: int = 1,
    probes: int = 1,
    tol: float = 1e-4,
    t0: float = 1e-5,
    batch: int = 100,
    seed: int = 0,
    out: Path | None = None,
    shape: tuple[int, int, int] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Measure bits per dimension along the probability flow, with a standard error.

    Args:
        checkpoint: as for dxdt sample.
        data: images, as dxdt train score names them; those of the training by default. The test part counts.
        count: how many of them, from the first.
        repeats: dequantisations of every image.
        probes: random directions of the divergence; 0 for the exact one.
        tol: relative and absolute tolerance of the solve.
        t0: where the flow starts.
        batch: images at a time.
        seed: names dequantisation and probes.
        out: a JSON file of the numbers.
        shape: channels, height, width of the images, where the checkpoint does not say.
        low: least value of an image, where the checkpoint does not say.
        high: largest value.
    """
    import torch

    from dxdt.diffusion import bits_per_dim
    from dxdt.lab.cli.models import open_model
    from dxdt.lab.data.readers import open_images
    from dxdt.lab.runs.files import write_json
    from dxdt.ops.autodiff import Exact, Hutchinson

    model = open_model(checkpoint, shape, low, high)
    if data is None and model.step == 0:
        raise ValueError(f"{checkpoint} does not say which images it was trained on; give --data.")
    images = open_images(data or model.settings.data, "test", size=model.settings.size)
    if images.shape != model.shape:
        raise ValueError(
            f"{images.name} has images of shape {images.shape}, and the model was trained on {model.shape}; "
            "choose other images."
        )
    levels, _ = images.read(torch.arange(min(count, len(images))))
    denoiser: Any = model.denoiser
    found = bits_per_dim(
        denoiser,
        levels,
        levels=model.levels,
        repeats=repeats,
        batch=batch,
        seed=seed,
        divergence=Hutchinson(probes, seed=seed) if probes else Exact(),
        rtol=tol,
        atol=tol,
        t0=t0,
    )
    Console().print(f"{found} over {len(levels)} images of {images.name}", highlight=False)
    if out is not None:
        values = {"mean": found.mean, "standard_error": found.standard_error, "images": len(levels)}
        write_json(out, {**values, "data": images.name, "evaluations": found.evaluations, "checkpoint": checkpoint})
