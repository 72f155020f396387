"""Folders of diffusers: model_index.json, unet/, scheduler/. They are read with or without diffusers installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dxdt.diffusion import Clock, Denoiser, Parameterisation, Process
from dxdt.interop.checkpoint import read_safetensors
from dxdt.interop.description import agree, moments_of
from dxdt.interop.diffusers_config import architecture_of, key_map
from dxdt.interop.diffusers_schedule import Training, training_of
from dxdt.interop.keys import load_weights, reading
from dxdt.interop.net import MeanPart, build, quiet
from dxdt.interop.unpickle import read_tensors
from dxdt.interop.wrap import Answering, assemble
from dxdt.ops.optional import require

__all__ = ["is_diffusers", "load_diffusers"]

_WEIGHTS = "diffusion_pytorch_model"
# Attention before diffusers 0.12.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_diffusers(path: Path) -> bool:
    """Whether `path` is such a folder, of a pipeline or of a network alone."""
    return path.is_dir() and any((path / name).exists() for name in ("model_index.json", "config.json", "unet"))


def load_diffusers(
    path: Path,
    *,
    process: Process | None = None,
    parameterisation: Parameterisation | None = None,
    clock: Clock | None = None,
    own: bool | None = None,
) -> Denoiser:
    """Read a pipeline's folder, or the folder of a network alone.

    Args:
        path: the folder.
        process: the diffusion of the training where the folder has no scheduler; with one it is compared.
        parameterisation, clock: what the network answers, and what it is told, where the scheduler does not say.
        own: build the network by dxdt (True) or by diffusers (False); by default dxdt where it can.

    Raises:
        ValueError: a file is missing, damaged, of an unknown kind, or contradicts another or `process`.
        ImportError: `own=False`, or a network that only diffusers knows, and diffusers is not installed.
    """
    where = str(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    config = _json(folder / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{where}: networks of class {config['_class_name']} are not read; UNet2DModel is.")
    with reading(where):
        training = _training(path)
        net = _network(folder, config, own)
    if training is None and process is None:
        raise ValueError(
            f"{where} has no scheduler/scheduler_config.json; pass process=..., parameterisation=... and clock=..."
        )
    if training is not None and process is not None:
        agree(process, moments_of(training.process), where)
    return quiet(assemble(net, training, process, parameterisation, clock))


def _training(path: Path) -> Training | None:
    """What the folder's scheduler says, or None without one."""
    for schedule in (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"):
        if schedule.exists():
            return training_of(_json(schedule), str(schedule))
    return None


def _network(folder: Path, config: Mapping[str, Any], own: bool | None) -> nn.Module:
    try:
        architecture = architecture_of(config, str(folder))
    except ValueError:
        if own or importlib.util.find_spec("diffusers") is None:
            raise
        own = False
    else:
        if own is not False:
            net = build(architecture)
            load_weights(net, key_map(architecture), _weights(folder), where=str(folder))
            return net if architecture.out_channels == architecture.in_channels else MeanPart(net)
    unet = require("diffusers", "interop").UNet2DModel.from_config(dict(config))
    try:
        unet.load_state_dict(_weights(folder))
    except RuntimeError as error:
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: its tensors do not fit its configuration ({message}).") from error
    return Answering(unet)


def _weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of the shards that an index names."""
    for name in (f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.fp16.safetensors"):
        if (folder / name).exists():
            return _modern(read_safetensors(folder / name)[0])
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if index.exists():
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(_json(index)["weight_map"].values())):
            if Path(name).name != name:
                raise ValueError(f"{index} names the shard {name!r}, which is outside its folder; it was refused.")
            tensors |= read_safetensors(folder / name)[0]
        return _modern(tensors)
    if (folder / f"{_WEIGHTS}.bin").exists():
        return _modern(read_tensors(folder / f"{_WEIGHTS}.bin"))
    raise ValueError(f"{folder} holds no {_WEIGHTS}.safetensors or .bin; fetch the weights.")


def _modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".attentions." in name:
            for old, new in _OLD.items():
                name = name.replace(old, new)
        found[name] = value
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing; fetch the folder again.")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration; fetch it again.")
    return content
