"""`dxdt evaluate`: how far samples are from real images, in a network's features."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console

from dxdt.lab.cli.parse import call
from dxdt.lab.cli.sampling import Sampling


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(evaluate, args)


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
) -> None:
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
    from dxdt.lab.cli.models import drawn, open_model
    from dxdt.lab.data.packed import read_npz
    from dxdt.lab.data.readers import open_images
    from dxdt.lab.evaluation.features import feature_net
    from dxdt.lab.evaluation.fidelity import eight_bits, feature_distance, features_of, unit_batches
    from dxdt.lab.runs.files import write_json

    net = feature_net(features)
    real = features_of(net, unit_batches(open_images(reference, "test"), reference_count, how.batch))
    if samples.endswith(".npz"):
        made = unit_batches(read_npz(Path(samples)), count, how.batch)
    else:
        made = drawn(open_model(samples, shape, low, high), count, how, quiet=quiet)
    found = feature_distance(features_of(net, (eight_bits(x) for x in made)), real, resamples=resamples)
    Console().print(f"feature distance {found}, {features} features", highlight=False)
    if out is not None:
        write_json(out, {**vars(found), "features": features, "data": reference, "of": samples})
