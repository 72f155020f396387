"""Measures of generated images: whether they are what they should be, and new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor

from dxdt.lab.data.datasets import Images


def _rows(images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy()


@final
@dataclass(frozen=True)
class Recognition:
    """What a classifier of real images makes of a set of images.

    Attributes:
        confidence: mean of the largest class probability.
        histogram: share of each class.
        labels: (n,), the classes seen.
    """

    confidence: float
    histogram: tuple[float, ...]
    labels: Tensor

    @property
    def errors(self) -> tuple[float, ...]:
        """Standard error of each share, sqrt(p (1 - p) / n)."""
        return tuple((p * (1 - p) / len(self.labels)) ** 0.5 for p in self.histogram)


@final
class Classifier:
    """A forest of extremely random trees, trained on real images.

    Its probability is the share of trees that agree, which is small for what is no such image.
    (A calibrated support-vector machine is 94 % sure of pure noise.)

    Source: Geurts, Ernst, Wehenkel, "Extremely randomized trees" (2006).
    """

    def __init__(self, data: Images, *, trees: int = 300) -> None:
        self._model = ExtraTreesClassifier(trees, random_state=0)
        self._model.fit(_rows(data.train), data.train_labels.numpy())
        self.classes = int(data.train_labels.max()) + 1
        score = self._model.score(_rows(data.held_out), data.held_out_labels.numpy())
        self.accuracy = float(score)

    def read(self, images: Tensor) -> Recognition:
        """Return what the classifier makes of images on the scale of the training images."""
        p = np.asarray(self._model.predict_proba(_rows(images)))
        labels = p.argmax(1)
        shares = np.bincount(labels, minlength=self.classes) / len(labels)
        histogram = tuple(float(s) for s in shares)
        return Recognition(float(p.max(1).mean()), histogram, torch.from_numpy(labels))


def controls(images: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Return two sets that are like `images` but show nothing: averages of pairs, shuffled pixels.

    Args:
        images: (n, *shape), at least two.
        seed: names the shuffle, one for each image.
    """
    half = len(images) // 2
    generator = torch.Generator().manual_seed(seed)
    flat = images.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return {
        "control: two averaged": (images[:half] + images[half : 2 * half]) / 2,
        "control: shuffled": flat.gather(1, order).reshape(images.shape),
    }


@final
@dataclass(frozen=True)
class Novelty:
    """Distances to the nearest training image, of samples and of images never trained on.

    Attributes:
        samples, held_out: (n,), Euclidean distances.
        nearest: (n,), index of the training image nearest to each sample.
        ratio: median distance of samples over that of held-out images; far below 1 means copies.
        copies: share of samples nearer to a training image than any held-out image is.
    """

    samples: Tensor
    held_out: Tensor
    nearest: Tensor
    ratio: float
    copies: float


def novelty(
    samples: Float[Tensor, "n *shape"],
    train: Float[Tensor, "m *shape"],
    held_out: Float[Tensor, "k *shape"],
) -> Novelty:
    """Compare how near samples and held-out images come to the training images."""
    seen = train.flatten(1)
    near = torch.cdist(samples.flatten(1), seen).min(1)
    fair = torch.cdist(held_out.flatten(1), seen).min(1).values
    ratio = (near.values.median() / fair.median()).item()
    copies = (near.values < fair.min()).float().mean().item()
    return Novelty(near.values, fair, near.indices, ratio, copies)
