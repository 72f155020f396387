"""Network pickles of EDM and EDM2: {ema, loss_fn, augment_pipe, dataset_kwargs}.

The source text of every class is inside, and is never run: networks are read as their attributes
(`dxdt.interop.read`), the arguments of their construction say what to build, and the tensors are carried over by
name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dxdt.diffusion import (
    EDM,
    EDMPreconditioning,
    IDDPMPreconditioning,
    Linear,
    Preconditioned,
    Preconditioning,
    Process,
    VEPreconditioning,
    VPPreconditioning,
)
from dxdt.interop import edm2
from dxdt.interop.entries import Kind, Number, Row, Text, Whole, read_entries, shortened
from dxdt.interop.keys import KeyMap, Source, affine, reading, renamed
from dxdt.interop.net import MeanPart, filled, quiet
from dxdt.interop.read import read_content
from dxdt.interop.records import Record
from dxdt.nn import (
    Architecture,
    BlockResample,
    BlockSpec,
    FourierSpec,
    Labels,
    PositionalSpec,
    Progressive,
    adm,
)

__all__ = ["architecture_of", "is_edm", "key_map", "load_edm"]

_WHOLE, _COUNT, _SHARE = Whole(), Whole(0), Number(0, 1)
_SHARED: dict[str, Kind] = {
    "img_resolution": Whole(1, 1 << 16),
    "in_channels": _WHOLE,
    "out_channels": _WHOLE,
    "label_dim": _COUNT,
    "augment_dim": _COUNT,
    "model_channels": _WHOLE,
    "channel_mult": Row(_WHOLE),
    "channel_mult_emb": _WHOLE,
    "num_blocks": Whole(1, 1000),
    "attn_resolutions": Row(_COUNT, 0),
    "dropout": _SHARE,
    "label_dropout": _SHARE,
}
_SIDES = {"standard": Progressive.NONE, "skip": Progressive.SKIP, "residual": Progressive.RESIDUAL}
_KINDS: dict[str, dict[str, Kind]] = {
    "SongUNet": _SHARED
    | {
        "embedding_type": Text(("positional", "fourier")),
        "channel_mult_noise": _WHOLE,
        "encoder_type": Text(tuple(_SIDES)),
        "decoder_type": Text(("standard", "skip")),
        "resample_filter": Row(Number()),
    },
    "DhariwalUNet": _SHARED,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
_ALWAYS: dict[str, Any] = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.10, "label_dropout": 0}
_NEEDED = {"img_resolution", "in_channels", "out_channels"}
_POSITIVE, _LEVELS = Number(1e-30), Whole(1, 100_000)
_OUTER: dict[str, dict[str, Kind]] = {
    "EDMPrecond": {"sigma_data": _POSITIVE},
    "VPPrecond": {"beta_min": Number(0), "beta_d": _POSITIVE, "M": _LEVELS},
    "VEPrecond": {},
    "iDDPMPrecond": {"M": _LEVELS, "C_1": Number(), "C_2": Number()},
}
_OURS = {"norm0": "norm0", "conv0": "conv0", "film": "affine", "norm1": "norm1", "conv1": "conv1"}


def is_edm(content: Any) -> bool:
    """Whether `content`, read from a file, is such a pickle."""
    return isinstance(content, Mapping) and isinstance(content.get("ema"), Record)


def load_edm(path: Path, *, process: Process | None = None) -> Preconditioned:
    """Read a network pickle of EDM.

    Args:
        path: the `.pkl` file.
        process: the diffusion whose x_t the denoiser shall read; any will do, `EDM` between the network's
            smallest and largest noise level (within 0.002 and 80) by default.

    Raises:
        ValueError: the file is hostile, truncated or of another kind.
    """
    return denoiser_of(read_content(path), str(path), process)


def denoiser_of(content: Any, where: str, process: Process | None) -> Preconditioned:
    """Return the denoiser of a pickle that was read."""
    if not is_edm(content):
        raise ValueError(f"{where} holds no network under 'ema'; it is no pickle of EDM.")
    with reading(where):
        return _unwrapped(content["ema"], where, process)


def _unwrapped(outer: Record, where: str, process: Process | None) -> Preconditioned:
    if edm2.is_edm2(outer):
        return edm2.denoiser_from(outer, where, process)
    inner = (outer.state.get("_modules") or {}).get("model")
    if not isinstance(inner, Record):
        raise ValueError(f"{where}: {outer.kind} wraps no network under 'model'; only networks of EDM are read.")
    preconditioning = _preconditioning(outer, where)
    options = options_of(inner.kind, inner.state.get("_init_kwargs"), where)
    architecture = architecture_of(inner.kind, options)
    net = filled(architecture, lambda: key_map(architecture, inner.kind, options), _learnt(inner), where)
    wrapped: nn.Module = net
    if architecture.out_channels != architecture.in_channels:
        wrapped = MeanPart(net)
    if process is None:
        process = _range(outer, where)
    return quiet(Preconditioned(wrapped, process, preconditioning))


def _range(outer: Record, where: str) -> EDM:
    """The process between the network's smallest and largest noise level, within 0.002 and 80."""
    # Networks of VP and VE say no largest level, or an infinite one.
    said = {k: v for k, v in outer.state.items() if not (isinstance(v, float) and math.isinf(v))}
    ends = read_entries(
        {"sigma_min": Number(0), "sigma_max": _POSITIVE}, said, where, {"sigma_min": 0.0, "sigma_max": 80.0}
    )
    low, high = max(0.002, ends["sigma_min"]), min(80.0, ends["sigma_max"])
    if not low < high:
        raise ValueError(
            f"{where}: sigma_min={ends['sigma_min']:g} and sigma_max={ends['sigma_max']:g} leave no noise levels "
            "between them; pass process=EDM(...)."
        )
    return EDM(low, high)


