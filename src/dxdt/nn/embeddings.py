"""What a score network is told: a noise level or time, and perhaps a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.layers import Fourier, scaled


@final
class Positional(nn.Module):
    """Embed a number t as [sin(w_k t), cos(w_k t)], w_k = period^(-k / (half - shift)).

    Args:
        features: length of the embedding, even and at least 4.
        period: ratio of the frequencies' ends.
        shift: 1 makes the last frequency 1 / period exactly (DDPM++), 0 stops before it (ADM).
        cosine_first: put the cosines before the sines.
        power: round w_k as a power (EDM) instead of an exponential (DDPM); at t = 999 it shows in the fifth digit.

    Raises:
        ValueError: `features` is odd or below 4.

    Source: Vaswani et al., "Attention is all you need" (2017), section 3.5.
    """

    frequencies: Tensor

    def __init__(
        self,
        features: int,
        *,
        period: float = 10_000.0,
        shift: float = 1.0,
        cosine_first: bool = False,
        power: bool = False,
    ) -> None:
        super().__init__()
        if features < 4 or features % 2:
            raise ValueError(
                f"Positional: features={features} cannot be split into sines and cosines; "
                "give an even number of at least 4."
            )
        half = features // 2
        self.cosine_first = cosine_first
        # In float32, as published networks form them: at t = 999 a last bit moves the angle by 1e-4.
        k = torch.arange(half, dtype=torch.float32)
        w = (1 / period) ** (k / (half - shift)) if power else torch.exp(k * -(math.log(period) / (half - shift)))
        self.register_buffer("frequencies", w, persistent=False)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the embedding of every entry of `t` in t's dtype."""
        angle = t.unsqueeze(-1) * self.frequencies.to(t.dtype)
        waves = (angle.cos(), angle.sin()) if self.cosine_first else (angle.sin(), angle.cos())
        return torch.cat(waves, dim=-1)


@final
class LogFourier(nn.Module):
    """`Fourier` of ln t, for noise levels that span decades.

    Raises:
        ValueError: `features` is odd or not positive.

    Source: Song et al., "Score-based generative modeling through SDEs" (2021), appendix C.
    """

    def __init__(self, features: int, *, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        self.fourier = Fourier(features, scale=scale, seed=seed)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the embedding of every entry of `t` > 0 in t's dtype."""
        # In this order of roundings, as published networks form them: angles reach a thousand.
        angle = t.log().unsqueeze(-1) * self.fourier.frequencies.to(t.dtype) * 2 * math.pi
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


@final
@dataclass(frozen=True)
class PositionalSpec:
    """How to make a `Positional` embedding of the given length."""

    period: float = 10_000.0
    shift: float = 1.0
    cosine_first: bool = False
    power: bool = False

    def make(self, features: int) -> nn.Module:
        """Return the module."""
        return Positional(
            features, period=self.period, shift=self.shift, cosine_first=self.cosine_first, power=self.power
        )


@final
@dataclass(frozen=True)
class FourierSpec:
    """How to make a Fourier embedding of the given length; `log` embeds ln t."""

    scale: float = 16.0
    log: bool = True

    def make(self, features: int) -> nn.Module:
        """Return the module."""
        return LogFourier(features, scale=self.scale) if self.log else Fourier(features, scale=self.scale)


@final
class Learned(nn.Module):
    """Embed a level 0, 1, ..., count - 1 by a row of its own; a number between levels as the nearest.

    Args:
        features: length of the embedding.
        count: number of levels.
    """

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(count, features)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the rows of the levels `t`."""
        return self.rows(t.round().long()).to(t.dtype)


@final
@dataclass(frozen=True)
class LearnedSpec:
    """How to make a `Learned` embedding of the given length, for `count` levels."""

    count: int

    def make(self, features: int) -> nn.Module:
        """Return the module."""
        return Learned(features, self.count)


@final
@dataclass(frozen=True)
class Labels:
    """How classes enter a network.

    Attributes:
        count: number of classes.
        early: add them to the embedding of time before its two layers, as sqrt(count) times a one-hot row with
            a bias (DDPM++ and NCSN++ of EDM); otherwise after them, without a bias (ADM).
        required: refuse to answer without a class, as networks must that never saw an image without one.
    """

    count: int
    early: bool = False
    required: bool = False


@final
class Conditioning(nn.Module):
    """Turn a number and perhaps a class per image into the vector that residual blocks read.

        e = silu(W1 silu(W0 (embed(t) + early classes + augmentation)) + late classes)

    Args:
        embedding: how the number is embedded.
        features: length of that embedding.
        width: length of the answer.
        labels: how classes enter, or None.
        augment: length of a vector that describes augmentations in training; 0 without.
    """

    def __init__(
        self,
        embedding: PositionalSpec | FourierSpec | LearnedSpec,
        features: int,
        width: int,
        *,
        labels: Labels | None = None,
        augment: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = embedding.make(features)
        self.layer0 = scaled(nn.Linear(features, width))
        self.layer1 = scaled(nn.Linear(width, width))
        self.spec = labels
        self.label = None
        if labels is not None:
            self.label = scaled(nn.Linear(labels.count, features if labels.early else width, bias=labels.early))
        self.augment = scaled(nn.Linear(augment, features, bias=False)) if augment else None

    def forward(self, t: Float[Tensor, " batch"], labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the vectors (batch, width).

        Args:
            t: what the network is told about the noise.
            labels: classes (batch,), or rows of weights (batch, count); None for no class.
            augment: (batch, augment), or None for none.

        Raises:
            ValueError: classes are given to a network without them, are not given where they are required, or rows
                have the wrong length.
        """
        e = self.embedding(t)
        late = 0.0
        if self.spec is not None and self.label is not None:
            if labels is None and self.spec.required:
                raise ValueError(
                    f"score network: it was trained with classes only, and none is given; pass labels=..., "
                    f"numbers from 0 to {self.spec.count - 1}."
                )
            rows = _rows(labels, t, self.spec.count)
            if self.spec.early:
                e = e + self.label(rows * math.sqrt(self.spec.count))
            else:
                late = self.label(rows)
        elif labels is not None:
            raise ValueError("score network: it was made without classes; leave the labels out.")
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment)
        return F.silu(self.layer1(F.silu(self.layer0(e))) + late)


def _rows(labels: Tensor | None, t: Tensor, count: int) -> Tensor:
    if labels is None:
        return t.new_zeros(t.shape[0], count)
    if labels.ndim < 2:
        return F.one_hot(labels.long(), count).to(t).expand(t.shape[0], count)
    if labels.shape[-1] != count:
        raise ValueError(
            f"score network: rows of {labels.shape[-1]} class weights do not fit its {count} classes; "
            f"pass (batch, {count}), or class numbers (batch,)."
        )
    return labels.to(t)
