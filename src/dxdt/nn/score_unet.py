"""One U-Net for the published score networks: NCSN++, DDPM++, DDPM, ADM and EDM's versions of them.

An `Architecture` is plain, frozen data that says everything about a network but its weights, so it can be
stored with them; `ScoreUNet(architecture)` builds it. `dxdt.nn.published` has those of the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn.blocks import BlockSpec, Head, ResBlock, Resized, Stage, conv, joined_channels
from dxdt.nn.embeddings import Conditioning, FourierSpec, Labels, LearnedSpec, PositionalSpec
from dxdt.nn.pyramid import Combine, InputResidual, InputSkip, OutputResidual, OutputSkip, Progressive
from dxdt.nn.resample import Downsample, NearestConv, StridedConv, Taps, Upsample


@final
@dataclass(frozen=True)
class BlockResample:
    """Sizes change inside a residual block, by a filter with these taps."""

    taps: Taps = (1, 1)

    def down(self, n: int, embedding: int, spec: BlockSpec) -> nn.Module:
        """Return a module that halves the size of images with `n` channels."""
        return ResBlock(n, n, embedding=embedding, spec=spec, resample=Downsample(self.taps))

    def up(self, n: int, embedding: int, spec: BlockSpec) -> nn.Module:
        """Return a module that doubles the size of images with `n` channels."""
        return ResBlock(n, n, embedding=embedding, spec=spec, resample=Upsample(self.taps))


@final
@dataclass(frozen=True)
class ConvResample:
    """Sizes change by a strided convolution, and by nearest-neighbour growth with a convolution.

    Attributes:
        centred: pad the strided convolution on all sides, instead of right and below.
    """

    centred: bool = False

    def down(self, n: int, embedding: int, spec: BlockSpec) -> nn.Module:
        """Return a module that halves the size of images with `n` channels."""
        del embedding, spec
        return Resized(StridedConv(n, n, centred=self.centred))

    def up(self, n: int, embedding: int, spec: BlockSpec) -> nn.Module:
        """Return a module that doubles the size of images with `n` channels."""
        del embedding, spec
        return Resized(NearestConv(n, n))


@final
@dataclass(frozen=True)
class Architecture:
    """All choices of a `ScoreUNet`.

    Attributes:
        in_channels, out_channels: of the images.
        widths: channels of each level; every level but the first has half the size of the one before.
        stem: channels after the first convolution.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention_down, attention_up: levels (0 is full size) with self-attention.
        attend_once: on the way up, attention follows the last block of a level only.
        middle_attention: whether the middle has attention.
        block: what the residual and attention blocks share.
        middle: the same for the middle, where it differs.
        resample: how sizes change.
        progressive_input, progressive_output, combine: the image beside the features.
        taps: filter of that image; None for mean, nearest neighbour and plain strided convolutions.
        embedding, features, embedding_width: how the noise level enters.
        labels: how classes enter, or None.
        augment: length of the vector that describes augmentations in training, or 0.
        centred: images are in [-1, 1]; otherwise in [0, 1], and the network centres them.
        divide: the answer is divided by the noise level.

    Raises:
        ValueError: sizes leave nothing to compute, or a level with attention does not exist.
    """

    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (128, 256, 256, 256)
    stem: int = 128
    blocks: int = 4
    attention_down: tuple[int, ...] = (1,)
    attention_up: tuple[int, ...] = (1,)
    attend_once: bool = True
    middle_attention: bool = True
    block: BlockSpec = BlockSpec()
    middle: BlockSpec | None = None
    resample: BlockResample | ConvResample = BlockResample()
    progressive_input: Progressive = Progressive.NONE
    progressive_output: Progressive = Progressive.NONE
    combine: Combine = Combine.SUM
    taps: Taps | None = (1, 1)
    embedding: PositionalSpec | FourierSpec | LearnedSpec = PositionalSpec()
    features: int = 128
    embedding_width: int = 512
    labels: Labels | None = None
    augment: int = 0
    centred: bool = True
    divide: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.widths, self.stem, self.blocks, self.in_channels, self.out_channels, self.features)
        if not self.widths or min(sizes) < 1:
            raise ValueError(
                f"Architecture: widths {self.widths} with {self.blocks} blocks, {self.in_channels} to "
                f"{self.out_channels} channels leave nothing to compute; give positive numbers."
            )
        levels = len(self.widths)
        for level in (*self.attention_down, *self.attention_up):
            if not 0 <= level < levels:
                raise ValueError(f"Architecture: attention level {level} does not exist; choose 0 to {levels - 1}.")

    @property
    def factor(self) -> int:
        """The number that must divide height and width."""
        return 2 ** (len(self.widths) - 1)


@final
class EncoderLevel(nn.Module):
    """The blocks of one size on the way down, and what leads to the next size."""

    def __init__(self, a: Architecture, level: int, n: int, carried: int) -> None:
        super().__init__()
        width, e = a.widths[level], a.embedding_width
        attends = level in a.attention_down
        inputs = (n, *[width] * (a.blocks - 1))
        self.stages = nn.ModuleList(Stage(p, width, embedding=e, spec=a.block, attention=attends) for p in inputs)
        self.resample: nn.Module | None = None
        self.pyramid: nn.Module | None = None
        self.channels, self.carried = width, carried
        self.skips = [width] * a.blocks
        if level == len(a.widths) - 1:
            return
        self.resample = a.resample.down(width, e, a.block)
        if a.progressive_input is Progressive.SKIP:
            self.pyramid = InputSkip(carried, width, a.taps, a.combine)
            self.channels *= 2 if a.combine is Combine.CAT else 1
        elif a.progressive_input is Progressive.RESIDUAL:
            self.pyramid = InputResidual(carried, width, a.taps, a.block)
            self.carried = width
        self.skips = [*self.skips, self.channels]

    def forward(self, h: Tensor, image: Tensor, e: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return features and image at the next size, and what the way up will see again."""
        skips: list[Tensor] = []
        for stage in self.stages:
            h = stage(h, e)
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h, e)
            if self.pyramid is not None:
                h, image = self.pyramid(h, image)
            skips.append(h)
        return h, image, skips


