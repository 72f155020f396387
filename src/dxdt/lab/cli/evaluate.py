"""`dxdt evaluate`: how far samples are from real images, in a network's features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor

from dxdt.lab.cli.models import Sampling, drawn, open_model
from dxdt.lab.feature_nets import feature_net
from dxdt.lab.fidelity import Distance, feature_distance, features_of
from dxdt.lab.files import write_json
from dxdt.lab.images import ImageSet
from dxdt.lab.readers import open_images, read_npz


def unit_batches(images: ImageSet, count: int, batch: int) -> Iterator[Tensor]:
    """Yield the first `count` images in batches on the scale [0, 1]."""
    last = min(count, len(images))
    for first in range(0, last, batch):
        levels, _ = images.read(torch.arange(first, min(first + batch, last)))
        yield levels.float() / (images.levels - 1)


def evaluate(
    samples: tyro.conf.Positional[str],
    reference: str,
    features: str,
    count: int = 2000,
    reference_count: int = 10_000,
    how: Sampling = Sampling(),  # noqa: B008
    resamples: int = 20,
    out: Path | None = None,
    shape: tuple[int, int, int] | None = None,
    low: float | None = None,
    high: float | None = None,
    quiet: bool = False,
) -> Distance:
    """Measure the Frechet distance of samples from real images in the features of a network.

    Args:
        samples: a model (as for dxdt sample), or an .npz of images.
        reference: real images, as dxdt train score names them; their test part counts.
        features: mnist_cnn or resnet20 (of DXDT_DATA), a TorchScript file, or module:function.
        count: how many samples.
        reference_count: how many real images at most.
        how: solver, steps, seed, class.
        resamples: of the bootstrap.
        out: a JSON file of the numbers.
        shape: channels, height, width of the images, where the checkpoint does not say.
        low: least value of an image, where the checkpoint does not say.
        high: largest value.
        quiet: no progress bar.
    """
    net = feature_net(features)
    real = features_of(net, unit_batches(open_images(reference, "test"), reference_count, how.batch))
    if samples.endswith(".npz"):
        made = unit_batches(read_npz(Path(samples)), count, how.batch)
    else:
        made = drawn(open_model(samples, shape, low, high), count, how, quiet=quiet)
    found = feature_distance(features_of(net, (_levels(x) for x in made)), real, resamples=resamples)
    Console().print(f"feature distance {found}, {features} features", highlight=False)
    if out is not None:
        write_json(out, {**vars(found), "features": features, "data": reference, "of": samples})
    return found


def _levels(images: Tensor) -> Tensor:
    """Round to 8 bits, as files hold images."""
    return (images * 255).round() / 255
