"""Our own checkpoints: one safetensors file with the weights, and in its header what they mean.

The header says in JSON which network it is, which process it was trained on, what it answers and what it is told
about the time; signal and noise of the process at nine times are stored too, and compared when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxdt.diffusion import Denoiser, Preconditioned, Process
from dxdt.interop.description import agree, describe, moments_of, restore
from dxdt.interop.entries import Kind, Maybe, Number, Row, Whole, read_entries, shortened
from dxdt.interop.keys import reading
from dxdt.interop.net import MeanPart, build, quiet, refused_by_name
from dxdt.nn import Architecture, MagnitudeArchitecture, MagnitudeUNet, ScoreUNet, UNet
from dxdt.ops.files import write_atomic
from dxdt.ops.optional import require

__all__ = ["is_own", "load_own", "read_safetensors", "save"]

_KEY = "dxdt"
_FORMAT = 1


def save(path: str | Path, denoiser: Denoiser | Preconditioned, *, about: Mapping[str, Any] | None = None) -> None:
    """Write a denoiser as one safetensors file, whole or not at all.

    Args:
        path: where to.
        denoiser: a `Denoiser` or `Preconditioned` around a `ScoreUNet` or `UNet`.
        about: plain values of your own, kept in the header.

    Raises:
        ValueError: the network or the process has no description that could be stored.
        ImportError: safetensors is not installed.
    """
    if not isinstance(denoiser, (Denoiser, Preconditioned)):
        raise ValueError(
            f"save: a {type(denoiser).__name__} is not written; give a Denoiser or Preconditioned around a network "
            "(of wrappers the denoiser inside), or keep weights by torch.save(module.state_dict(), path)."
        )
    net, mean_only = denoiser.net, False
    if isinstance(net, MeanPart):
        net, mean_only = net.net, True
    said: dict[str, Any] = {
        "format": _FORMAT,
        "net": _describe_net(net),
        "mean_only": mean_only,
        "process": describe(denoiser.process),
        "moments": moments_of(denoiser.process),
        "about": dict(about or {}),
    }
    if isinstance(denoiser, Preconditioned):
        said["preconditioning"] = describe(denoiser.preconditioning)
    else:
        said["parameterisation"] = describe(denoiser.parameterisation)
        said["clock"] = describe(denoiser.clock)
    assert isinstance(net, nn.Module)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
    content = require("safetensors.torch", "interop").save(tensors, metadata={_KEY: json.dumps(said)})
    write_atomic(Path(path), content)


def _describe_net(net: Any) -> dict[str, Any]:
    if isinstance(net, ScoreUNet):
        return {"kind": "ScoreUNet", "architecture": describe(net.architecture)}
    if isinstance(net, MagnitudeUNet):
        return {"kind": "MagnitudeUNet", "architecture": describe(net.architecture)}
    if isinstance(net, UNet) and net.options is not None:
        return {"kind": "UNet", "options": describe_options(net.options)}
    raise ValueError(
        f"save: a {type(net).__name__} cannot be described in a file; store a ScoreUNet, a MagnitudeUNet or a UNet "
        "with its own embedding, or keep the weights of your module by torch.save(module.state_dict())."
    )


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `UNet` as plain JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a safetensors file.

    Raises:
        ValueError: the file is truncated or of another kind.
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
    """
    library = require("safetensors", "interop")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name.")
    try:
        with library.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); fetch it again, or restore a copy."
        ) from error
    return tensors, header


def is_own(header: Mapping[str, str]) -> bool:
    """Whether a safetensors header is of a file that `save` wrote."""
    return _KEY in header


def load_own(path: Path, *, process: Process | None = None) -> Denoiser | Preconditioned:
    """Read what `save` wrote.

    Args:
        path: the file.
        process: the diffusion that you expect it to be of; compared, not substituted.

    Raises:
        ValueError: the file is damaged, its parts do not belong together, or `process` is another one.
    """
    tensors, header = read_safetensors(path)
    where = str(path)
    if not is_own(header):
        raise ValueError(f"{where} has no description of a denoiser in its header; write it by dxdt.interop.save.")
    with reading(where):
        return quiet(_restored(_said(header, where), tensors, process, where))


