"""What a score model is made of, as settings: each has a name and its numbers, and builds the object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from dxdt import diffusion as d
from dxdt.lab import images
from dxdt.nn import UNet


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

    def build(self, shape: tuple[int, int, int], classes: int | None) -> nn.Module:
        """Return the network for images of a shape, told one of `classes` where there are some."""
        return UNet(
            shape[0],
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            heads=self.heads,
            dropout=self.dropout,
            classes=classes,
            patch=self.patch,
        )


@final
@dataclass(frozen=True)
class Vp:
    """Variance preserving, linear schedule."""

    low: float = 0.1
    high: float = 20.0

    def build(self) -> d.Process:
        """Return the process."""
        return d.VP(d.Linear(self.low, self.high))


@final
@dataclass(frozen=True)
class CosineVp:
    """Variance preserving, cosine schedule."""

    def build(self) -> d.Process:
        """Return the process."""
        return d.VP(d.Cosine())


@final
@dataclass(frozen=True)
class SubVp:
    """Below the variance-preserving one."""

    low: float = 0.1
    high: float = 20.0

    def build(self) -> d.Process:
        """Return the process."""
        return d.SubVP(d.Linear(self.low, self.high))


@final
@dataclass(frozen=True)
class Ve:
    """Variance exploding, geometric."""

    low: float = 0.01
    high: float = 50.0

    def build(self) -> d.Process:
        """Return the process."""
        return d.VE(self.low, self.high)


@final
@dataclass(frozen=True)
class Edm:
    """Noise of standard deviation t."""

    def build(self) -> d.Process:
        """Return the process."""
        return d.EDM()


@final
@dataclass(frozen=True)
class Flow:
    """Straight paths between data and noise."""

    def build(self) -> d.Process:
        """Return the process."""
        return d.RectifiedFlow()


ProcessChoice: TypeAlias = Vp | CosineVp | SubVp | Ve | Edm | Flow


@final
@dataclass(frozen=True)
class Noise:
    """The network answers the noise."""

    def wrap(self, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
        """Return the denoiser."""
        return d.Denoiser(net, process, d.Noise())


@final
@dataclass(frozen=True)
class Data:
    """The network answers the data."""

    def wrap(self, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
        """Return the denoiser."""
        return d.Denoiser(net, process, d.Data())


@final
@dataclass(frozen=True)
class Velocity:
    """The network answers dx/dt."""

    def wrap(self, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
        """Return the denoiser."""
        return d.Denoiser(net, process, d.Velocity())


@final
@dataclass(frozen=True)
class Angular:
    """The network answers a eps - c x_0."""

    def wrap(self, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
        """Return the denoiser."""
        return d.Denoiser(net, process, d.AngularVelocity())


@final
@dataclass(frozen=True)
class Preconditioned:
    """The network is preconditioned as in EDM, for data of a standard deviation."""

    std: float = 0.5

    def wrap(self, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
        """Return the denoiser."""
        return d.Preconditioned(net, process, d.EDMPreconditioning(self.std))


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

    def build(self) -> d.Objective:
        """Return the objective."""
        if self.uniform >= 1:
            return d.DenoisingScoreMatching(d.UniformTime(self.t0))
        law = d.Mixed(d.UniformTime(self.t0), d.UniformLogSNR(self.t0), self.uniform)
        return d.DenoisingScoreMatching(law)


@final
@dataclass(frozen=True)
class MaximumLikelihood:
    """The bound on the likelihood, with importance sampling of times."""

    t0: float = 1e-5

    def build(self) -> d.Objective:
        """Return the objective."""
        return d.maximum_likelihood(self.t0)


@final
@dataclass(frozen=True)
class EdmLoss:
    """The error of the data under log-normal noise levels."""

    mean: float = -1.2
    std: float = 1.2
    data_std: float = 0.5

    def build(self) -> d.Objective:
        """Return the objective."""
        return d.EDMLoss(d.LogNormalScale(self.mean, self.std), self.data_std)


@final
@dataclass(frozen=True)
class Smld:
    """The loss of the discrete VE model."""

    count: int = 1000

    def build(self) -> d.Objective:
        """Return the objective."""
        return d.smld(self.count)


@final
@dataclass(frozen=True)
class Ddpm:
    """The loss of the discrete VP model."""

    count: int = 1000

    def build(self) -> d.Objective:
        """Return the objective."""
        return d.ddpm(self.count)


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

    def build(self) -> tuple[images.Augmentation, ...]:
        """Return the augmentations, in order."""
        found: list[Any] = []
        if self.flip > 0:
            found.append(images.Flip(self.flip))
        if self.shift > 0:
            found.append(images.Shift(self.shift))
        return tuple(found)
