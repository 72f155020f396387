"""How far two sets of images are apart in a network's features.

    d^2 = |m - n|^2 + tr(C + D - 2 (C^(1/2) D C^(1/2))^(1/2)),    m, C and n, D the moments of each

The trace of the root is the sum of the roots of the eigenvalues of the symmetric C^(1/2) D C^(1/2):
real whatever the rank. The value depends on the number of images, so numbers of images stand beside it.

Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
equilibrium" (2017), equation 6, there with Inception features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.lab.data.images import ImageSet


@final
@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features; those of parts of a set merge into those of the whole.

    Attributes:
        count: of images.
        mean: (d,), float64.
        scatter: (d, d), the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @staticmethod
    def of(features: Float[Tensor, "n d"]) -> Moments:
        """Return the moments of features.

        Raises:
            ValueError: there are none, or they are not finite.
        """
        x = features.double()
        if x.ndim != 2 or len(x) == 0 or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"features of shape {tuple(x.shape)} are no finite table (images, features) with a row; "
                "look at the images or the network."
            )
        mean = x.mean(0)
        d = x - mean
        return Moments(len(x), mean, d.T @ d)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together."""
        n = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + step.outer(step) * (self.count * other.count / n)
        return Moments(n, self.mean + step * (other.count / n), scatter)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance.

        Raises:
            ValueError: there is one image only.
        """
        if self.count < 2:
            raise ValueError("one image has no covariance; give at least two.")
        return self.scatter / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance d^2 of the normal laws with these moments.

    Raises:
        ValueError: the features have different lengths, or there is one image only.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of lengths {len(a.mean)} and {len(b.mean)} cannot be compared; use one network for both sets."
        )
    c, d = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    return ((a.mean - b.mean).square().sum() + c.trace() + d.trace() - 2 * inner).item()


@final
@dataclass(frozen=True)
class Distance:
    """A distance with its uncertainty.

    Attributes:
        value: d^2.
        standard_error: from resampled sets, of which both have the bias of the value itself.
        samples, reference: how many images.
    """

    value: float
    standard_error: float
    samples: int
    reference: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f} ({self.samples} against {self.reference} images)"


def feature_distance(
    samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, resamples: int = 20, seed: int = 0
) -> Distance:
    """Return the distance of two sets of features, with a bootstrap standard error.

    Args:
        samples, reference: features of images.
        resamples: how often both sets are drawn anew, with replacement; below 2 there is no error.
        seed: names the resamples.
    """
    value = frechet(Moments.of(samples), Moments.of(reference))
    generator = torch.Generator().manual_seed(seed)

    def again(x: Tensor) -> Moments:
        return Moments.of(x[torch.randint(len(x), (len(x),), generator=generator)])

    drawn = [frechet(again(samples), again(reference)) for _ in range(resamples)]
    error = torch.tensor(drawn, dtype=torch.float64).std().item() if resamples > 1 else math.nan
    return Distance(value, error, len(samples), len(reference))


@torch.no_grad()
def features_of(net: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Float[Tensor, "n d"]:
    """Return the features of images in [0, 1] that come in batches.

    Raises:
        ValueError: the network does not answer with one row for each image.
    """
    rows: list[Tensor] = []
    for images in batches:
        answer = net(images)
        if not isinstance(answer, Tensor) or answer.shape[:1] != images.shape[:1]:
            raise ValueError(f"the feature network answered {type(answer).__name__}, not a row for each image.")
        rows.append(answer.flatten(1).double().cpu())
    return torch.cat(rows)


def unit_batches(images: ImageSet, count: int, batch: int) -> Iterator[Tensor]:
    """Yield the first `count` images in batches on the scale [0, 1]."""
    last = min(count, len(images))
    for first in range(0, last, batch):
        levels, _ = images.read(torch.arange(first, min(first + batch, last)))
        yield levels.float() / (images.levels - 1)


def eight_bits(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 8 bits, as files hold them."""
    return (images * 255).round() / 255
