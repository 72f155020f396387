"""Folders of diffusers: model_index.json, unet/, scheduler/. They are read with or without diffusers installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dxdt.diffusion import Clock, Denoiser, Parameterisation, Preconditioned, Process
from dxdt.interop.description import agree, moments_of
from dxdt.interop.diffusers_config import architecture_of, checked, key_map
from dxdt.interop.diffusers_schedule import Training, training_of
from dxdt.interop.diffusers_weights import read_json, read_weights
from dxdt.interop.entries import Whole, shortened
from dxdt.interop.keys import matched, reading, renamed
from dxdt.interop.net import MeanPart, buildable, filled, quiet, refused_by_name
from dxdt.interop.wrap import Answering, assemble
from dxdt.ops.optional import require

__all__ = ["is_diffusers", "load_diffusers", "sample_shape"]


def is_diffusers(path: Path) -> bool:
    """Whether `path` is such a folder, of a pipeline or of a network alone."""
    names = ("model_index.json", "config.json", "unet", "unet_ema", "transformer")
    return path.is_dir() and any((path / name).exists() for name in names)


def load_diffusers(
    path: Path,
    *,
    process: Process | None = None,
    parameterisation: Parameterisation | None = None,
    clock: Clock | None = None,
    own: bool | None = None,
    averaged: bool = True,
    variant: str | None = None,
) -> Denoiser | Preconditioned:
    """Read a pipeline's folder, or the folder of a network alone.

    Args:
        path: the folder.
        process: the diffusion of the training where the folder has no scheduler; with one it is compared.
        parameterisation, clock: what the network answers, and what it is told, where the scheduler does not say.
            With all three given the scheduler is not asked.
        own: build the network by dxdt (True) or by diffusers (False); by default dxdt where it can.
        averaged: take averaged weights (`unet_ema`) where both are there.
        variant: which version of the weights, such as fp16 or non_ema.

    Raises:
        ValueError: a file is missing, damaged, of an unknown kind, or contradicts another or `process`.
        ImportError: `own=False`, or a network that only diffusers knows, and diffusers is not installed.
    """
    where = str(path)
    folder, config = _folder(path, averaged)
    with reading(where):
        training = None
        if process is None or parameterisation is None or clock is None:
            training = _training(path)
        net = _network(folder, config, own, averaged, variant)
    if training is None and process is None:
        raise ValueError(
            f"{where} has no scheduler/scheduler_config.json; pass process=..., parameterisation=... and clock=..."
        )
    if training is not None and process is not None:
        agree(process, moments_of(training.process), where)
    return quiet(assemble(net, training, process, parameterisation, clock))


def sample_shape(path: Path) -> tuple[int, int, int] | None:
    """Return channels, height and width of a folder's samples, or None where its configuration does not say."""
    _, config = _folder(path, True)
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    said: list[Any] = [channels, *(size if isinstance(size, list) and len(size) == 2 else (size, size))]
    if not all(Whole().fits(n) for n in said):
        return None
    channels, height, width = map(int, said)
    return channels, height, width


def _folder(path: Path, averaged: bool) -> tuple[Path, dict[str, Any]]:
    """The network's folder and configuration."""
    found = [path / name for name in ("unet_ema", "unet") if (path / name).is_dir()]
    if len(found) == 2:
        found = found if averaged else found[::-1]
        rest = "pass averaged=False for those of the last step" if averaged else "averaged=True takes the others"
        warnings.warn(f"{path} holds weights twice; those of {found[0].name} are taken ({rest}).", stacklevel=4)
    folder = found[0] if found else path
    if not found and not (path / "config.json").exists():
        raise _foreign_pipeline(path)
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(
            f"{folder}: networks of class {shortened(kind)} are not read; UNet2DModel is. Build it by diffusers, and "
            "give it to dxdt.interop.wrap(network, scheduler)."
        )
    return folder, config


def _foreign_pipeline(path: Path) -> ValueError:
    """What to say about a pipeline whose network is no U-Net."""
    said = read_json(path / "model_index.json") if (path / "model_index.json").exists() else {}
    parts = {name: value[1] for name, value in said.items() if isinstance(value, list) and len(value) == 2}
    named = ", ".join(f"{name} ({shortened(kind)})" for name, kind in list(parts.items())[:8])
    if not named:
        named = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    return ValueError(
        f"{path} holds no unet, but {named}; its network is not read from the folder: load the pipeline by diffusers, "
        "and give it to dxdt.interop.wrap(pipeline), or its network to wrap(network, scheduler)."
    )


def _training(path: Path) -> Training | None:
    """What the folder's scheduler says, or None without one."""
    for schedule in (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"):
        if schedule.exists():
            return training_of(read_json(schedule), str(schedule))
    return None


def _network(
    folder: Path, config: Mapping[str, Any], own: bool | None, averaged: bool, variant: str | None
) -> nn.Module:
    where = str(folder)
    options = checked(config, where)
    tensors = read_weights(folder, averaged=averaged, variant=variant)
    if options["layers_per_block"] * len(options["block_out_channels"]) > len(tensors):
        raise ValueError(
            f"{where}: layers_per_block={options['layers_per_block']} describes more blocks than the {len(tensors)} "
            "tensors of the weights; the configuration is damaged."
        )
    if own is not False:
        try:
            architecture = architecture_of(config, where)
            buildable(architecture, where)
        except ValueError:
            if own or importlib.util.find_spec("diffusers") is None:
                raise
        else:
            net = filled(architecture, lambda: key_map(architecture), tensors, where)
            return net if architecture.out_channels == architecture.in_channels else MeanPart(net)
    kind = require("diffusers", "interop").UNet2DModel
    with refused_by_name(where), torch.device("meta"):
        plan = kind.from_config(dict(config)).state_dict()
    ready = matched(plan, {name: renamed(name) for name in plan}, tensors, where=where)
    unet = kind.from_config(dict(config))
    unet.load_state_dict(ready)
    return Answering(unet)