def _learnt(inner: Record) -> dict[str, Tensor]:
    """The tensors that are not fixed filters."""
    return {name: value for name, value in inner.tensors().items() if not name.endswith("resample_filter")}


def _preconditioning(outer: Record, where: str) -> Preconditioning:
    if outer.kind not in _OUTER:
        raise ValueError(
            f"{where}: networks wrapped in {outer.kind} are not read; EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond "
            "and EDM2's Precond are."
        )
    said = read_entries(_OUTER[outer.kind], outer.state, where, {})
    match outer.kind:
        case "EDMPrecond":
            return EDMPreconditioning(said["sigma_data"])
        case "VPPrecond":
            return VPPreconditioning(Linear(said["beta_min"], said["beta_min"] + said["beta_d"]), said["M"])
        case "VEPrecond":
            return VEPreconditioning()
        case _:
            return IDDPMPreconditioning(said["M"], said["C_1"], said["C_2"])


def options_of(kind: str, given: Any, where: str) -> dict[str, Any]:
    """Return the arguments of the construction of a network of class `kind`, with defaults filled in.

    Raises:
        ValueError: the class is not known, or an argument is missing, not known, or not what it should be.
    """
    if kind not in _KINDS:
        raise ValueError(f"{where}: networks of class {kind} are not read; {' and '.join(_KINDS)} are.")
    if not isinstance(given, Mapping) or not set(given) >= _NEEDED:
        raise ValueError(f"{where}: the arguments of {kind}'s construction are not in the file, and are needed.")
    kinds = _KINDS[kind]
    if unknown := sorted(str(key) for key in given if key not in kinds):
        value = shortened(given.get(unknown[0]))
        raise ValueError(f"{where}: {kind} was made with {unknown[0]}={value}, which is not known.")
    return read_entries(kinds, given, where, _ALWAYS | _DEFAULTS[kind])


