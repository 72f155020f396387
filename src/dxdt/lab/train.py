"""Training: Adam with warm-up and cosine decay, an exponential moving average, exact resumption.

One generator feeds every random choice of the loss, and its state is part of the checkpoint, so
that an interrupted training goes on with the very losses it would have had.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dxdt.lab.files import load_checkpoint, save_checkpoint
from dxdt.lab.run import Run

Model = TypeVar("Model", bound=nn.Module)

_LOG_EVERY = 10


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate.
        warmup: steps over which it rises from zero; then it falls as a cosine.
        average: decay of the moving average of the weights, approached as (1 + n) / (10 + n).
        clip: largest norm of the gradient.
        save_every: steps between checkpoints.
        seed: names every random choice.
    """

    steps: int = 1000
    lr: float = 2e-3
    warmup: int = 100
    average: float = 0.998
    clip: float = 1.0
    save_every: int = 250
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


@final
class Trainee:
    """A model in training with all that a checkpoint must hold."""

    def __init__(self, model: nn.Module, settings: Training) -> None:
        self.model = model
        self.average = copy.deepcopy(model)
        self.settings = settings
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step = 0

    def advance(self, loss: Callable[[nn.Module, torch.Generator], Tensor]) -> Tensor:
        """Take one optimiser step on `loss(model, generator)` and return its value."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        value = loss(self.model, self.generator)
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        weight = 1 - min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for a, b in pairs:
                a.lerp_(b, weight)
            for a, b in zip(self.average.buffers(), self.model.buffers(), strict=True):
                a.copy_(b)
        return value.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state by name."""
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{slot}": value for slot, value in slots.items()}
        state["generator"] = self.generator.get_state()
        state["torch"] = torch.get_rng_state()
        return state

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam.").items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": slots})
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["torch"])
        self.step = step


def train(
    model: Model,
    loss: Callable[[Model, torch.Generator], Tensor],
    settings: Training,
    run: Run,
    name: str,
    *,
    quiet: bool = False,
) -> Model:
    """Train `model` and return its moving average; go on from the checkpoint `name`, if any.

    Args:
        model: trained in place.
        loss: of (model, generator), a scalar; draws all its randomness from the generator.
        settings: how.
        run: where checkpoints and the series `name` of the metrics go.
        name: of the checkpoint and the series.
        quiet: no progress bar.

    Raises:
        ValueError: the checkpoint is of a longer training than `settings.steps`, or broken.
        FloatingPointError: the loss is not finite.
    """
    trainee = Trainee(model, settings)
    path = run.checkpoint(name)
    if path.exists():
        tensors, about = load_checkpoint(path)
        if about["step"] > settings.steps:
            raise ValueError(
                f"{path} has taken {about['step']} steps, more than the {settings.steps} asked "
                "for; ask for more, or start over in another folder."
            )
        trainee.restore(tensors, about["step"])
        run.rewind(name, about["step"])
    bar = tqdm(total=settings.steps, initial=trainee.step, desc=name, disable=quiet)
    with bar:
        while trainee.step < settings.steps:
            value = trainee.advance(loss)  # pyright: ignore[reportArgumentType]
            bar.update()
            if trainee.step % _LOG_EVERY == 0 or trainee.step == settings.steps:
                _log(run, name, trainee, value, bar)
            if trainee.step % settings.save_every == 0 or trainee.step == settings.steps:
                save_checkpoint(path, trainee.tensors(), {"step": trainee.step})
    average = trainee.average.eval().requires_grad_(False)
    return average  # pyright: ignore[reportReturnType]


def _log(run: Run, name: str, trainee: Trainee, value: Tensor, bar: tqdm) -> None:
    number = value.item()
    if not math.isfinite(number):
        raise FloatingPointError(
            f"{name}: the loss is {number} at step {trainee.step}; "
            "lower the learning rate, or look for values in the data that are not finite."
        )
    bar.set_postfix(loss=f"{number:.4f}")
    run.log(name, step=trainee.step, loss=number, time=time.time())
