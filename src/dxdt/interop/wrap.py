"""Objects of diffusers as denoisers: a network, or a pipeline with one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion import Clock, Denoiser, Index, Parameterisation, Preconditioned, Process
from dxdt.interop.diffusers_schedule import Training, training_of

__all__ = ["Answering", "assemble", "scheduler_config", "wrap"]

_NETWORKS = ("unet", "transformer")


@final
class Answering(nn.Module):
    """A network of diffusers called as denoisers call theirs: net(x, t, labels), answering with x's channels.

    Args:
        net: called as net(x, timestep=t, ...), its answer a tensor, a tuple that begins with one, or an object with
            the attribute `sample`; of as many channels as the input, or more where it answers a variance too.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        takes = inspect.signature(net.forward).parameters
        self.input = next(iter(takes))
        known = {self.input, "timestep", "class_labels"}
        needed = [n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        self.needed = tuple(name for name in needed if name not in known)
        config = getattr(net, "config", {})
        self.classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
        self.whole = config.get("time_embedding_type") == "learned"

    def forward(
        self, x: Float[Tensor, "batch n *shape"], t: Tensor, labels: Tensor | None = None, **condition: Any
    ) -> Float[Tensor, "batch n *shape"]:
        """Return the network's answer without its variance.

        Args:
            x: noised data.
            t: what the network is told about the time, () or (batch,).
            labels: classes (batch,), for networks that have them.
            condition: anything else, under the names of the network, such as encoder_hidden_states.

        Raises:
            ValueError: the network needs classes or a condition that is not given.
        """
        kind = type(self.net).__name__
        if labels is not None:
            condition["class_labels"] = labels
        if self.classes and condition.get("class_labels") is None:
            raise ValueError(
                f"{kind} was trained with classes only, and none is given; pass labels=..., numbers from 0 to "
                f"{self.classes - 1}."
            )
        if missing := [name for name in self.needed if condition.get(name) is None]:
            raise ValueError(
                f"{kind} is told {missing[0]}, which is not given; use Conditioned(denoiser, {missing[0]}=...), or "
                "pass it where the denoiser is called."
            )
        answer = self.net(**{self.input: x}, timestep=t.expand(x.shape[0]), **condition)
        answer = getattr(answer, "sample", answer)
        answer = answer[0] if isinstance(answer, tuple) else answer
        return answer[:, : x.shape[1]]


def wrap(
    model: Any,
    scheduler: Any = None,
    *,
    process: Process | None = None,
    parameterisation: Parameterisation | None = None,
    clock: Clock | None = None,
) -> Denoiser | Preconditioned:
    """Return a network of diffusers, already in memory, as a denoiser.

    Args:
        model: a network such as `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel`, or a pipeline with
            a unet or transformer, and a scheduler.
        scheduler: the scheduler of its training, or that scheduler's configuration; a pipeline brings its own.
        process, parameterisation, clock: instead of a scheduler, or where it does not say. With all three given the
            scheduler is not asked.

    What else the network is told travels by its own names: `Conditioned(denoiser, encoder_hidden_states=...)`, or
    keywords where the denoiser is called; classes are `labels`. What the scheduler says about sampling (clipping,
    spacing, orders) is not taken over: the score stays exact. Latent models answer in latent space.

    Raises:
        ValueError: there is no network, neither a scheduler nor a process, or the scheduler is not known.
    """
    net = _network(model)
    scheduler = getattr(model, "scheduler", None) if scheduler is None else scheduler
    if scheduler is None and process is None:
        raise ValueError(
            "wrap: the network alone does not say what it was trained on; pass its scheduler, or process=..., "
            "parameterisation=... and clock=..."
        )
    training = None
    if scheduler is not None and (process is None or parameterisation is None or clock is None):
        training = training_of(scheduler_config(scheduler), "wrap")
    return assemble(Answering(net), training, process, parameterisation, clock)


def _network(model: Any) -> nn.Module:
    """The network of a pipeline, or the model itself."""
    found = [part for name in _NETWORKS if isinstance(part := getattr(model, name, None), nn.Module)]
    if isinstance(model, nn.Module):
        return model
    if len(found) != 1:
        parts = getattr(model, "components", {})
        there = ", ".join(f"{name} ({type(part).__name__})" for name, part in parts.items()) or "no such parts"
        raise ValueError(
            f"wrap: a {type(model).__name__} has {there}, and not one network under unet or transformer; pass the "
            "network itself, and its scheduler."
        )
    return found[0]


def scheduler_config(scheduler: Any) -> Mapping[str, Any]:
    """Return the configuration of a scheduler of diffusers, with the name of its class."""
    if isinstance(scheduler, Mapping):
        return scheduler
    return {**dict(scheduler.config), "_class_name": type(scheduler).__name__}


def assemble(
    net: nn.Module,
    training: Training | None,
    process: Process | None,
    parameterisation: Parameterisation | None,
    clock: Clock | None,
) -> Denoiser | Preconditioned:
    """Return the denoiser, what was given before what the scheduler says."""
    if training is not None:
        process = training.process if process is None else process
        if training.preconditioning is not None and parameterisation is None and clock is None:
            return Preconditioned(net, process, training.preconditioning)
        parameterisation = training.parameterisation if parameterisation is None else parameterisation
        clock = training.clock if clock is None else clock
    assert process is not None
    if isinstance(net, Answering) and net.whole and isinstance(clock, Index):
        clock = dataclasses.replace(clock, whole=True)
    return Denoiser(net, process, parameterisation, clock)
