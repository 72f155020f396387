"""`dxdt sample`: pictures and arrays of samples."""

from __future__ import annotations

import io
from pathlib import Path

import tyro
from rich.console import Console

from dxdt.lab.cli.parse import call
from dxdt.lab.cli.sampling import Sampling


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(sample, args)


def sample(
    checkpoint: tyro.conf.Positional[str],
    out: Path = Path("samples"),
    count: int = 100,
    columns: int = 10,
    how: Sampling = Sampling(),  # noqa: B008
    shape: tuple[int, int, int] | None = None,
    low: float | None = None,
    high: float | None = None,
    quiet: bool = False,
) -> None:
    """Draw samples: OUT.png with a grid, OUT.npz with images (0 to 255) and labels.

    Args:
        checkpoint: folder of a run, one of our files, a checkpoint of score SDE, EDM or diffusers, or
            mnist_ddpm.
        out: of both files, without ending.
        count: how many samples.
        columns: of the grid.
        how: solver, steps, seed, class.
        shape: channels, height, width of the images, where the checkpoint does not say.
        low: least value of an image, where the checkpoint does not say.
        high: largest value.
        quiet: no progress bar.
    """
    import numpy as np
    import torch

    from dxdt.lab.cli.models import drawn, open_model
    from dxdt.lab.data.images import grid_picture
    from dxdt.lab.runs.files import write_atomic, write_picture

    model = open_model(checkpoint, shape, low, high)
    images = torch.cat(list(drawn(model, count, how, quiet=quiet)))
    content = io.BytesIO()
    arrays = {"images": (images * 255).round().to(torch.uint8).cpu().numpy()}
    if model.classes is not None:
        place = torch.arange(count)
        label = place % len(model.classes) if how.label is None else torch.full((count,), how.label)
        arrays["labels"] = label.numpy()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomic(out.with_name(f"{out.name}.npz"), content.getvalue())
    picture = out.with_name(f"{out.name}.png")
    write_picture(picture, grid_picture(images, columns))
    Console().print(f"open [bold]{picture}[/bold]", soft_wrap=True)
