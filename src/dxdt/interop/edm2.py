"""Network pickles of EDM2: {ema, encoder, dataset_kwargs}; the network wrapped in `Precond`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dxdt.diffusion import EDM, EDMPreconditioning, Preconditioned, Process
from dxdt.interop.keys import KeyMap, Source, load_weights, renamed
from dxdt.interop.net import build_magnitude, quiet
from dxdt.interop.unpickle import Record
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
    net = build_magnitude(architecture)
    load_weights(net, key_map(architecture, options), inner.tensors(), where=where)
    preconditioning = EDMPreconditioning(float(outer.state["sigma_data"]))
    return quiet(Preconditioned(net, EDM() if process is None else process, preconditioning))


def options_of(given: Any, where: str) -> dict[str, Any]:
    """Return the arguments of the network's construction, with defaults filled in.

    Raises:
        ValueError: one is missing, or not known.
    """
    if not isinstance(given, Mapping) or not set(given) >= _NEEDED:
        raise ValueError(f"{where}: the arguments of the network's construction are not in the file, and are needed.")
    if unknown := sorted(set(given) - set(_DEFAULTS) - _NEEDED):
        raise ValueError(f"{where}: the network was made with {unknown[0]}={given[unknown[0]]!r}, which is not known.")
    return _DEFAULTS | dict(given)


def architecture_of(options: Mapping[str, Any]) -> MagnitudeArchitecture:
    """Return the architecture from the arguments of the network's construction."""
    width = int(options["model_channels"])
    widths = tuple(width * int(m) for m in options["channel_mult"])
    sizes = [int(options["img_resolution"]) >> level for level in range(len(widths))]
    noise, embedding, limit = options["channel_mult_noise"], options["channel_mult_emb"], options["clip_act"]
    return MagnitudeArchitecture(
        channels=int(options["img_channels"]),
        widths=widths,
        blocks=int(options["num_blocks"]),
        attention=tuple(level for level, size in enumerate(sizes) if size in options["attn_resolutions"]),
        features=widths[0] if noise is None else width * int(noise),
        embedding_width=max(widths) if embedding is None else width * int(embedding),
        labels=int(options["label_dim"]),
        head_width=int(options["channels_per_head"]),
        dropout=float(options["dropout"]),
        taps=tuple(float(tap) for tap in options["resample_filter"]),
        residual=float(options["res_balance"]),
        attending=float(options["attn_balance"]),
        labelled=float(options["label_balance"]),
        skipped=float(options["concat_balance"]),
        limit=None if limit is None else float(limit),
    )


def key_map(a: MagnitudeArchitecture, options: Mapping[str, Any]) -> KeyMap:
    """Return where the tensors of an architecture are in such a network."""
    first, last = int(options["img_resolution"]), len(a.widths) - 1
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
