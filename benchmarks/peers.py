"""One solve by each library, prepared so that it can be timed and its answer compared."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.problems import Problem
from dxdt import __version__
from dxdt.diffeq import ODE, Dopri5, I, Solution, Tsit5, solve
from dxdt.ops.optional import require

__all__ = ["PEERS", "Answer", "Peer", "Run", "jax_device", "present", "wait"]

Run = Callable[[], Any]
"""Solves once (and differentiates), and waits for the result."""


@dataclass(frozen=True)
class Answer:
    """What a solve found and what it cost.

    Attributes:
        y: the end ``(batch, width)`` in float64.
        steps: attempted steps (of the sample with the most).
        evaluations: calls of the field in the forward pass.
    """

    y: np.ndarray
    steps: int
    evaluations: int


@dataclass(frozen=True)
class Peer:
    """A library, or one way to use it.

    Attributes:
        name: name on the command line.
        package: package that must be installed.
        forward: from a problem and a batch size to a run.
        both: the same with the derivatives of the summed end for y0 and all parameters.
        answer: one solve with its counts.
        eager: whether its operations can be counted.
    """

    name: str
    package: str
    forward: Callable[[Problem, int], Run]
    both: Callable[[Problem, int], Run]
    answer: Callable[[Problem, int], Answer]
    eager: bool = True

    @property
    def missing(self) -> str | None:
        """One line that says what to install, or None."""
        if importlib.util.find_spec(self.package) is not None:
            return None
        return f"{self.name} is not installed: run pip install '{self.package}' (or 'dxdt[bench]')"

    @property
    def version(self) -> str:
        """Version of the package."""
        if self.package == "dxdt":
            return __version__
        return importlib.metadata.version(self.package)


class _Counted(nn.Module):
    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field, self.calls, self.steps = field, 0, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.field(t, y)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.steps += 1


def _double(y: Tensor) -> np.ndarray:
    return y.detach().double().cpu().numpy()


def wait(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _torch_runs(
    end: Callable[[Problem, nn.Module, Tensor], Tensor],
) -> tuple[Callable[[Problem, int], Run], Callable[[Problem, int], Run]]:
    """Forward and both, from a function that gives the end of a solve."""

    def forward(problem: Problem, batch: int) -> Run:
        field, y0 = problem.field(), problem.start(batch)

        def run() -> None:
            with torch.no_grad():
                end(problem, field, y0)
            wait(problem.device)

        return run

    def both(problem: Problem, batch: int) -> Run:
        field, y0 = problem.field(), problem.start(batch).requires_grad_()
        wanted = (y0, *field.parameters())

        def run() -> None:
            torch.autograd.grad(end(problem, field, y0).sum(), wanted)
            wait(problem.device)

        return run

    return forward, both


def _ours(problem: Problem, field: nn.Module, y0: Tensor, **options: Any) -> Solution:
    solver = {"Tsit5": Tsit5, "Dopri5": Dopri5}[problem.pair]()
    control = I(problem.tol, problem.tol)
    span = (0.0, problem.t1)
    return solve(
        ODE(field),
        y0,
        span,
        solver=solver,
        controller=control,
        max_steps=100_000,
        **options,
    )


def _our_answer(problem: Problem, batch: int, **options: Any) -> Answer:
    with torch.no_grad():
        sol = _ours(problem, problem.field(), problem.start(batch), **options)
    # Two calls before the first step, and one for each stage of a step.
    return Answer(_double(sol.y1), sol.stats.steps, 2 + 6 * sol.stats.steps)


def _torchdiffeq(problem: Problem, field: nn.Module, y0: Tensor) -> Tensor:
    odeint = require("torchdiffeq", "bench").odeint
    t = torch.tensor([0.0, problem.t1], dtype=torch.float64, device=y0.device)
    return odeint(field, y0, t, rtol=problem.tol, atol=problem.tol, method="dopri5")[-1]


def _torchdiffeq_answer(problem: Problem, batch: int) -> Answer:
    field = _Counted(problem.field())
    with torch.no_grad():
        y = _torchdiffeq(problem, field, problem.start(batch))
    return Answer(_double(y), field.steps, field.calls)


def _torchode(problem: Problem, field: nn.Module, y0: Tensor) -> Any:
    to = require("torchode", "bench")
    term = to.ODETerm(field)
    method = {"Tsit5": to.Tsit5, "Dopri5": to.Dopri5}[problem.pair](term=term)
    control = to.IntegralController(atol=problem.tol, rtol=problem.tol, term=term)
    solver = to.AutoDiffAdjoint(method, control)
    zero = torch.zeros(len(y0), dtype=y0.dtype, device=y0.device)
    given = to.InitialValueProblem(y0=y0, t_start=zero, t_end=zero + problem.t1)
    return solver.solve(given)


def _torchode_answer(problem: Problem, batch: int) -> Answer:
    field = _Counted(problem.field())
    with torch.no_grad():
        sol = _torchode(problem, field, problem.start(batch))
    return Answer(_double(sol.ys[:, -1]), int(sol.stats["n_steps"].max()), field.calls)


def jax_device(jax: Any, device: str) -> Any:
    """JAX's name of a device.

    Raises:
        RuntimeError: this JAX has none of the kind.
    """
    return jax.devices("cpu" if device == "cpu" else "gpu")[0]


def _jax_parts(problem: Problem, batch: int) -> tuple[ModuleType, Any, Any, list[Any]]:
    jax = require("jax", "bench")
    jax.config.update("jax_enable_x64", True)
    field = problem.field()
    place = jax_device(jax, problem.device)
    numbers = [jax.device_put(p.detach().cpu().numpy(), place) for p in field.parameters()]
    y0 = jax.device_put(problem.start(batch).cpu().numpy(), place)
    return jax, problem.to_jax(jax, numbers), y0, numbers


def _diffrax(problem: Problem, field: Any, y0: Any, numbers: list[Any]) -> Any:
    diffrax = require("diffrax", "bench")
    solver = {"Tsit5": diffrax.Tsit5, "Dopri5": diffrax.Dopri5}[problem.pair]()
    # The clock in the state's precision, as JAX has it without 64 bits.
    clock = np.dtype(y0.dtype).type
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        clock(0.0),
        clock(problem.t1),
        None,
        y0,
        args=numbers,
        stepsize_controller=diffrax.PIDController(rtol=problem.tol, atol=problem.tol),
        max_steps=4096,
    )


def _diffrax_forward(problem: Problem, batch: int) -> Run:
    jax, field, y0, numbers = _jax_parts(problem, batch)
    step = jax.jit(lambda y, p: _diffrax(problem, field, y, p).ys[-1])
    return lambda: step(y0, numbers).block_until_ready()


def _diffrax_both(problem: Problem, batch: int) -> Run:
    jax, field, y0, numbers = _jax_parts(problem, batch)
    loss = jax.grad(lambda y, p: _diffrax(problem, field, y, p).ys[-1].sum(), argnums=(0, 1))
    step = jax.jit(loss)
    return lambda: jax.block_until_ready(step(y0, numbers))


def _diffrax_answer(problem: Problem, batch: int) -> Answer:
    jax, field, y0, numbers = _jax_parts(problem, batch)

    def both(y: Any, p: list[Any]) -> Any:
        sol = _diffrax(problem, field, y, p)
        return sol.ys[-1], sol.stats["num_steps"]

    y, steps = jax.jit(both)(y0, numbers)
    return Answer(np.asarray(y, dtype=np.float64), int(steps), 2 + 6 * int(steps))


def _peers() -> dict[str, Peer]:
    eager = _torch_runs(lambda p, f, y: _ours(p, f, y).y1)
    compiled = _torch_runs(lambda p, f, y: _ours(p, f, y, compile=True).y1)
    diffeq = _torch_runs(_torchdiffeq)
    ode = _torch_runs(lambda p, f, y: _torchode(p, f, y).ys[:, -1])
    made = (
        Peer("dxdt", "dxdt", *eager, _our_answer),
        Peer(
            "dxdt-compiled",
            "dxdt",
            *compiled,
            lambda problem, batch: _our_answer(problem, batch, compile=True),
            eager=False,
        ),
        Peer("torchdiffeq", "torchdiffeq", *diffeq, _torchdiffeq_answer),
        Peer("torchode", "torchode", *ode, _torchode_answer),
        Peer("diffrax", "diffrax", _diffrax_forward, _diffrax_both, _diffrax_answer, eager=False),
    )
    return {peer.name: peer for peer in made}


PEERS = _peers()


def present(names: Sequence[str], console: Console) -> list[Peer]:
    """The peers of these names that are installed; the others are told.

    Raises:
        ValueError: a name is unknown.
    """
    chosen: list[Peer] = []
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peer '{name}' is unknown: choose among {', '.join(PEERS)}")
        missing = PEERS[name].missing
        if missing is None:
            chosen.append(PEERS[name])
        else:
            console.print(missing, style="yellow", highlight=False)
    return chosen
