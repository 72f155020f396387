"""Architectures of the papers, by their published sizes, and small ones of the same kinds.

Every function returns an `Architecture`; `ScoreUNet` builds it. Levels with attention are given as numbers
(0 is full size): for images of 32 pixels, "attention at 16 x 16" is level 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from dxdt.nn.blocks import BlockSpec
from dxdt.nn.embeddings import FourierSpec, Labels, PositionalSpec
from dxdt.nn.pyramid import Combine, Progressive
from dxdt.nn.resample import Taps
from dxdt.nn.score_unet import Architecture, BlockResample, ConvResample

FIR: Taps = (1, 3, 3, 1)
"""The filter of NCSN++."""


def ncsnpp(
    channels: int = 3,
    *,
    width: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.1,
    progressive_input: Progressive = Progressive.RESIDUAL,
    progressive_output: Progressive = Progressive.NONE,
    combine: Combine = Combine.SUM,
    taps: Taps = FIR,
    centred: bool = False,
    labels: int = 0,
) -> Architecture:
    """NCSN++ for continuous noise levels: told sigma, it answers the score (62.76M parameters; 107.59M with 8 blocks).

    Source: Song et al., "Score-based generative modeling through SDEs" (2021), appendix H.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        block=BlockSpec(dropout=dropout),
        resample=BlockResample(taps),
        progressive_input=progressive_input,
        progressive_output=progressive_output,
        combine=combine,
        taps=taps,
        embedding=FourierSpec(),
        features=2 * width,
        embedding_width=4 * width,
        labels=Labels(labels, early=True) if labels else None,
        centred=centred,
        divide=True,
    )


def ncsnpp_1024() -> Architecture:
    """NCSN++ for images of 1024 x 1024 pixels: 16 channels at full size, one block per level, skips of the image.

    Source: Song et al. (2021), appendix H.3.
    """
    return ncsnpp(
        width=16,
        multipliers=(1, 2, 4, 8, 16, 32, 32, 32),
        blocks=1,
        attention=(6,),
        dropout=0.0,
        progressive_input=Progressive.SKIP,
        progressive_output=Progressive.SKIP,
    )


def ddpmpp(
    channels: int = 3,
    *,
    width: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.1,
    labels: int = 0,
) -> Architecture:
    """DDPM++: told 999 t, it answers the noise (61.80M parameters; 106.63M with 8 blocks).

    Source: Song et al., "Score-based generative modeling through SDEs" (2021), appendix H.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        block=BlockSpec(dropout=dropout),
        features=width,
        embedding_width=4 * width,
        labels=Labels(labels, early=True) if labels else None,
    )


def ddpm(
    channels: int = 3,
    *,
    width: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 2,
    attention: Sequence[int] = (1,),
    dropout: float = 0.1,
    centred: bool = True,
) -> Architecture:
    """The network of DDPM, as score SDE trains it in continuous time (35.22M parameters).

    Normalisations have 32 groups at any width, so give a `width` of 64 at least: groups of one channel would remove
    what the embedding adds.

    Source: Ho et al., "Denoising diffusion probabilistic models" (2020), appendix B.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        block=BlockSpec(dropout=dropout, rescale=1.0, channels_per_group=1),
        resample=ConvResample(),
        taps=None,
        features=width,
        embedding_width=4 * width,
        centred=centred,
    )


def edm_ddpmpp(
    channels: int = 3,
    *,
    width: int = 128,
    multipliers: Sequence[int] = (2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.13,
    labels: int = 0,
    augment: int = 9,
) -> Architecture:
    """DDPM++ as retrained by EDM on CIFAR-10, told ln(sigma) / 4 (about 55.7M parameters).

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), appendix F.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        block=BlockSpec(dropout=dropout),
        embedding=PositionalSpec(power=True),
        features=width,
        embedding_width=4 * width,
        labels=Labels(labels, early=True) if labels else None,
        augment=augment,
    )


def edm_ncsnpp(
    channels: int = 3,
    *,
    width: int = 128,
    multipliers: Sequence[int] = (2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.13,
    labels: int = 0,
    augment: int = 9,
) -> Architecture:
    """NCSN++ as retrained by EDM on CIFAR-10, told ln(sigma) / 4 (about 56.4M parameters).

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), appendix F.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        block=BlockSpec(dropout=dropout),
        resample=BlockResample(FIR),
        progressive_input=Progressive.RESIDUAL,
        taps=FIR,
        embedding=FourierSpec(log=False),
        features=2 * width,
        embedding_width=4 * width,
        labels=Labels(labels, early=True) if labels else None,
        augment=augment,
    )


def adm(
    channels: int = 3,
    *,
    width: int = 192,
    multipliers: Sequence[int] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: Sequence[int] = (1, 2, 3),
    dropout: float = 0.1,
    labels: int = 1000,
    augment: int = 0,
    out_channels: int | None = None,
) -> Architecture:
    """The network of ADM for ImageNet at 64 x 64 (295.9M parameters), heads of 64 channels.

    Args:
        out_channels: twice `channels` where the network answers variances too.

    Source: Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis" (2021), section 3.
    """
    return Architecture(
        in_channels=channels,
        out_channels=channels if out_channels is None else out_channels,
        widths=tuple(width * m for m in multipliers),
        stem=width * multipliers[0],
        blocks=blocks,
        attention_down=tuple(attention),
        attention_up=tuple(attention),
        attend_once=False,
        block=BlockSpec(
            dropout=dropout, eps=1e-5, scale_shift=True, rescale=1.0, project=False, heads=None, head_width=64
        ),
        resample=BlockResample((1, 1)),
        embedding=PositionalSpec(shift=0.0, cosine_first=True, power=True),
        features=width,
        embedding_width=4 * width,
        labels=Labels(labels) if labels else None,
        augment=augment,
    )


__all__ = ["FIR", "adm", "ddpm", "ddpmpp", "edm_ddpmpp", "edm_ncsnpp", "ncsnpp", "ncsnpp_1024"]
