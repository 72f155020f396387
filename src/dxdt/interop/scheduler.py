"""Our solvers where diffusers expects a scheduler.

A scheduler is handed one answer of the network at a time; a solver asks for answers when it needs them. The solve
therefore runs in a thread of its own, which waits for every answer: any solver works, however many it needs in a
step, and its noise is named by a seed.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffusion import Clock, Denoiser, Index, Parameterisation, Posterior, Process, integrate
from dxdt.interop.diffusers_schedule import training_of

__all__ = ["Scheduler", "SchedulerStep"]


@final
@dataclass(frozen=True)
class SchedulerStep:
    """What `Scheduler.step` answers.

    Attributes:
        prev_sample: where the network is asked next; after the last answer, the clean sample.
        pred_original_sample: E[x_0 | x_t] at the sample of this step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class _Stopped(Exception):
    """The solve is not wanted any more."""


@final
class _Asking:
    """A denoiser whose network is whoever reads the outbox and fills the inbox."""

    def __init__(self, process: Process, parameterisation: Parameterisation, clock: Clock) -> None:
        self.denoiser = Denoiser(self._ask, process, parameterisation, clock)
        self.inbox: queue.Queue[Tensor | None] = queue.Queue()
        self.outbox: queue.Queue[tuple[str, Any, Any]] = queue.Queue()
        self.data: Tensor | None = None

    @property
    def process(self) -> Process:
        """The diffusion that is reversed."""
        return self.denoiser.process

    def _ask(self, x: Tensor, told: Tensor) -> Tensor:
        self.outbox.put(("ask", x, told))
        answer = self.inbox.get()
        if answer is None:
            raise _Stopped
        return answer

    def __call__(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return the answer, and keep its data."""
        answer = self.denoiser(x, t, mu)
        self.data = answer.data
        return answer

    def run(self, x1: Tensor, t0: float, grad: bool, options: dict[str, Any]) -> None:
        """Solve from the prior and denoise at the end; leave the result, or the failure, in the outbox."""
        try:
            with torch.set_grad_enabled(grad):
                x = integrate(self, x1, t0=t0, **options).y1
                self.outbox.put(("done", self(x, torch.tensor(t0, dtype=torch.float64, device=x.device)).data, None))
        except _Stopped:
            pass
        except BaseException as error:
            self.outbox.put(("failed", error, None))


@final
class Scheduler:
    """A solver of the reverse equation with the interface of diffusers' schedulers.

    Args:
        process: the diffusion of the network's training.
        parameterisation: what the network answers.
        clock: what it is told about the time; those become the timesteps.
        solver, tau, options: as in `dxdt.diffusion.integrate`.
        t0: where the solver stops; one more answer there gives the clean sample.

    Attributes:
        timesteps: what the network is told, one entry for each answer that the solver needs.
        init_noise_sigma: standard deviation of the prior, by which to multiply unit noise.

    `Scheduler.like(scheduler, solver=...)` takes the training's schedule from a scheduler of diffusers. Works in
    `diffusers.DDPMPipeline` and in loops of one's own: set_timesteps(steps), then step(...) for every timestep.
    """

    order = 1

    def __init__(
        self,
        process: Process,
        parameterisation: Parameterisation,
        clock: Clock,
        *,
        solver: Any = None,
        tau: float = 0.0,
        t0: float = 1e-3,
        **options: Any,
    ) -> None:
        self.process, self.parameterisation, self.clock = process, parameterisation, clock
        self.t0 = t0
        self.options: dict[str, Any] = {"solver": solver, "tau": tau, **options}
        self.config: dict[str, Any] = {"_class_name": "Scheduler", "tau": tau, "t0": t0}
        self.init_noise_sigma = process.prior_std
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self._asking: _Asking | None = None
        self._place = 0

    @classmethod
    def like(cls, scheduler: Any, **options: Any) -> Scheduler:
        """Return one for networks that were trained under a scheduler of diffusers, or its configuration.

        Raises:
            ValueError: the scheduler is not known.
        """
        config = scheduler
        if not isinstance(scheduler, Mapping):
            config = {"_class_name": type(scheduler).__name__, **dict(scheduler.config)}
        training = training_of(config, "Scheduler")
        return cls(training.process, training.parameterisation, training.clock, **options)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Plan a solve of `num_inference_steps` steps; forget one that is under way.

        Raises:
            ValueError: there are no steps.
        """
        self._stop()
        self.num_inference_steps = num_inference_steps
        told: list[Tensor] = []

        def listening(x: Tensor, t: Tensor) -> Tensor:
            told.append(t.detach().double().reshape(-1)[:1].cpu())
            return torch.zeros_like(x)

        # A solve of one number shows which answers the solver will ask for.
        rehearsal = Denoiser(listening, self.process, self.parameterisation, self.clock)
        with torch.no_grad():
            x = integrate(rehearsal, torch.ones(1, 1, dtype=torch.float64), t0=self.t0, **self._options(0)).y1
            rehearsal(x, torch.tensor(self.t0, dtype=torch.float64))
        self.timesteps = torch.cat(told).float().to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample: networks are asked at x_t itself."""
        del timestep
        return sample

    def step(
        self,
        model_output: Float[Tensor, "batch n *shape"],
        timestep: Any,
        sample: Float[Tensor, "batch m *shape"],
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **unused: Any,
    ) -> SchedulerStep | tuple[Tensor, ...]:
        """Take one answer of the network, given at `sample`, and return where to ask next.

        Args:
            model_output: the answer; more channels than the sample's (a variance) are left out.
            timestep: the entry of `timesteps` that the network was told.
            sample: where it was asked; the first one starts the solve.
            generator: names the noise of the solve, on the first step.
            return_dict: return a `SchedulerStep`; otherwise a tuple.
            unused: options of other schedulers, such as eta.

        Raises:
            ValueError: there is no plan, or the timestep is not the next one.
        """
        del unused
        if self._place >= len(self.timesteps):
            raise ValueError("Scheduler: no timestep is left; call set_timesteps(steps) before a solve.")
        expected = self.timesteps[self._place]
        if abs(float(timestep) - expected.item()) > 1e-4 * (1 + expected.abs().item()):
            raise ValueError(
                f"Scheduler: step at timestep {float(timestep):g}, but the solver waits for {expected.item():g}; "
                "go through scheduler.timesteps in order."
            )
        if self._asking is None:
            self._start(sample, generator)
        asking = self._asking
        assert asking is not None
        asking.inbox.put(model_output[:, : sample.shape[1]])
        self._place += 1
        answered, data = self._wait(asking), asking.data
        if self._place == len(self.timesteps):
            self._asking, data = None, answered
        assert data is not None
        return SchedulerStep(answered, data) if return_dict else (answered, data)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return a x_0 + c eps at the given timesteps (batch,).

        Raises:
            ValueError: the clock is not an `Index`, so that timesteps do not say the time.
        """
        if not isinstance(self.clock, Index):
            raise ValueError(f"Scheduler: timesteps of {self.clock!r} do not say the time; use process.perturb.")
        t = (timesteps.double() - self.clock.offset) / self.clock.scale
        return self.process.perturb(original_samples, t.to(original_samples.device), noise)

    def __len__(self) -> int:
        return len(self.timesteps)

    def _options(self, seed: int) -> dict[str, Any]:
        return {"steps": self.num_inference_steps, "seed": seed, **self.options}

    def _start(self, sample: Tensor, generator: torch.Generator | None) -> None:
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        asking = _Asking(self.process, self.parameterisation, self.clock)
        arguments = (sample, self.t0, torch.is_grad_enabled(), self._options(seed))
        threading.Thread(target=asking.run, args=arguments, name="dxdt scheduler", daemon=True).start()
        self._asking = asking
        # A solve that is abandoned half-way must not keep its thread.
        weakref.finalize(self, asking.inbox.put, None)
        self._wait(asking)

    @staticmethod
    def _wait(asking: _Asking) -> Tensor:
        """Return what the solve asks about next, or its result."""
        kind, value, _ = asking.outbox.get()
        if kind == "failed":
            raise value
        return value

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.inbox.put(None)
        self._asking, self._place = None, 0
