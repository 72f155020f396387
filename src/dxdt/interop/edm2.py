"""Network pickles of EDM2: {ema, encoder, dataset_kwargs}; the network wrapped in `Precond`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dxdt.diffusion import EDM, EDMPreconditioning, Preconditioned, Process
from dxdt.interop.entries import Kind, Maybe, Number, Row, Whole, read_entries, shortened
from dxdt.interop.keys import KeyMap, Source, renamed
from dxdt.interop.net import filled, quiet
from dxdt.interop.records import Record
from dxdt.nn import MagnitudeArchitecture

__all__ = ["architecture_of", "denoiser_from", "is_edm2", "key_map"]

_DEFAULTS: dict[str, Any] = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "num_blocks": 3,
    "attn_resolutions": [16, 8],
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "resample_filter": [1, 1],
    "channels_per_head": 64,
    "dropout": 0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
}
_NEEDED = {"img_resolution", "img_channels", "label_dim"}
_WHOLE, _COUNT, _SHARE = Whole(), Whole(0), Number(0, 1)
_KINDS: dict[str, Kind] = {
    "img_resolution": Whole(1, 1 << 16),
    "img_channels": _WHOLE,
    "label_dim": _COUNT,
    "model_channels": _WHOLE,
    "channel_mult": Row(_WHOLE),
    "channel_mult_noise": Maybe(_WHOLE),
    "channel_mult_emb": Maybe(_WHOLE),
    "num_blocks": Whole(1, 1000),
    "attn_resolutions": Row(_COUNT, 0),
    "label_balance": _SHARE,
    "concat_balance": _SHARE,
    "resample_filter": Row(Number()),
    "channels_per_head": _WHOLE,
    "dropout": _SHARE,
    "res_balance": _SHARE,
    "attn_balance": _SHARE,
    "clip_act": Maybe(Number(0)),
}


def is_edm2(outer: Record) -> bool:
    """Whether a wrapped network is of EDM2."""
    return outer.kind == "Precond" and "unet" in (outer.state.get("_modules") or {})


def denoiser_from(outer: Record, where: str, process: Process | None) -> Preconditioned:
    """Return the denoiser of a wrapped network; images of latent models stay in latent space.

    Raises:
        ValueError: the network's arguments or tensors are not those of EDM2.
    """
    inner = outer.state["_modules"]["unet"]
    if not isinstance(inner, Record):
        raise ValueError(f"{where}: Precond wraps no network under 'unet'; only networks of EDM2 are read.")
    options = options_of(inner.state.get("_init_kwargs"), where)
    architecture = architecture_of(options)
    net = filled(architecture, lambda: key_map(architecture, options), inner.tensors(), where)
    said = read_entries({"sigma_data": Number(1e-30)}, outer.state, where, {})
    preconditioning = EDMPreconditioning(said["sigma_data"])
    return quiet(Preconditioned(net, EDM() if process is None else process, preconditioning))


def options_of(given: Any, where: str) -> dict[str, Any]:
    """Return the arguments of the network's construction, with defaults filled in.

    Raises:
        ValueError: one is missing, or not known.
    """
    if not isinstance(given, Mapping) or not set(given) >= _NEEDED:
        raise ValueError(f"{where}: the arguments of the network's construction are not in the file, and are needed.")
    if unknown := sorted(str(key) for key in given if key not in _KINDS):
        value = shortened(given.get(unknown[0]))
        raise ValueError(f"{where}: the network was made with {unknown[0]}={value}, which is not known.")
    return read_entries(_KINDS, given, where, _DEFAULTS)


def architecture_of(options: Mapping[str, Any]) -> MagnitudeArchitecture:
    """Return the architecture from the arguments of the network's construction."""
    width = options["model_channels"]
    widths = tuple(width * m for m in options["channel_mult"])
    sizes = [options["img_resolution"] >> level for level in range(len(widths))]
    noise, embedding = options["channel_mult_noise"], options["channel_mult_emb"]
    return MagnitudeArchitecture(
        channels=options["img_channels"],
        widths=widths,
        blocks=options["num_blocks"],
        attention=tuple(level for level, size in enumerate(sizes) if size in options["attn_resolutions"]),
        features=widths[0] if noise is None else width * noise,
        embedding_width=max(widths) if embedding is None else width * embedding,
        labels=options["label_dim"],
        head_width=options["channels_per_head"],
        dropout=options["dropout"],
        taps=options["resample_filter"],
        residual=options["res_balance"],
        attending=options["attn_balance"],
        labelled=options["label_balance"],
        skipped=options["concat_balance"],
        limit=options["clip_act"],
    )


def key_map(a: MagnitudeArchitecture, options: Mapping[str, Any]) -> KeyMap:
    """Return where the tensors of an architecture are in such a network."""
    first, last = options["img_resolution"], len(a.widths) - 1
    keys: KeyMap = {
        "fourier.frequencies": renamed("emb_fourier.freqs"),
        "fourier.phases": renamed("emb_fourier.phases"),
        "noise.weight": renamed("emb_noise.weight"),
        "input.weight": renamed(f"enc.{first}x{first}_conv.weight"),
        "output.weight": renamed("out_conv.weight"),
        "gain": renamed("out_gain"),
    }
    if a.labels:
        keys["label.weight"] = renamed("emb_label.weight")
    n = a.widths[0]
    for level, m in enumerate(a.widths):
        size, ours = first >> level, f"encoder.{level}"
        for index in range(a.blocks):
            theirs = f"enc.{size}x{size}_block{index}"
            keys |= _block(a, f"{ours}.blocks.{index}", theirs, n != m, level in a.attention)
            n = m
        if level < last:
            keys |= _block(a, f"{ours}.resample", f"enc.{size // 2}x{size // 2}_down", False, False)
    smallest = f"dec.{first >> last}x{first >> last}"
    for index in range(2):
        keys |= _block(a, f"middle.{index}", f"{smallest}_in{index}", False, index == 0)
    for place, level in enumerate(reversed(range(last + 1))):
        size, ours = first >> level, f"decoder.{place}"
        for index in range(a.blocks + 1):
            theirs = f"dec.{size}x{size}_block{index}"
            # What comes beside the skip is always wider than what leaves.
            keys |= _block(a, f"{ours}.blocks.{index}", theirs, True, level in a.attention)
        if level:
            keys |= _block(a, f"{ours}.resample", f"dec.{2 * size}x{2 * size}_up", False, False)
    return keys


_BLOCK = {"conv0": "conv_res0", "film": "emb_linear", "conv1": "conv_res1"}


def _block(a: MagnitudeArchitecture, ours: str, theirs: str, projects: bool, attends: bool) -> KeyMap:
    keys = {f"{ours}.{our}.weight": renamed(f"{theirs}.{their}.weight") for our, their in _BLOCK.items()}
    keys[f"{ours}.gain"] = renamed(f"{theirs}.emb_gain")
    if projects:
        keys[f"{ours}.skip.weight"] = renamed(f"{theirs}.conv_skip.weight")
    if attends:
        keys[f"{ours}.output.weight"] = renamed(f"{theirs}.attn_proj.weight")

        def unmixed(found: list[Tensor]) -> Tensor:
            # Theirs: head, channel, (q, k, v); ours: (q, k, v), head, channel.
            value = found[0]
            return value.reshape(-1, a.head_width, 3, *value.shape[1:]).movedim(2, 0).reshape(value.shape)

        keys[f"{ours}.qkv.weight"] = Source((f"{theirs}.attn_qkv.weight",), unmixed)
    return keys