def _said(header: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        said = json.loads(header[_KEY])
    except (ValueError, RecursionError) as error:  # bad text, endless nesting, numbers without end
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}: its description is damaged ({message}); restore a copy.") from error
    if said["format"] != _FORMAT:
        raise ValueError(f"{where} has format {said['format']}; this version reads format {_FORMAT}.")
    return said


def _restored(
    said: dict[str, Any], tensors: dict[str, Tensor], process: Process | None, where: str
) -> Denoiser | Preconditioned:
    """Return the denoiser of a description, after comparing its process with the stored moments."""
    net = _restore_net(said["net"], tensors, where)
    stored: Any = restore(said["process"], where)
    preconditioned = "preconditioning" in said
    names = ("preconditioning",) if preconditioned else ("parameterisation", "clock")
    rest = [restore(said[name], where) for name in names]
    if not isinstance(stored, Process):
        raise ValueError(f"{where}: {stored!r} is stored as its process, and is none.")
    for each in (stored, *([process] if process is not None else [])):
        agree(each, said["moments"], where)
    whole: nn.Module = MeanPart(net) if said["mean_only"] else net
    return Preconditioned(whole, stored, rest[0]) if preconditioned else Denoiser(whole, stored, *rest)


_WHOLE = Whole(1, 1 << 20)
_UNET: dict[str, Kind] = {
    "in_channels": _WHOLE,
    "out_channels": Maybe(_WHOLE),
    "channels": _WHOLE,
    "multipliers": Row(_WHOLE),
    "blocks": Whole(1, 1000),
    "attention": Row(Whole(0), 0),
    "heads": _WHOLE,
    "dropout": Number(0, 1),
    "features": _WHOLE,
    "classes": Maybe(_WHOLE),
    "patch": Whole(1, 1024),
}


def _restore_net(said: Mapping[str, Any], tensors: dict[str, Tensor], where: str) -> nn.Module:
    """The network of a description with its tensors, which are compared before any memory is taken for it."""
    make, parts = _maker(said, where)
    if parts > len(tensors):
        raise ValueError(f"{where}: {parts} blocks are described, and there are only {len(tensors)} tensors.")
    with refused_by_name(where), torch.device("meta"):
        plan = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    have = {name: tuple(value.shape) for name, value in tensors.items()}
    if plan != have:
        name = min(name for name in {*plan, *have} if plan.get(name) != have.get(name))
        raise ValueError(
            f"{where}: its tensors do not fit the network it describes ({name} is {have.get(name, 'missing')}, and "
            f"should be {plan.get(name, 'left out')}); restore a copy."
        )
    with torch.random.fork_rng(devices=[]):
        net = make()
    net.load_state_dict(tensors)
    return net


def _maker(said: Mapping[str, Any], where: str) -> tuple[Callable[[], nn.Module], int]:
    """What makes the network of a description, and how many blocks it has at least."""
    if said["kind"] in ("ScoreUNet", "MagnitudeUNet"):
        architecture = restore(said["architecture"], where)
        if not isinstance(architecture, Architecture | MagnitudeArchitecture):
            raise ValueError(f"{where}: {shortened(architecture)} is stored as its architecture, and is none.")
        return lambda: build(architecture), len(architecture.widths) * architecture.blocks
    if said["kind"] == "UNet":
        if unknown := sorted(set(said["options"]) - set(_UNET)):
            raise ValueError(f"{where}: {unknown[0]} is not known of UNets; the file was written by a newer version.")
        options = read_entries(_UNET, said["options"], where, {"patch": 1, "classes": None})
        return lambda: UNet(**options), len(options["multipliers"]) * options["blocks"]
    raise ValueError(f"{where}: networks of kind {said['kind']!r} are not known here.")
