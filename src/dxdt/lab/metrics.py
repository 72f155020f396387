"""Measures of generated images: whether they are what they should be, and new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC
from torch import Tensor

from dxdt.lab.data import Images


def _rows(images: Tensor) -> np.ndarray:
    return images.flatten(1).numpy()


@final
@dataclass(frozen=True)
class Recognition:
    """What a classifier of real images makes of a set of images.

    Attributes:
        confidence: mean of the largest class probability.
        sure: share of images with a class probability above 0.9.
        histogram: share of each class.
        labels: (n,), the classes seen.
    """

    confidence: float
    sure: float
    histogram: tuple[float, ...]
    labels: Tensor


@final
class Classifier:
    """A support-vector classifier with calibrated probabilities, trained on real images."""

    def __init__(self, data: Images) -> None:
        # scikit-learn's annotations of numbers and flags know their special strings only.
        machine = SVC(gamma=0.001, C=10)  # pyright: ignore[reportArgumentType]
        self._model = CalibratedClassifierCV(
            machine,
            ensemble=False,  # pyright: ignore[reportArgumentType]
        )
        self._model.fit(_rows(data.train), data.train_labels.numpy())
        self.classes = int(data.train_labels.max()) + 1
        score = self._model.score(_rows(data.held_out), data.held_out_labels.numpy())
        self.accuracy = float(score)

    def read(self, images: Tensor) -> Recognition:
        """Return what the classifier makes of images on the scale of the training images."""
        p = self._model.predict_proba(_rows(images))
        labels = p.argmax(1)
        shares = np.bincount(labels, minlength=self.classes) / len(labels)
        top = p.max(1)
        return Recognition(
            float(top.mean()),
            float((top > 0.9).mean()),
            tuple(float(s) for s in shares),
            torch.from_numpy(labels),
        )


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
