"""Read the architecture of a score-SDE network off the shapes of its tensors.

Those networks are one flat list of parts, `all_modules.0`, `all_modules.1`, ..., in the order of construction:
embedding, two dense layers, first convolution, way down, middle, way up, head. The file holds no configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dxdt.interop.keys import KeyMap, affine, renamed, stacked, transposed
from dxdt.nn import (
    Architecture,
    BlockResample,
    BlockSpec,
    Combine,
    ConvResample,
    FourierSpec,
    PositionalSpec,
    Progressive,
)

__all__ = ["Shapes", "network_of"]

FIR = (1, 3, 3, 1)


@final
@dataclass(frozen=True)
class Shapes:
    """A network found in a file.

    Attributes:
        architecture: read off the shapes.
        keys: where its tensors are.
    """

    architecture: Architecture
    keys: KeyMap


@final
class _Reader:
    """Walks along `all_modules` and notes which of our names each part has."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self.parts: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, value in tensors.items():
            head, _, rest = name.partition(".")
            index, _, leaf = rest.partition(".")
            if head == "all_modules" and index.isdigit():
                self.parts.setdefault(int(index), {})[leaf] = tuple(value.shape)
        self.at = 0
        self.keys: KeyMap = {}

    def fail(self, wanted: str) -> ValueError:
        """An error that says what was expected at this place."""
        have = ", ".join(sorted(self.parts.get(self.at, {}))) or "nothing"
        return ValueError(
            f"{self.where}: all_modules.{self.at} should be {wanted} but holds {have}; "
            "only NCSN++, DDPM++ and DDPM networks of score SDE are read."
        )

    @property
    def part(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors at this place."""
        return self.parts.get(self.at, {})

    def is_layer(self, axes: int) -> bool:
        """Whether a plain layer is here whose weight has so many axes."""
        return set(self.part) == {"weight", "bias"} and len(self.part["weight"]) == axes

    def layer(self, ours: str, axes: int, wanted: str) -> tuple[int, ...]:
        """Take a plain layer and return the shape of its weight."""
        if not self.is_layer(axes):
            raise self.fail(wanted)
        self.keys |= affine(ours, f"all_modules.{self.at}")
        shape = self.part["weight"]
        self.at += 1
        return shape

    def is_block(self) -> bool:
        """Whether a residual block is here."""
        return "Conv_1.weight" in self.part

    def is_resampling(self) -> bool:
        """Whether a residual block is here that changes the size: it projects though it keeps its channels."""
        shape = self.part.get("Conv_0.weight", (0, 0))
        return self.is_block() and shape[0] == shape[1] and "Conv_2.weight" in self.part

    def is_conv(self) -> bool:
        """Whether a resampling convolution is here."""
        return set(self.part) == {"Conv_0.weight", "Conv_0.bias"} and self.part["Conv_0.weight"][-1] == 3

    def block(self, ours: str) -> tuple[int, int]:
        """Take a residual block and return its channels after and before."""
        if not self.is_block():
            raise self.fail("a residual block")
        theirs = f"all_modules.{self.at}"
        for our, their in _BLOCK.items():
            self.keys |= affine(f"{ours}.{our}", f"{theirs}.{their}")
        if "NIN_0.W" in self.part:
            self.keys[f"{ours}.skip.weight"] = transposed(f"{theirs}.NIN_0.W")
            self.keys[f"{ours}.skip.bias"] = renamed(f"{theirs}.NIN_0.b")
        elif "Conv_2.weight" in self.part:
            self.keys |= affine(f"{ours}.skip", f"{theirs}.Conv_2")
        shape = self.part["Conv_0.weight"]
        self.at += 1
        return shape[0], shape[1]

    def attention(self, ours: str) -> bool:
        """Take an attention block if one is here."""
        if "NIN_3.W" not in self.part:
            return False
        theirs = f"all_modules.{self.at}"
        self.keys |= affine(f"{ours}.norm", f"{theirs}.GroupNorm_0")
        three = tuple(f"{theirs}.NIN_{k}" for k in range(3))
        self.keys[f"{ours}.qkv.weight"] = stacked(tuple(f"{n}.W" for n in three), lambda w: w.t()[:, :, None, None])
        self.keys[f"{ours}.qkv.bias"] = stacked(tuple(f"{n}.b" for n in three))
        self.keys[f"{ours}.output.weight"] = transposed(f"{theirs}.NIN_3.W")
        self.keys[f"{ours}.output.bias"] = renamed(f"{theirs}.NIN_3.b")
        self.at += 1
        return True

    def inner(self, ours: str, names: tuple[str, ...]) -> str | None:
        """Take a part that holds one convolution under one of `names`; return which, or None."""
        for name in names:
            if set(self.part) == {f"{name}.weight", f"{name}.bias"}:
                self.keys |= affine(ours, f"all_modules.{self.at}.{name}")
                self.at += 1
                return name
        return None


_BLOCK = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "film": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}


@final
@dataclass
class _Found:
    """What the walk along the parts has shown so far."""

    widths: list[int]
    attends: list[int]
    progressive_input: Progressive = Progressive.NONE
    progressive_output: Progressive = Progressive.NONE
    combine: Combine = Combine.SUM
    fir: bool = False
    block_resample: bool = True
    has_nin: bool = False


def network_of(tensors: Mapping[str, Tensor], where: str) -> Shapes:
    """Return the architecture and the names of a network.

    Args:
        tensors: the model's tensors, without the prefix `module.`.
        where: what to call the file in errors.

    Raises:
        ValueError: the parts are not in the order of one of the known networks.
    """
    reader = _Reader(tensors, where)
    fourier = set(reader.part) == {"W"}
    if fourier:
        reader.keys["conditioning.embedding.fourier.frequencies"] = renamed("all_modules.0.W")
        reader.at = 1
    width, features = reader.layer("conditioning.layer0", 2, "the first dense layer")
    reader.layer("conditioning.layer1", 2, "the second dense layer")
    stem, channels = reader.layer("input", 4, "the first convolution")[:2]
    plain = [reader.parts[i] for i in sorted(reader.parts)]
    found = _Found([], [], fir=fourier, has_nin=any("NIN_0.W" in p and "Conv_1.weight" in p for p in plain))
    levels, blocks = _depth(reader)
    _way_down(reader, found, levels, blocks)
    for index in range(2):
        reader.block(f"middle.{index}.block")
        if index == 0 and not reader.attention("middle.0.attention"):
            raise reader.fail("the attention of the middle")
    _way_up(reader, found, levels, blocks)
    if reader.part:
        raise reader.fail("the end")
    # Shortcuts of DDPM are matrices, and its normalisations always have 32 groups.
    spec = BlockSpec(rescale=1.0, channels_per_group=1) if found.has_nin else BlockSpec(rescale=math.sqrt(2))
    taps = FIR if found.fir else (1, 1)
    attends = tuple(found.attends)
    architecture = Architecture(
        in_channels=channels,
        out_channels=channels,
        widths=tuple(found.widths),
        stem=stem,
        blocks=blocks,
        attention_down=attends,
        attention_up=attends,
        block=spec,
        resample=BlockResample(taps) if found.block_resample else ConvResample(),
        progressive_input=found.progressive_input,
        progressive_output=found.progressive_output,
        combine=found.combine,
        taps=taps if found.fir else None,
        embedding=FourierSpec() if fourier else PositionalSpec(),
        features=features,
        embedding_width=width,
        centred=not fourier,
        divide=fourier,
    )
    return Shapes(architecture, reader.keys)


def _depth(reader: _Reader) -> tuple[int, int]:
    """Return levels and blocks per level: 2 (levels - 1) changes of size, levels (2 blocks + 1) + 2 other blocks."""
    start, resampling, convs, others = reader.at, 0, 0, 0
    for place in sorted(i for i in reader.parts if i >= start):
        reader.at = place
        resampling += reader.is_resampling()
        convs += reader.is_conv()
        others += reader.is_block() and not reader.is_resampling()
    # Where blocks change the size, lone convolutions belong to the image beside the features.
    changes = resampling or convs
    reader.at = start
    levels = 1 + changes // 2
    blocks, odd = divmod(others - 2 - levels, 2 * levels)
    if odd or changes % 2 or blocks < 1:
        raise ValueError(
            f"{reader.where}: {others} residual blocks and {changes} changes of size fit no U-Net of score SDE; "
            "only NCSN++, DDPM++ and DDPM networks are read."
        )
    return levels, blocks


def _way_down(reader: _Reader, found: _Found, levels: int, blocks: int) -> None:
    for level in range(levels):
        ours = f"encoder.{level}"
        width = 0
        for index in range(blocks):
            width, _ = reader.block(f"{ours}.stages.{index}.block")
            if reader.attention(f"{ours}.stages.{index}.attention") and level not in found.attends:
                found.attends.append(level)
        found.widths.append(width)
        if level == levels - 1:
            return
        if reader.is_resampling():
            reader.block(f"{ours}.resample")
        elif reader.inner(f"{ours}.resample.layer.conv", ("Conv_0",)):
            found.block_resample = False
        else:
            raise reader.fail("a change of size")
        _image_in(reader, found, ours, width)


def _image_in(reader: _Reader, found: _Found, ours: str, width: int) -> None:
    shape = reader.part.get("Conv_0.weight")
    if reader.is_block():
        return
    if shape is not None and shape[-1] == 1:
        found.progressive_input = Progressive.SKIP
        reader.inner(f"{ours}.pyramid.conv", ("Conv_0",))
        if reader.is_block() and reader.part["Conv_0.weight"][1] == 2 * width:
            found.combine = Combine.CAT
    elif name := reader.inner(f"{ours}.pyramid.shrink.conv", ("Conv2d_0", "Conv_0")):
        found.progressive_input = Progressive.RESIDUAL
        found.fir = found.fir or name == "Conv2d_0"


def _way_up(reader: _Reader, found: _Found, levels: int, blocks: int) -> None:
    for place, level in enumerate(reversed(range(levels))):
        ours = f"decoder.{place}"
        width = 0
        for index in range(blocks + 1):
            width, _ = reader.block(f"{ours}.stages.{index}.block")
        reader.attention(f"{ours}.stages.{blocks}.attention")
        _image_out(reader, found, ours, place, level, width)
        if level and found.block_resample:
            reader.block(f"{ours}.resample")
        elif level and not reader.inner(f"{ours}.resample.layer.conv", ("Conv_0",)):
            raise reader.fail("a change of size")
    if found.progressive_output is not Progressive.SKIP:
        reader.layer("output.norm", 1, "the last normalisation")
        reader.layer("output.conv", 4, "the last convolution")


def _image_out(reader: _Reader, found: _Found, ours: str, place: int, level: int, width: int) -> None:
    if place == 0 and level and reader.is_layer(1):
        out = reader.parts.get(reader.at + 1, {}).get("weight", (0,))[0]
        found.progressive_output = Progressive.RESIDUAL if out == width else Progressive.SKIP
    residual = found.progressive_output is Progressive.RESIDUAL
    if found.progressive_output is Progressive.SKIP or (residual and place == 0):
        reader.layer(f"{ours}.pyramid.head.norm", 1, "a normalisation")
        reader.layer(f"{ours}.pyramid.head.conv", 4, "a convolution")
    elif residual:
        name = reader.inner(f"{ours}.pyramid.grow.conv", ("Conv2d_0", "Conv_0"))
        found.fir = found.fir or name == "Conv2d_0"
