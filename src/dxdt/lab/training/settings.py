"""Settings of training, as plain frozen dataclasses: what files, flags and runs hold.

Nothing of torch is imported here, so that a command can show its settings at once; `dxdt.lab.training.build`
makes the objects that they describe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from dxdt.lab.training.averaging import Choice, WarmUp


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch: samples in a step, over all processes.
        accumulate: parts into which each process cuts its share of the batch.
        lr: peak learning rate.
        warmup: steps over which it rises from zero.
        floor: share of the peak to which it falls, as a cosine, until the last step; 1 keeps it.
        average: moving average of the weights.
        clip: largest norm of the gradient.
        precision: of the network's operations; weights stay in float32.
        compile: compile the model.
        save_every: steps between checkpoints.
        log_every: steps between lines of the metrics.
        seed: names every random choice.
    """

    steps: int = 1000
    batch: int = 128
    accumulate: int = 1
    lr: float = 2e-3
    warmup: int = 100
    floor: float = 0.01
    average: Choice = WarmUp(0.998)  # noqa: RUF009
    clip: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    save_every: int = 250
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        least = min(self.steps, self.batch, self.accumulate, self.save_every, self.log_every)
        if least < 1 or self.lr <= 0:
            raise ValueError(
                f"Training: {self.steps} steps of {self.batch} in {self.accumulate} parts at rate {self.lr}, saved "
                f"every {self.save_every}, logged every {self.log_every}, do nothing; give positive numbers."
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * rise * (self.floor + (1 - self.floor) * fall)


@final
@dataclass(frozen=True)
class SmallUNet:
    """The U-Net of `dxdt.nn.UNet`.

    Attributes:
        channels, multipliers, blocks, attention, heads, dropout, patch: as there.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    heads: int = 2
    dropout: float = 0.0
    patch: int = 1


@final
@dataclass(frozen=True)
class Vp:
    """Variance preserving, linear schedule."""

    low: float = 0.1
    high: float = 20.0


@final
@dataclass(frozen=True)
class CosineVp:
    """Variance preserving, cosine schedule."""


@final
@dataclass(frozen=True)
class SubVp:
    """Below the variance-preserving one."""

    low: float = 0.1
    high: float = 20.0


@final
@dataclass(frozen=True)
class Ve:
    """Variance exploding, geometric."""

    low: float = 0.01
    high: float = 50.0


@final
@dataclass(frozen=True)
class Edm:
    """Noise of standard deviation t."""


@final
@dataclass(frozen=True)
class Flow:
    """Straight paths between data and noise."""


ProcessChoice: TypeAlias = Vp | CosineVp | SubVp | Ve | Edm | Flow


@final
@dataclass(frozen=True)
class Noise:
    """The network answers the noise."""


@final
@dataclass(frozen=True)
class Data:
    """The network answers the data."""


@final
@dataclass(frozen=True)
class Velocity:
    """The network answers dx/dt."""


@final
@dataclass(frozen=True)
class Angular:
    """The network answers a eps - c x_0."""


@final
@dataclass(frozen=True)
class Preconditioned:
    """The network is preconditioned as in EDM, for data of a standard deviation."""

    std: float = 0.5


AnswerChoice: TypeAlias = Noise | Data | Velocity | Angular | Preconditioned


@final
@dataclass(frozen=True)
class Matching:
    """The error of the noise, some times uniform and the rest uniform in log(a / c).

    Attributes:
        t0: first time.
        uniform: share of uniform times.
    """

    t0: float = 1e-5
    uniform: float = 1.0


@final
@dataclass(frozen=True)
class MaximumLikelihood:
    """The bound on the likelihood, with importance sampling of times."""

    t0: float = 1e-5


@final
@dataclass(frozen=True)
class EdmLoss:
    """The error of the data under log-normal noise levels."""

    mean: float = -1.2
    std: float = 1.2
    data_std: float = 0.5


@final
@dataclass(frozen=True)
class Smld:
    """The loss of the discrete VE model."""

    count: int = 1000


@final
@dataclass(frozen=True)
class Ddpm:
    """The loss of the discrete VP model."""

    count: int = 1000


ObjectiveChoice: TypeAlias = Matching | MaximumLikelihood | EdmLoss | Smld | Ddpm


@final
@dataclass(frozen=True)
class Augment:
    """Random changes of the training images.

    Attributes:
        flip: probability of mirroring.
        shift: pixels by which they may move.
    """

    flip: float = 0.0
    shift: int = 0


@final
@dataclass(frozen=True)
class Score:
    """Everything that training a score model can be told.

    Attributes:
        data: images, as `open_images` names them.
        size: side of the square to which the images of a folder are cropped and resized; as they are by default.
        low, high: the interval over which their levels are laid.
        dequantise: spread each level evenly over its width, as likelihoods need it.
        conditional: tell the network the class.
        drop: share of the training images whose class is not told.
        net: the network.
        process: from data to noise.
        answer: what the network answers.
        objective: what is made small.
        augment: random changes of images.
        training: how.
        pictures: samples drawn at each checkpoint; 0 for none.
        picture_steps: steps of the solver that draws them.
    """

    data: str = "digits"
    size: int | None = None
    low: float = -1.0
    high: float = 1.0
    dequantise: bool = True
    conditional: bool = False
    drop: float = 0.1
    net: SmallUNet = SmallUNet()  # noqa: RUF009
    process: ProcessChoice = Vp()  # noqa: RUF009
    answer: AnswerChoice = Noise()  # noqa: RUF009
    objective: ObjectiveChoice = Matching()  # noqa: RUF009
    augment: Augment = Augment()  # noqa: RUF009
    training: Training = field(default_factory=Training)
    pictures: int = 30
    picture_steps: int = 40