@final
class DecoderLevel(nn.Module):
    """The blocks of one size on the way up, and what leads to the next size."""

    def __init__(self, a: Architecture, level: int, n: int, skips: list[int]) -> None:
        super().__init__()
        width, e = a.widths[level], a.embedding_width
        self.stages = nn.ModuleList()
        for index in range(a.blocks + 1):
            attends = level in a.attention_up and (not a.attend_once or index == a.blocks)
            self.stages.append(Stage(n + skips.pop(), width, embedding=e, spec=a.block, attention=attends))
            n = width
        deepest = level == len(a.widths) - 1
        self.pyramid: nn.Module | None = None
        if a.progressive_output is Progressive.SKIP:
            self.pyramid = OutputSkip(width, a.out_channels, a.taps, a.block)
        elif a.progressive_output is Progressive.RESIDUAL:
            self.pyramid = OutputResidual(None if deepest else a.widths[level + 1], width, a.taps, a.block)
        self.resample = a.resample.up(width, e, a.block) if level else None

    def forward(self, h: Tensor, image: Tensor | None, e: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return features and image at the next size; takes its skips from the end of the list."""
        for stage in self.stages:
            h = stage(joined_channels(h, skips.pop()), e)
        if self.pyramid is not None:
            h, image = self.pyramid(h, image)
        return (h if self.resample is None else self.resample(h, e)), image


@final
class ScoreUNet(nn.Module):
    """Map images x and one number t per image to images of the same size.

    Args:
        architecture: everything but the weights.

    Shapes: x (B, in_channels, H, W); t () or (B,); result (B, out_channels, H, W).

    Raises:
        ValueError: the images have the wrong number of channels, or a size that cannot be halved often enough.

    Source: Song et al., "Score-based generative modeling through SDEs" (2021), appendix H; Dhariwal and Nichol,
    "Diffusion models beat GANs on image synthesis" (2021), section 3; Karras et al., "Elucidating the design space
    of diffusion-based generative models" (2022), appendix F.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.conditioning = Conditioning(a.embedding, a.features, a.embedding_width, labels=a.labels, augment=a.augment)
        self.input = conv(a.in_channels, a.stem)
        n, carried, skips = a.stem, a.in_channels, [a.stem]
        self.encoder = nn.ModuleList()
        for level in range(len(a.widths)):
            part = EncoderLevel(a, level, n, carried)
            self.encoder.append(part)
            n, carried = part.channels, part.carried
            skips += part.skips
        middle, e = a.middle or a.block, a.embedding_width
        self.middle = nn.ModuleList(
            Stage(n, n, embedding=e, spec=middle, attention=attends) for attends in (a.middle_attention, False)
        )
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(a.widths))):
            self.decoder.append(DecoderLevel(a, level, n, skips))
            n = a.widths[level]
        self.output = None if a.progressive_output is Progressive.SKIP else Head(n, a.out_channels, a.block)

    def forward(
        self,
        x: Float[Tensor, "batch n height width"],
        t: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Float[Tensor, "batch m height width"]:
        """Return the network's value for images `x` at the numbers `t`.

        Args:
            x: images.
            t: what the network is told about the noise, () or (batch,).
            labels: classes (batch,), or rows of weights (batch, classes).
            augment: descriptions of augmentations (batch, augment).
        """
        a = self.architecture
        self._check(x)
        t = t.to(x.dtype).expand(x.shape[0])
        e = self.conditioning(t, labels, augment)
        start = x if a.centred else 2 * x - 1
        h = self.input(start)
        skips, carried = [h], start
        for part in self.encoder:
            h, carried, more = part(h, carried, e)
            skips += more
        for part in self.middle:
            h = part(h, e)
        image: Tensor | None = None
        for part in self.decoder:
            h, image = part(h, image, e, skips)
        answer = image if self.output is None else self.output(h)
        assert answer is not None
        return answer / t[:, None, None, None] if a.divide else answer

    def _check(self, x: Tensor) -> None:
        a = self.architecture
        if x.ndim != 4 or x.shape[1] != a.in_channels:
            raise ValueError(
                f"ScoreUNet: input of shape {tuple(x.shape)} is not a batch of images with "
                f"{a.in_channels} channels; pass (B, {a.in_channels}, H, W)."
            )
        if x.shape[2] % a.factor or x.shape[3] % a.factor:
            raise ValueError(
                f"ScoreUNet: images of {x.shape[2]} x {x.shape[3]} pixels cannot be halved {len(a.widths) - 1} "
                f"times; pass heights and widths that {a.factor} divides."
            )
