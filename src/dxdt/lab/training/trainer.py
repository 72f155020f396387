"""Training: Adam with warm-up, moving averages, any number of processes, exact resumption.

Every random choice of a step is named by the seed, the step and the place in the batch
(`dxdt.lab.data.batch_rng`), so a checkpoint is weights, averages, Adam's moments and a step; an interrupted
training goes on with the very losses it would have had, and several processes make the losses of one.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dxdt.lab.data.batch_rng import Draws, stream
from dxdt.lab.runs.bar import progress_bar
from dxdt.lab.runs.files import load_checkpoint, save_checkpoint
from dxdt.lab.runs.run import Run
from dxdt.lab.runs.tensorboard import EventWriter
from dxdt.lab.training.ema import Averages, whole
from dxdt.lab.training.settings import Training
from dxdt.ops.optional import require

__all__ = ["Loss", "Stopped", "Trainer", "processes", "train"]

Model = TypeVar("Model", bound=nn.Module)
Loss = Callable[[Any, Draws], Tensor]
"""The mean loss of the samples that `Draws` names, given the model."""

# The first process alone gets the state to write it; every process reads it back from the file.
_WRITTEN = StateDictOptions(full_state_dict=True, cpu_offload=True)
_READ = StateDictOptions(full_state_dict=True)


class Stopped(KeyboardInterrupt):
    """A training that was interrupted and has written its state; the message says how it goes on."""


def _on_cpu() -> bool:
    # Without being told, accelerate takes processes that torchrun starts without accelerators for strangers.
    return not torch.accelerator.is_available()


def processes() -> Any:
    """Return accelerate's state of the processes that share this run, begun where it has not."""
    return require("accelerate", "lab").PartialState(cpu=_on_cpu())


