"""Objects of diffusers as denoisers: a UNet2DModel, or a pipeline with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion import Clock, Denoiser, Parameterisation, Process, log_snr
from dxdt.interop.diffusers_schedule import Training, training_of

__all__ = ["Answering", "wrap"]


@final
class Answering(nn.Module):
    """A network of diffusers called as denoisers call theirs: net(x, t, labels), answering with x's channels.

    Args:
        unet: its answer has the attribute `sample`, of as many channels as the input, or twice as many where it
            answers a variance too.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Float[Tensor, "batch n *shape"], t: Tensor, labels: Tensor | None = None
    ) -> Float[Tensor, "batch n *shape"]:
        """Return the network's answer without its variance."""
        options = {} if labels is None else {"class_labels": labels}
        return self.unet(x, t.expand(x.shape[0]), **options).sample[:, : x.shape[1]]


def wrap(
    model: Any,
    scheduler: Any = None,
    *,
    process: Process | None = None,
    parameterisation: Parameterisation | None = None,
    clock: Clock | None = None,
) -> Denoiser:
    """Return a network of diffusers, already in memory, as a denoiser.

    Args:
        model: a `UNet2DModel`, or a pipeline with a unet and a scheduler.
        scheduler: the scheduler of its training, or that scheduler's configuration; a pipeline brings its own.
        process, parameterisation, clock: instead of a scheduler, or where it does not say.

    What the scheduler says about sampling (clipping, spacing, orders) is not taken over: the score stays exact.

    Raises:
        ValueError: there is neither a scheduler nor a process, or the scheduler is not known.
    """
    unet = getattr(model, "unet", model)
    scheduler = getattr(model, "scheduler", None) if scheduler is None else scheduler
    if scheduler is None and process is None:
        raise ValueError(
            "wrap: the network alone does not say what it was trained on; pass its scheduler, or process=..., "
            "parameterisation=... and clock=..."
        )
    training = None
    if scheduler is not None and (process is None or parameterisation is None or clock is None):
        training = training_of(_config(scheduler), "wrap")
    return assemble(Answering(unet), training, process, parameterisation, clock)


def _config(scheduler: Any) -> Mapping[str, Any]:
    if isinstance(scheduler, Mapping):
        return scheduler
    return {"_class_name": type(scheduler).__name__, **dict(scheduler.config)}


def assemble(
    net: nn.Module,
    training: Training | None,
    process: Process | None,
    parameterisation: Parameterisation | None,
    clock: Clock | None,
) -> Denoiser:
    """Return the denoiser, what was given before what the scheduler says."""
    if training is not None:
        process = training.process if process is None else process
        parameterisation = training.parameterisation if parameterisation is None else parameterisation
        clock = training.clock if clock is None else clock
    assert process is not None
    return Denoiser(net, process, parameterisation, log_snr if clock is None else clock)
