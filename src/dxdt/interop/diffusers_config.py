"""Architectures and names of diffusers' UNet2DModel, from its configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dxdt.interop.entries import Flag, Kind, Maybe, Number, Row, Text, Whole, read_entries, shortened
from dxdt.interop.keys import KeyMap, Source, affine, renamed, stacked
from dxdt.nn import (
    Architecture,
    BlockResample,
    BlockSpec,
    ConvResample,
    FourierSpec,
    Labels,
    LearnedSpec,
    PositionalSpec,
    Progressive,
)

__all__ = ["DEFAULTS", "architecture_of", "checked", "key_map"]

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""What a missing key of a configuration means."""

# Kind of block -> (attention, how sizes change: None means as downsample_type and upsample_type say).
_DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "SkipDownBlock2D": (False, "skip"),
    "AttnSkipDownBlock2D": (True, "skip"),
}
_UP = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "SkipUpBlock2D": (False, "skip"),
    "AttnSkipUpBlock2D": (True, "skip"),
}
_WIDTH = Whole(1, 1 << 20)
_KINDS: dict[str, Kind] = {
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "center_input_sample": Flag(),
    "time_embedding_type": Text(("positional", "fourier", "learned")),
    "time_embedding_dim": Maybe(Whole(0, 1 << 20)),
    "freq_shift": Number(),
    "flip_sin_to_cos": Flag(),
    "down_block_types": Row(Text()),
    "mid_block_type": Maybe(Text()),
    "up_block_types": Row(Text()),
    "block_out_channels": Row(_WIDTH),
    "layers_per_block": Whole(1, 1000),
    "mid_block_scale_factor": Number(),
    "downsample_padding": Whole(0, 1000),
    "downsample_type": Maybe(Text()),
    "upsample_type": Maybe(Text()),
    "dropout": Number(0, 1),
    "act_fn": Text(),
    "attention_head_dim": Maybe(_WIDTH),
    "norm_num_groups": Maybe(_WIDTH),
    "attn_norm_num_groups": Maybe(_WIDTH),
    "norm_eps": Number(0),
    "resnet_time_scale_shift": Text(),
    "add_attention": Flag(),
    "class_embed_type": Maybe(Text(("timestep", "identity"))),
    "num_class_embeds": Maybe(_WIDTH),
    "num_train_timesteps": Maybe(Whole(1, 1_000_000)),
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "mid_block_type": ("UNetMidBlock2D",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "downsample_padding": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}


def checked(config: Mapping[str, Any], where: str = "UNet2DModel") -> dict[str, Any]:
    """Return the entries of a configuration, with defaults filled in.

    Raises:
        ValueError: one is not what it should be, or they do not belong together.
    """
    c = read_entries(_KINDS, config, where, DEFAULTS)
    down, up, widths = (c[key] for key in ("down_block_types", "up_block_types", "block_out_channels"))
    if not len(down) == len(up) == len(widths):
        raise ValueError(
            f"{where}: down_block_types has {len(down)} entries, up_block_types {len(up)} and block_out_channels "
            f"{len(widths)}, which do not match; the configuration is damaged."
        )
    if c["time_embedding_type"] == "learned" and c["num_train_timesteps"] is None:
        raise ValueError(f"{where}: time_embedding_type='learned' needs num_train_timesteps, which is missing.")
    return c


def _refuse(where: str, key: str, value: Any, known: Sequence[Any]) -> ValueError:
    choices = ", ".join(str(v) for v in known)
    return ValueError(f"{where}: {key}={shortened(value)} is not read without diffusers installed; known: {choices}.")


def architecture_of(config: Mapping[str, Any], where: str = "UNet2DModel") -> Architecture:
    """Return the architecture that a configuration describes.

    Raises:
        ValueError: it asks for parts that are not known, or combines them as no published network does.
    """
    c = checked(config, where)
    for key, known in _FIXED.items():
        if c[key] not in known:
            raise _refuse(where, key, c[key], known)
    widths = c["block_out_channels"]
    down, up = list(c["down_block_types"]), list(reversed(c["up_block_types"]))
    kind = _kind(c, down, up, where)
    skips = kind == "skip"
    spec = _spec(c, widths, kind, where)
    middle_rescale = c["mid_block_scale_factor"]
    embedding = _embedding(c)
    fourier = isinstance(embedding, FourierSpec)
    return Architecture(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        widths=widths,
        stem=widths[0],
        blocks=c["layers_per_block"],
        attention_down=tuple(i for i, name in enumerate(down) if _DOWN[name][0]),
        attention_up=tuple(i for i, name in enumerate(up) if _UP[name][0]),
        attend_once=skips,
        middle_attention=c["add_attention"],
        block=spec,
        middle=dataclasses.replace(spec, rescale=middle_rescale) if middle_rescale != spec.rescale else None,
        resample=BlockResample((1, 3, 3, 1) if skips else (1, 1))
        if kind != "conv"
        else ConvResample(centred=c["downsample_padding"] == 1),
        progressive_input=Progressive.SKIP if skips else Progressive.NONE,
        progressive_output=Progressive.SKIP if skips else Progressive.NONE,
        taps=(1, 3, 3, 1) if skips else None,
        embedding=embedding,
        features=2 * widths[0] if fourier else widths[0],
        embedding_width=c["time_embedding_dim"] or 4 * widths[0],
        labels=None if c["num_class_embeds"] is None else Labels(c["num_class_embeds"], required=True),
        centred=not c["center_input_sample"],
        divide=fourier,
    )


def _embedding(c: Mapping[str, Any]) -> PositionalSpec | FourierSpec | LearnedSpec:
    match c["time_embedding_type"]:
        case "fourier":
            return FourierSpec()
        case "learned":
            return LearnedSpec(c["num_train_timesteps"])
        case _:
            return PositionalSpec(shift=c["freq_shift"], cosine_first=c["flip_sin_to_cos"])


def _kind(c: Mapping[str, Any], down: list[str], up: list[str], where: str) -> str:
    """How sizes change; one way for the whole network."""
    for name in down:
        if name not in _DOWN:
            raise _refuse(where, "down_block_types", name, list(_DOWN))
    for name in up:
        if name not in _UP:
            raise _refuse(where, "up_block_types", name, list(_UP))
    # The deepest block down and the shallowest up change no size.
    kinds = {_DOWN[name][1] or c["downsample_type"] for name in down[:-1]}
    kinds |= {_UP[name][1] or c["upsample_type"] for name in up[1:]}
    ends = {_DOWN[down[-1]][1], _UP[up[0]][1]}
    if len(down) == 1:  # it changes no size, but its blocks say whether the image goes beside the features
        kinds = {"skip" if "skip" in ends else "conv"}
    if len(kinds) > 1 or ("skip" in kinds) != ("skip" in ends) or ("skip" in ends and len(ends) > 1):
        raise ValueError(
            f"{where}: down_block_types, up_block_types, downsample_type and upsample_type change sizes in different "
            f"ways ({', '.join(sorted({*map(str, kinds), *map(str, ends)}))}), which is not read without diffusers "
            "installed."
        )
    kind = kinds.pop()
    if kind not in ("conv", "resnet", "skip"):
        raise _refuse(where, "downsample_type", kind, ("conv", "resnet"))
    return kind


def _spec(c: Mapping[str, Any], widths: tuple[int, ...], kind: str, where: str) -> BlockSpec:
    skips, groups = kind == "skip", c["norm_num_groups"]
    attention_groups = c["attn_norm_num_groups"]
    shifts = c["resnet_time_scale_shift"] == "scale_shift"
    if shifts and attention_groups is None and c["add_attention"]:
        raise ValueError(f"{where}: attention without a normalisation is not read; attn_norm_num_groups is missing.")
    if not skips and attention_groups not in (None, groups):
        raise _refuse(where, "attn_norm_num_groups", attention_groups, (None, groups))
    if skips and (min(widths) < 128 and any("Attn" in n for n in c["down_block_types"])):
        attending = [w for w, n in zip(widths, c["down_block_types"], strict=True) if "Attn" in n]
        if min(attending) < 128:
            raise _refuse(where, "width with attention", min(attending), ("128 and more",))
    if skips and groups not in (None, min(32, widths[0] // 4)):
        raise _refuse(where, "norm_num_groups", groups, (None,))
    width = c["attention_head_dim"]
    return BlockSpec(
        groups=32 if groups is None else groups,
        channels_per_group=4 if groups is None or skips else 1,
        eps=c["norm_eps"],
        dropout=c["dropout"],
        scale_shift=shifts,
        rescale=math.sqrt(2) if skips else 1.0,
        project=skips,
        heads=1 if width is None else None,
        head_width=64 if width is None else width,
    )


_BLOCK = {"norm0": "norm1", "conv0": "conv1", "film": "time_emb_proj", "norm1": "norm2", "conv1": "conv2"}


def key_map(a: Architecture) -> KeyMap:
    """Return where the tensors of an architecture are in a UNet2DModel."""
    keys = affine("conditioning.layer0", "time_embedding.linear_1")
    keys |= affine("conditioning.layer1", "time_embedding.linear_2")
    if isinstance(a.embedding, FourierSpec):
        keys["conditioning.embedding.fourier.frequencies"] = renamed("time_proj.weight")
    if isinstance(a.embedding, LearnedSpec):
        keys["conditioning.embedding.rows.weight"] = renamed("time_proj.weight")
    if a.labels is not None:
        keys["conditioning.label.weight"] = Source(("class_embedding.weight",), lambda found: found[0].t())
    keys |= affine("input", "conv_in")
    stem = a.stem
    for level, width in enumerate(a.widths):
        theirs, ours = f"down_blocks.{level}", f"encoder.{level}"
        for index in range(a.blocks):
            n = stem if index == 0 else width
            attention = f"{theirs}.attentions.{index}" if level in a.attention_down else None
            keys |= _stage(f"{ours}.stages.{index}", f"{theirs}.resnets.{index}", attention, n != width)
        stem = width
        if level < len(a.widths) - 1:
            keys |= _resample(a, f"{ours}.resample", theirs, "down")
            if a.progressive_input is Progressive.SKIP:
                keys |= affine(f"{ours}.pyramid.conv", f"{theirs}.skip_conv")
    attention = "mid_block.attentions.0" if a.middle_attention else None
    keys |= _stage("middle.0", "mid_block.resnets.0", attention, False)
    keys |= _stage("middle.1", "mid_block.resnets.1", None, False)
    return keys | _way_up(a)


def _way_up(a: Architecture) -> KeyMap:
    keys: KeyMap = {}
    skips = a.progressive_output is Progressive.SKIP
    for place, level in enumerate(reversed(range(len(a.widths)))):
        theirs, ours = f"up_blocks.{place}", f"decoder.{place}"
        for index in range(a.blocks + 1):
            attends = level in a.attention_up and (not a.attend_once or index == a.blocks)
            which = 0 if a.attend_once else index
            attention = f"{theirs}.attentions.{which}" if attends else None
            keys |= _stage(f"{ours}.stages.{index}", f"{theirs}.resnets.{index}", attention, True)
        if level:
            keys |= _resample(a, f"{ours}.resample", theirs, "up")
        if skips:
            head = f"{ours}.pyramid.head"
            keys |= affine(f"{head}.norm", f"{theirs}.skip_norm" if level else "conv_norm_out")
            keys |= affine(f"{head}.conv", f"{theirs}.skip_conv" if level else "conv_out")
    if not skips:
        keys |= affine("output.norm", "conv_norm_out") | affine("output.conv", "conv_out")
    return keys


def _resample(a: Architecture, ours: str, theirs: str, way: str) -> KeyMap:
    if isinstance(a.resample, ConvResample):
        return affine(f"{ours}.layer.conv", f"{theirs}.{way}samplers.0.conv")
    if a.progressive_input is Progressive.SKIP:
        return _block(ours, f"{theirs}.resnet_{way}", True)
    return _block(ours, f"{theirs}.{way}samplers.0", False)


def _block(ours: str, theirs: str, projects: bool) -> KeyMap:
    keys: KeyMap = {}
    for our, their in _BLOCK.items():
        keys |= affine(f"{ours}.{our}", f"{theirs}.{their}")
    return keys | (affine(f"{ours}.skip", f"{theirs}.conv_shortcut") if projects else {})


def _pixelwise(value: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1 x 1 convolution; biases as they are."""
    return value[:, :, None, None] if value.ndim == 2 else value


def _stage(ours: str, theirs: str, attention: str | None, projects: bool) -> KeyMap:
    keys = _block(f"{ours}.block", theirs, projects)
    if attention is None:
        return keys
    keys |= affine(f"{ours}.attention.norm", f"{attention}.group_norm")
    for part in ("weight", "bias"):
        three = tuple(f"{attention}.{name}.{part}" for name in ("to_q", "to_k", "to_v"))
        keys[f"{ours}.attention.qkv.{part}"] = stacked(three, _pixelwise)
        keys[f"{ours}.attention.output.{part}"] = Source(
            (f"{attention}.to_out.0.{part}",), lambda found: _pixelwise(found[0])
        )
    return keys