@final
class Trainer:
    """A model in training with all that a checkpoint must hold.

    Attributes:
        model: as prepared for the devices.
        plain: the model itself.
        averages: of its parameters.
        step: optimiser steps taken.
    """

    def __init__(self, model: nn.Module, settings: Training) -> None:
        self.settings = settings
        accelerate = require("accelerate", "lab")
        # The state is one for the whole session and holds the precision of the first training, not of this one.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=False)
        self.accelerator: Any = accelerate.Accelerator(mixed_precision=settings.precision, cpu=_on_cpu())
        share = settings.batch // self.accelerator.num_processes
        if share * self.accelerator.num_processes != settings.batch or share % settings.accumulate:
            raise ValueError(
                f"Training: a batch of {settings.batch} does not divide among {self.accelerator.num_processes} "
                f"processes in {settings.accumulate} parts; choose a multiple of both."
            )
        self.template = copy.deepcopy(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
        if settings.compile:
            model.compile()
        self.model, wrapped = self.accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.Optimizer = wrapped.optimizer
        self._wrapped = wrapped
        self.plain: nn.Module = self.accelerator.unwrap_model(self.model)
        self.averages = Averages(self.plain, settings.average)
        first = share * self.accelerator.process_index
        self._rows = torch.arange(first, first + share)
        self.step = 0

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.accelerator.is_main_process

    def _parts(self) -> Iterator[tuple[Draws, AbstractContextManager[Any]]]:
        s = self.settings
        parts = Draws(s.seed, self.step, self._rows, s.batch).split(s.accumulate)
        for k, draws in enumerate(parts):
            # Gradients travel between processes once, with the last part.
            alone = self.accelerator.no_sync(self.model) if k < len(parts) - 1 else nullcontext()
            yield draws, alone

    def advance(self, loss: Loss) -> Tensor:
        """Take one optimiser step on `loss(model, draws)` and return its value for this process."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(self.step)
        # Whatever the model draws by itself (dropout) is named by the step too.
        torch.manual_seed(stream(s.seed, f"{self.step}.{self.accelerator.process_index}") >> 1)
        total = torch.zeros((), device=self.accelerator.device)
        for draws, alone in self._parts():
            with alone:
                value = loss(self.model, draws) / s.accumulate
                self.accelerator.backward(value)
            total += value.detach()
        self.accelerator.clip_grad_norm_(self.model.parameters(), s.clip)
        self._wrapped.step()
        self._wrapped.zero_grad()
        self.step += 1
        self.averages.update(self.plain, self.step, s.batch)
        return total

    def averaged(self, index: int = 0) -> nn.Module:
        """Return a copy of the model with the averaged parameters; every process must ask."""
        model = copy.deepcopy(self.template).to(self.accelerator.device)
        return self.averages.fill(model, self.plain, index).eval().requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state by name, to the first process; every process must ask."""
        model: dict[str, Any] = get_model_state_dict(self.plain, options=_WRITTEN)
        adam: dict[str, Any] = dict(get_optimizer_state_dict(self.plain, self.optimizer, options=_WRITTEN))
        state: dict[str, Tensor] = {f"model.{k}": v for k, v in model.items()}
        for index, average in enumerate(self.averages.tensors):
            state |= {f"average.{index}.{k}": whole(v) for k, v in average.items()}
        for name, slots in adam.get("state", {}).items():
            state |= {f"adam.state.{name}.{slot}": value for slot, value in slots.items()}
        return state

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave."""

        def part(prefix: str) -> dict[str, Any]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        set_model_state_dict(self.plain, part("model."), options=_READ)
        for index in range(len(self.averages.tensors)):
            self.averages.restore(index, part(f"average.{index}."))
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in part("adam.state.").items():
            name, slot = key.rsplit(".", 1)
            moments.setdefault(name, {})[slot] = value
        whole_state: Any = {**get_optimizer_state_dict(self.plain, self.optimizer, options=_READ), "state": moments}
        set_optimizer_state_dict(self.plain, self.optimizer, whole_state, options=_READ)
        self.step = step


def train(
    model: Model,
    loss: Loss,
    settings: Training,
    run: Run,
    name: str,
    *,
    about: dict[str, Any] | None = None,
    watch: Callable[[Trainer], None] | None = None,
    board: Path | None = None,
    quiet: bool = False,
) -> Model:
    """Train `model` and return its (first) moving average; go on from the checkpoint `name`, if any.

    Args:
        model: trained in place.
        loss: of (model, draws), the mean over the samples that `draws` names, which also give all
            its randomness.
        settings: how.
        run: where checkpoints and the series `name` of the metrics go.
        name: of the checkpoint and the series.
        about: plain values kept in the checkpoint's header.
        watch: called on every process after each checkpoint.
        board: folder for TensorBoard's events; none by default.
        quiet: no progress bar.

    Raises:
        ValueError: the checkpoint is of a longer training than `settings.steps`, or broken, or the
            batch does not divide among the processes.
        FloatingPointError: the loss is not finite.
        Stopped: an interrupt (Ctrl-C) came; the step was finished and a checkpoint written. A second one stops at once.
    """
    trainer = Trainer(model, settings)
    path = run.checkpoint(name)
    if path.exists():
        tensors, header = load_checkpoint(path)
        if header["step"] > settings.steps:
            raise ValueError(
                f"{path} has taken {header['step']} steps, more than the {settings.steps} asked "
                "for; ask for more, or start over in another folder."
            )
        trainer.restore(tensors, header["step"])
        if trainer.main:
            run.rewind(name, header["step"])
    if trainer.main:
        run.adopt()
    bar = progress_bar(
        settings.steps * settings.batch,
        name,
        "sample",
        initial=trainer.step * settings.batch,
        unit_scale=True,
        quiet=quiet or not trainer.main,
    )
    events = EventWriter(board, trainer.step + 1) if board is not None and trainer.main else None
    with bar, _own_randomness(trainer), _asked_to_stop(trainer) as stop:
        if watch is not None and trainer.step == settings.steps:
            watch(trainer)  # a kill after the last checkpoint may have lost it
        while trainer.step < settings.steps:
            value = trainer.advance(loss)
            bar.update(settings.batch)
            last = trainer.step == settings.steps
            if trainer.step % settings.log_every == 0 or last:
                _log(run, name, trainer, value, bar, events)
            stopped = stop.is_set() and not last
            if trainer.step % settings.save_every == 0 or last or stopped:
                state = trainer.tensors()
                if trainer.main:
                    save_checkpoint(path, state, {**(about or {}), "step": trainer.step})
                if watch is not None and not stopped:
                    watch(trainer)
            if stopped:
                raise Stopped(
                    f"stopped at step {trainer.step} of {settings.steps}, and saved in {path}; "
                    "the same command goes on from there."
                )
    if events is not None:
        events.close()
    average = trainer.averaged()
    return average  # pyright: ignore[reportReturnType]


@contextmanager
def _asked_to_stop(trainer: Trainer) -> Generator[Event]:
    """An event that the first interrupt sets, so that the step at hand is finished; the second one is as usual.

    With several processes an interrupt stops at once: they would have to agree on a step.
    """
    asked = Event()
    if trainer.accelerator.num_processes > 1 or current_thread() is not main_thread():
        yield asked
        return
    former = signal.getsignal(signal.SIGINT)

    def ask(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def _own_randomness(trainer: Trainer) -> Generator[None]:
    """Leave the caller's generators as they were."""
    device = trainer.accelerator.device
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        yield


def _log(run: Run, name: str, trainer: Trainer, value: Tensor, bar: Any, events: EventWriter | None) -> None:
    number = trainer.accelerator.reduce(value, "mean").item()
    if not math.isfinite(number):
        raise FloatingPointError(
            f"{name}: the loss is {number} at step {trainer.step}; "
            "lower the learning rate, or look for values in the data that are not finite."
        )
    bar.set_postfix(loss=f"{number:.4f}")
    if trainer.main:
        rate = trainer.settings.rate(trainer.step - 1)
        run.log(name, step=trainer.step, loss=number, lr=rate, time=time.time())
        if events is not None:
            events.add(trainer.step, loss=number, lr=rate)