def architecture_of(kind: str, options: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a `SongUNet` or `DhariwalUNet` from the arguments of its construction."""
    width, multipliers = options["model_channels"], options["channel_mult"]
    sizes = [options["img_resolution"] >> level for level in range(len(multipliers))]
    attention = tuple(level for level, size in enumerate(sizes) if size in options["attn_resolutions"])
    classes = options["label_dim"]
    if kind == "DhariwalUNet":
        return adm(
            options["in_channels"],
            out_channels=options["out_channels"],
            width=width,
            multipliers=multipliers,
            blocks=options["num_blocks"],
            attention=attention,
            dropout=options["dropout"],
            labels=classes,
            augment=options["augment_dim"],
        )
    taps = options["resample_filter"]
    fourier = options["embedding_type"] == "fourier"
    return Architecture(
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        widths=tuple(width * m for m in multipliers),
        stem=width,
        blocks=options["num_blocks"],
        attention_down=attention,
        attention_up=attention,
        block=BlockSpec(dropout=options["dropout"]),
        resample=BlockResample(taps),
        progressive_input=_SIDES[options["encoder_type"]],
        progressive_output=_SIDES[options["decoder_type"]],
        taps=taps,
        embedding=FourierSpec(log=False) if fourier else PositionalSpec(power=True),
        features=width * options["channel_mult_noise"],
        embedding_width=width * options["channel_mult_emb"],
        labels=Labels(classes, early=True) if classes else None,
        augment=options["augment_dim"],
    )


def key_map(a: Architecture, kind: str, options: Mapping[str, Any]) -> KeyMap:
    """Return where the tensors of an architecture are in such a network."""
    first = options["img_resolution"]
    keys = affine("conditioning.layer0", "map_layer0") | affine("conditioning.layer1", "map_layer1")
    if isinstance(a.embedding, FourierSpec):
        keys["conditioning.embedding.frequencies"] = renamed("map_noise.freqs")
    if a.labels is not None:
        keys["conditioning.label.weight"] = renamed("map_label.weight")
        if a.labels.early:
            keys["conditioning.label.bias"] = renamed("map_label.bias")
    if a.augment:
        keys["conditioning.augment.weight"] = renamed("map_augment.weight")
    keys |= affine("input", f"enc.{first}x{first}_conv")
    last = len(a.widths) - 1
    stem = a.stem
    for level, width in enumerate(a.widths):
        size = first >> level
        theirs = f"enc.{size}x{size}"
        for index in range(a.blocks):
            n = width if index else stem
            ours = f"encoder.{level}.stages.{index}"
            keys |= _stage(a, ours, f"{theirs}_block{index}", n != width, width if level in a.attention_down else 0)
        stem = width
        if level < last:
            below = f"enc.{size // 2}x{size // 2}"
            keys |= _block(f"encoder.{level}.resample", f"{below}_down", a.block.project)
            if a.progressive_input is Progressive.SKIP:
                keys |= affine(f"encoder.{level}.pyramid.conv", f"{below}_aux_skip")
            elif a.progressive_input is Progressive.RESIDUAL:
                keys |= affine(f"encoder.{level}.pyramid.shrink.conv", f"{below}_aux_residual")
    return keys | _way_up(a, kind, first)


def _way_up(a: Architecture, kind: str, first: int) -> KeyMap:
    last = len(a.widths) - 1
    smallest = f"dec.{first >> last}x{first >> last}"
    keys = _stage(a, "middle.0", f"{smallest}_in0", False, a.widths[-1])
    keys |= _stage(a, "middle.1", f"{smallest}_in1", False, 0)
    for place, level in enumerate(reversed(range(last + 1))):
        size, width, ours = first >> level, a.widths[level], f"decoder.{place}"
        for index in range(a.blocks + 1):
            attends = level in a.attention_up and (not a.attend_once or index == a.blocks)
            theirs = f"dec.{size}x{size}_block{index}"
            # A block on the way up always narrows what it is given, so it always projects.
            keys |= _stage(a, f"{ours}.stages.{index}", theirs, True, width if attends else 0)
        if level:
            keys |= _block(f"{ours}.resample", f"dec.{2 * size}x{2 * size}_up", a.block.project)
        if a.progressive_output is Progressive.SKIP:
            keys |= _head(f"{ours}.pyramid.head", f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv")
    if a.progressive_output is not Progressive.SKIP:
        whole = "out" if kind == "DhariwalUNet" else f"dec.{first}x{first}_aux"
        keys |= _head("output", f"{whole}_norm", f"{whole}_conv")
    return keys


def _head(ours: str, norm: str, conv: str) -> KeyMap:
    return affine(f"{ours}.norm", norm) | affine(f"{ours}.conv", conv)


def _block(ours: str, theirs: str, projects: bool) -> KeyMap:
    keys: KeyMap = {}
    for our, their in _OURS.items():
        keys |= affine(f"{ours}.{our}", f"{theirs}.{their}")
    return keys | (affine(f"{ours}.skip", f"{theirs}.skip") if projects else {})


def _stage(a: Architecture, ours: str, theirs: str, projects: bool, attends: int) -> KeyMap:
    """Names of a residual block, with attention over `attends` channels (0 without)."""
    keys = _block(f"{ours}.block", theirs, projects)
    if not attends:
        return keys
    heads = a.block.heads_of(attends)

    def unmixed(found: list[Tensor]) -> Tensor:
        # Theirs: head, channel, (q, k, v); ours: (q, k, v), head, channel.
        value = found[0]
        return value.reshape(heads, -1, 3, *value.shape[1:]).movedim(2, 0).reshape(value.shape)

    keys |= affine(f"{ours}.attention.norm", f"{theirs}.norm2") | affine(f"{ours}.attention.output", f"{theirs}.proj")
    for part in ("weight", "bias"):
        keys[f"{ours}.attention.qkv.{part}"] = Source((f"{theirs}.qkv.{part}",), unmixed)
    return keys
