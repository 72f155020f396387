"""Checkpoints of score_sde_pytorch: {model, ema, optimizer, step}, written by torch.save.

The averaged weights (`ema`) are a list in the order of the model's trainable parameters; they replace those of
`model`. The optimiser is not looked at. What shapes cannot tell is said by arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffusion import VE, VP, Denoiser, Index, Noise, Process, Score, SubVP, Table, noise_to_signal
from dxdt.interop.keys import reading
from dxdt.interop.net import filled, quiet
from dxdt.interop.read import read_content
from dxdt.interop.score_sde_shapes import network_of
from dxdt.nn import Architecture

__all__ = ["Descending", "is_score_sde", "load_score_sde", "score_sde_weights"]


@final
@dataclass(frozen=True)
class Descending:
    """The clock of discrete noise levels counted downwards: round((1 - t) (levels - 1)).

    Source: Song and Ermon, "Generative modeling by estimating gradients of the data distribution" (2019), as
    score SDE continues it.
    """

    levels: int = 1000

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return the label, a whole number in float64."""
        return ((1 - t) * (self.levels - 1)).round()


def is_score_sde(content: Any) -> bool:
    """Whether `content`, read from a file, is such a checkpoint."""
    return isinstance(content, Mapping) and isinstance(content.get("model"), Mapping) and "ema" in content


def load_score_sde(
    path: Path,
    *,
    process: Process | None = None,
    architecture: Architecture | None = None,
    averaged: bool = True,
) -> Denoiser:
    """Read a checkpoint of score SDE.

    Args:
        path: the `.pth` file.
        process: the diffusion of its training. By default VE between the ends of the stored noise levels for
            networks with Fourier features, and VP for the others: name `SubVP()`, a discrete `VE(...)`, or
            `VP(Table...)` for discrete levels of VP yourself.
        architecture: where the one read off the shapes is not right, which cannot see filters inside blocks,
            rescaled sums or the range of images: `dataclasses.replace` the one of the loaded network.
        averaged: take the averaged weights.

    Raises:
        ValueError: the file is hostile, truncated, of another kind, or contradicts `process` or `architecture`.
    """
    return denoiser_of(read_content(path), str(path), process, architecture, averaged)


def denoiser_of(
    content: Any, where: str, process: Process | None, architecture: Architecture | None, averaged: bool
) -> Denoiser:
    """Return the denoiser of a checkpoint that was read."""
    if not is_score_sde(content):
        raise ValueError(f"{where} holds no model with averaged weights; it is no checkpoint of score SDE.")
    with reading(where):
        tensors, sigmas = score_sde_weights(content, where, averaged=averaged)
        shapes = network_of(tensors, where)
    fourier = shapes.architecture.divide
    process = _process(process, sigmas, fourier, where)
    a = shapes.architecture if architecture is None else architecture
    discrete = isinstance(process, VE) and not fourier
    if discrete and architecture is None:
        a = dataclasses.replace(a, centred=False)
    net = filled(a, lambda: shapes.keys, tensors, where)
    if fourier:
        return quiet(Denoiser(net, process, Score(), noise_to_signal))
    if discrete:
        if sigmas is None:
            raise ValueError(f"{where}: a network of discrete noise levels needs the levels, and the file has none.")
        return quiet(Denoiser(_Divided(net, sigmas), process, Score(), Descending(len(sigmas))))
    schedule = process.schedule if isinstance(process, VP) else None
    clock = Index.levels(schedule.levels) if isinstance(schedule, Table) else Index()
    return quiet(Denoiser(net, process, Noise(), clock))


def score_sde_weights(
    content: Mapping[str, Any], where: str, *, averaged: bool = True
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the model's tensors with the averaged ones laid over them, and the noise levels.

    Raises:
        ValueError: the averaged weights do not fit the model's parameters in number or shape.
    """
    tensors = {name.removeprefix("module."): value for name, value in content["model"].items()}
    sigmas = tensors.pop("sigmas", None)
    if not averaged:
        return tensors, sigmas
    # Frequencies of Fourier features are frozen, and the average holds what is trained.
    trained = [name for name in tensors if name != "all_modules.0.W"]
    shadows = content["ema"].get("shadow_params") if isinstance(content["ema"], Mapping) else None
    if not isinstance(shadows, list) or len(shadows) != len(trained):
        count = len(shadows) if isinstance(shadows, list) else 0
        raise ValueError(
            f"{where}: {count} averaged tensors do not fit {len(trained)} trained ones; "
            "pass averaged=False to use the weights as they were trained."
        )
    for name, value in zip(trained, shadows, strict=True):
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{where}: the averaged tensor for {name} has shape {tuple(value.shape)} instead of "
                f"{tuple(tensors[name].shape)}; pass averaged=False to use the weights as they were trained."
            )
        tensors[name] = value
    return tensors, sigmas


def _process(process: Process | None, sigmas: Tensor | None, fourier: bool, where: str) -> Process:
    """Return the process, after comparing a given one with what the file says."""
    ends = None if sigmas is None else (sigmas.min().item(), sigmas.max().item())
    if process is None:
        if not fourier:
            return VP()
        return VE() if ends is None else VE(*(float(f"{end:.9g}") for end in ends))
    if fourier and not isinstance(process, VE):
        raise ValueError(
            f"{where}: a network with Fourier features was trained on VE, not on {process!r}; leave the process out."
        )
    if isinstance(process, VP | SubVP):
        return process
    if not isinstance(process, VE):
        raise ValueError(f"{where}: score SDE does not train {process!r}; name VE, VP or SubVP.")
    given = (process.low, process.high)
    if ends is not None and any(abs(x - y) > 1e-6 * y for x, y in zip(given, ends, strict=True)):
        raise ValueError(
            f"{where}: its noise levels go from {ends[0]:g} to {ends[1]:g}, but {process!r} was given; "
            "leave the process out, or give the one it was trained on."
        )
    return process


@final
class _Divided(torch.nn.Module):
    """A network on discrete levels whose answer is divided by the level's noise."""

    sigmas: Tensor

    def __init__(self, net: torch.nn.Module, sigmas: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("sigmas", sigmas.float())

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return net(x, label) / sigma[label]."""
        sigma = self.sigmas[label.long()].to(x.dtype)
        return self.net(x, label) / sigma.reshape(*label.shape, *(1,) * (x.ndim - label.ndim))
