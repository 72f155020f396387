"""Data sets: what comes inside packages, and what a folder named by DXDT_DATA holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from sklearn.datasets import load_digits
from torch import Tensor

from dxdt.diffusion import Levels

DIGIT_LEVELS = Levels(count=17, low=-1.0, high=1.0)
"""The grey levels 0 to 16 of scikit-learn's digits, laid over [-1, 1]."""


@final
@dataclass(frozen=True)
class Images:
    """Images as integer levels, with labels, split for training and holding out.

    Attributes:
        train, held_out: (n, channels, height, width), float32, whole numbers.
        train_labels, held_out_labels: (n,).
        levels: how the numbers lie in the interval that models see.
    """

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    levels: Levels


@final
@dataclass(frozen=True)
class Trajectory:
    """Measurements of one trajectory at irregular times.

    Attributes:
        ts: (n,), float64, increasing.
        ys: (n, features), float32.
        names: of the features.
        trained: how many of the measurements, from the first, a model may see.
        truth: times (m,) and noiseless values (m, features), where they are known.
    """

    ts: Float[Tensor, " n"]
    ys: Float[Tensor, "n features"]
    names: tuple[str, ...]
    trained: int
    truth: tuple[Tensor, Tensor] | None = None


def digits(*, held_out: int = 360, seed: int = 0) -> Images:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 17 grey levels.

    Args:
        held_out: how many are kept from training.
        seed: names the split.

    Raises:
        ValueError: `held_out` leaves nothing to train on, or nothing to measure on.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI (1998).
    """
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)  # pyright: ignore
    labels = torch.tensor(bunch.target)  # pyright: ignore
    n = len(images)
    if not 0 < held_out < n:
        raise ValueError(f"digits: held_out={held_out} of {n} leaves one part empty; choose less.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    seen, kept = order[held_out:], order[:held_out]
    return Images(images[seen], labels[seen], images[kept], labels[kept], DIGIT_LEVELS)


def measured_pendulum(folder: Path, *, trained: float = 0.6) -> Trajectory:
    """Return the measured angle and angular velocity of a real pendulum, 556 readings.

    Args:
        folder: laid out as dynamics/schmidt_lipson/real_pend_h_1.txt.
        trained: share of the readings that a model may see.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file does not hold four columns of numbers.

    Source: Schmidt and Lipson, "Distilling free-form natural laws from experimental data" (2009).
    """
    path = folder / "dynamics" / "schmidt_lipson" / "real_pend_h_1.txt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; let DXDT_DATA name a folder that holds dynamics/schmidt_lipson.")
    table = np.loadtxt(path, comments="%")
    if table.ndim != 2 or table.shape[1] != 4:
        raise ValueError(
            f"{path} has shape {table.shape}, not rows of trial, time, angle, velocity; restore the original file."
        )
    ts = torch.tensor(table[:, 1] - table[0, 1])
    ys = torch.tensor(table[:, 2:], dtype=torch.float32)
    return Trajectory(ts, ys, ("angle", "angular velocity"), int(trained * len(ts)))
