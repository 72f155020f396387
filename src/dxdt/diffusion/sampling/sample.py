"""Sampling: draw from the prior, solve the reverse equation, take the posterior mean at the end.

Noise is named by the seed and the place of a sample in the batch, never by the batch's size. Every sample
has a clock and a status of its own, so that one whose network answers NaN does not spoil the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq.control.controller import Grid
from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.entry import solve
from dxdt.diffeq.loop.save import Save
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.exponential.integrator import Exponential
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.status import Status
from dxdt.diffeq.solution import Solution
from dxdt.diffusion.denoisers.denoiser import Conditioned, DenoiserLike, check_end
from dxdt.diffusion.denoisers.network import home_of
from dxdt.diffusion.processes.process import Process
from dxdt.diffusion.sampling.checks import (
    ELSEWHERE,
    check_denoiser,
    check_landing,
    check_rules,
    check_shape,
    check_steps,
    usual_tau,
)
from dxdt.diffusion.sampling.grid import Angle, Given, Time, TimeGrid
from dxdt.diffusion.sampling.profile import Profile
from dxdt.diffusion.sampling.reverse import ReverseSDE, reverse
from dxdt.ops.opaque import opaque
from dxdt.ops.options import options_of, refuse_unknown
from dxdt.ops.random import normals
from dxdt.ops.tree import leaves
from dxdt.paths.driver import Onward
from dxdt.paths.increments import Increments

__all__ = ["Samples", "draw", "integrate", "prior_noise", "sample"]

_PRIOR = 0x5052494F52  # keeps the prior's draw apart from the path of the same seed


def prior_noise(
    shape: Sequence[int],
    seed: int,
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "*shape"]:
    """Return standard normals whose row k depends on (seed, first + k) only; half precision rounds float32 ones.

    Raises:
        ValueError: `shape` has no batch axis, or an empty one.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"sample: shape {tuple(shape)} is not a batch of samples; give (batch, *data shape).")
    row = torch.arange(first, first + shape[0], device=device)
    size = torch.Size(shape[1:]).numel()
    full = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    noise = normals(seed ^ _PRIOR, row, 0, size, dtype=full)
    return torch.as_tensor(noise).reshape(*shape).to(dtype)


@final
@dataclass(frozen=True)
class Samples:
    """Samples and what came with them.

    Attributes:
        x: (batch, *shape); NaN where a sample failed.
        evaluations: calls of the denoiser, the whole batch being one call.
        status: how each sample's solve ended.
        times: (steps + 1, batch), the times of the trajectory, from the prior down; None unless asked.
        path: (steps + 1, batch, *shape), x at these times; None unless asked.
    """

    x: Tensor
    evaluations: int
    status: list[Status] = field(repr=False)
    times: Tensor | None = field(default=None, repr=False)
    path: Tensor | None = field(default=None, repr=False)


def grid_for(process: Process, solver: Solver, t0: Any) -> TimeGrid:
    """Return the usual grid: `Angle` for exponential integrators that do not land, else even in time."""
    if not solver.facts.semilinear:
        return Time()
    end = torch.as_tensor(t0, dtype=torch.float64)
    return Angle() if bool(torch.isfinite(process.lam(end)).all()) else Time()


@opaque
def integrate(
    denoiser: DenoiserLike,
    x1: Float[Tensor, "batch *shape"],
    *,
    steps: int | None = None,
    grid: TimeGrid | None = None,
    tau: float | None = None,
    profile: Profile | None = None,
    solver: Solver | None = None,
    seed: int = 0,
    first: int = 0,
    t1: float | Float[Tensor, " batch"] | None = None,
    t0: float | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    mu: Tensor | None = None,
    **options: Any,
) -> Solution:
    """Solve the reverse equation from x_{t1} down to x_{t0}.

    Args:
        denoiser: any denoiser.
        x1: where to start: draws from the prior, or noised data at `t1`.
        steps: steps of the solver on `grid`; without it the solver chooses by `rtol` and `atol`.
        grid: where the steps lie, such as `LogSNR()` or `Karras()`; `Given(times)` needs no `steps`. By default
            `Angle()` for exponential integrators and even in time for other solvers.
        tau: 0 for the probability flow, 1 for the reverse SDE, or between; by default 1 for methods of stochastic
            equations and for ancestral sampling, 0 for other solvers.
        profile: where along the way there is noise, such as `Window(low, high)`; everywhere by default.
        solver: `Exponential(order=2)` with `steps`, `Tsit5()` without, by default.
        seed: names the random path, and the noise of solvers that bring their own.
        first: number of the first sample, so that many samples may be drawn in parts.
        t1: where x1 lies, one time or one for each sample; the end of the process by default.
        t0: where to stop; the process's own early time by default.
        mu: mean of the process, where it has one, of a shape that broadcasts to x1.
        options: anything else that `dxdt.solve` takes (save, progress, gradient, driver, ...); every sample has
            its own clock and status unless `per_sample=False`.

    Raises:
        ValueError: `steps` is below 1 or missing where it is needed, times are not inside the process, the
            grid does not fit it, `mu` does not fit x1, or `first` numbers samples that share one row of noise.
    """
    _check_call("integrate", denoiser, steps, grid, solver)
    refuse_unknown("integrate", options, options_of(solve), ELSEWHERE)
    tau = usual_tau(solver) if tau is None else tau
    process = denoiser.process
    known = steps is not None or isinstance(grid, Given)
    if not known and (grid is not None or tau > 0):
        cause = f"tau={tau} has noise, whose solvers take given steps" if grid is None else f"{grid} places steps"
        raise ValueError(f"integrate: {cause}; pass steps=500, say.")
    start, end = (t1, t0) if isinstance(grid, Given) else _ends(process, t1, t0, lands=known)
    if solver is None:
        solver = Exponential(order=2) if known else Tsit5()
    mu = _mean(process, x1, mu)
    options.setdefault("per_sample", True)
    equation = reverse(denoiser, tau, mu, profile)
    if tau > 0 or solver.facts.stochastic:
        options["driver"] = _from(first, options.get("driver", Increments(seed)), options["per_sample"])
        equation = ReverseSDE(denoiser, tau, mu, profile)
    times = _times(process, solver, steps, grid, start, end)
    opened = 0
    if process.prior_std == 0 and float(times[0].max()) == process.t1:
        x1, times = _open(denoiser, x1, times, (seed, first), mu)
        opened = 1
    check_landing(solver, equation, x1, times[-1])
    if known:
        options.setdefault("controller", Grid(times.numpy()))
        options.setdefault("max_steps", len(times) - 1)
    else:
        options.setdefault("controller", PID(rtol, atol))
    solved = solve(equation, x1, (times[0], times[-1]), solver=solver, **options)
    stats = replace(solved.stats, evaluations=solved.stats.evaluations + opened)
    return replace(solved, stats=stats) if opened else solved


@opaque
def draw(
    denoiser: DenoiserLike,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    grid: TimeGrid | None = None,
    tau: float | None = None,
    profile: Profile | None = None,
    solver: Solver | None = None,
    seed: int = 0,
    first: int = 0,
    t0: float | None = None,
    mu: Tensor | None = None,
    denoise: bool = True,
    temperature: float = 1.0,
    trajectory: bool = False,
    condition: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **options: Any,
) -> Samples:
    """Draw samples of the data, and say what it took.

    Args:
        shape: (batch, *data shape).
        steps: how often a sample moves, the last move being the final denoising where there is one.
        t0: where to stop, or to denoise; the process's own early time by default, or earlier on the way where
            the default grid of few steps is better used so.
        denoise: end with E[x_0 | x_{t0}] instead of x_{t0}: one evaluation, and one of the `steps`.
        temperature: factor of the prior's standard deviation; below one, samples are more typical and less
            diverse.
        trajectory: keep x at every step.
        condition: what else the network is told, by name, such as {"labels": y}; tensors have one row for each sample.
        dtype, device: of the samples; by default those of the network, in float32 at least.
        denoiser, grid, tau, profile, solver, seed, first, mu, options: as in `integrate`.

    Raises:
        ValueError: as `integrate`, or the temperature is not positive.
    """
    _check_call("sample", denoiser, steps, grid, solver)
    check_shape("sample", shape)
    refuse_unknown("sample", options, _options(), ELSEWHERE)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"sample: temperature={temperature} is no scale of the prior; give a positive number.")
    check_end(denoiser)
    if condition is not None:
        denoiser = Conditioned(denoiser, **condition)
    own_dtype, own_device = home_of(denoiser) or (torch.float32, None)
    dtype = torch.promote_types(own_dtype, torch.float32) if dtype is None else dtype
    device = own_device if device is None else device
    wanted = options.get("gradient") is not None or _requires_gradient((mu, condition, options))
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        process = denoiser.process
        prior = process.prior(_mean(process, torch.empty(*shape, device="meta"), mu))
        x = prior.sample(temperature * prior_noise(shape, seed, first=first, dtype=dtype, device=device))
        end: Any = process.t1
        found = None
        if denoise and steps is not None and steps > 1 and grid is None and t0 is None and _exponential(solver):
            t0 = Angle().before_data(process, steps)
        if not (denoise and steps == 1):
            moves = None if steps is None else steps - denoise
            if trajectory:
                options["save"] = Save(start=True, steps=True)
            asked: dict[str, Any] = dict(
                steps=moves, grid=grid, tau=tau, profile=profile, solver=solver, seed=seed, first=first, t0=t0, mu=mu
            )
            solved = integrate(denoiser, x, **asked, **options)
            found, x, end = solved, solved.y1, _last(solved, grid, process.t0 if t0 is None else t0)
        if denoise and float(end) > 0:
            at = torch.full((len(x),), float(end), dtype=torch.float64, device=x.device)
            x = denoiser(x, at, _mean(process, x, mu)).data
        return _gathered(x, found, extra=int(denoise and float(end) > 0), trajectory=trajectory)


@opaque
def sample(denoiser: DenoiserLike, shape: Sequence[int], **options: Any) -> Float[Tensor, "*shape"]:
    """Draw samples of the data; `draw` says besides how many evaluations they took, and keeps trajectories.

    Args:
        denoiser: any denoiser.
        shape: (batch, *data shape).
        options: as in `draw`: steps, grid, tau, solver, seed, t0, mu, denoise, temperature, dtype, device, and
            anything that `dxdt.solve` takes.

    No gradient is tracked unless a rule is given (`gradient=dxdt.Direct()`, say), or something given requires one.

    Raises:
        TypeError: no denoiser, no shape, a word in place of an object, or an option that there is not.
        ValueError: as `draw`.
    """
    if options.pop("trajectory", False):
        raise ValueError("sample: a trajectory does not fit into one tensor of samples; use draw(trajectory=True).")
    return draw(denoiser, shape, **options).x


def _requires_gradient(given: Any) -> bool:
    """Whether a tensor among what was given requires a gradient."""
    return any(isinstance(x, Tensor) and x.requires_grad for x in leaves(given))


def _exponential(solver: Solver | None) -> bool:
    """Whether a solver of known steps is an exponential integrator."""
    return solver is None or solver.facts.semilinear


def _options() -> tuple[str, ...]:
    """Everything that drawing samples can be told."""
    return (*options_of(draw), *options_of(integrate), *options_of(solve))


def _check_call(name: str, denoiser: Any, steps: Any, grid: Any, solver: Any) -> None:
    check_denoiser(name, denoiser)
    check_rules(solver, grid)
    check_steps(name, steps)


def _times(process: Process, solver: Solver, steps: int | None, grid: TimeGrid | None, start: Any, end: Any) -> Tensor:
    """Times of the steps, or both ends alone, (k,) or (k, batch)."""
    if steps is not None or isinstance(grid, Given):
        rule = grid_for(process, solver, end) if grid is None else grid
        return rule(process, steps, start, end)  # pyright: ignore[reportArgumentType]
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(t, dtype=torch.float64) for t in (start, end))))


def _ends(process: Process, t1: Any, t0: Any, lands: bool) -> tuple[Any, Any]:
    """Both ends of the solve, checked."""
    start = process.t1 if t1 is None else t1
    earliest = float(torch.as_tensor(start).min())
    end = min(process.t0, 0.5 * earliest) if t0 is None else t0
    if end == 0 and not lands:
        raise ValueError(
            "integrate: t0=0 is where the flow is singular; stop above it, or give steps and a solver that lands on "
            "the data, such as Exponential()."
        )
    if not (0 <= end < earliest and float(torch.as_tensor(start).max()) <= process.t1):
        raise ValueError(
            f"integrate: times from t1={start} to t0={end:g} are not inside {type(process).__name__}; "
            f"choose 0 <= t0 < t1 <= {process.t1:g}."
        )
    return start, end


def _mean(process: Process, x: Tensor, mu: Tensor | None) -> Tensor | None:
    """`mu` shaped like x, checked."""
    if mu is None:
        return None
    try:
        fits = torch.broadcast_shapes(mu.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{type(process).__name__}: mu of shape {tuple(mu.shape)} does not fit data of shape {tuple(x.shape)}; "
            "give one mean for each sample, or one for all."
        )
    return mu.expand(x.shape)


def _from(first: int, driver: Any, per_sample: bool) -> Any:
    """The driver whose first row is that of sample number `first`."""
    if first == 0:
        return driver
    if not per_sample:
        raise ValueError(
            f"integrate: first={first} numbers samples, which share one row of noise with per_sample=False; "
            "leave one of the two out."
        )
    return Onward(driver, first)


def _open(
    denoiser: DenoiserLike, x1: Tensor, times: Tensor, named: tuple[int, int], mu: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Leave the point in which a bridge ends: draw from its kernel at the second time, given what is known.

    The flow is singular at the point, from which all data are equally far, and a denoiser may divide by a = 0
    there; it is asked a thousandth of the span before. A solve without given steps leaves the point as far.
    """
    process = denoiser.process
    near = times[0] + 1e-3 * (times[-1] - times[0])
    rest = times[1:] if len(times) > 2 else torch.stack((near, times[1]))
    guess = denoiser(x1, near.to(x1.device).expand(len(x1)), mu).data
    seed, first = named
    noise = prior_noise(x1.shape, seed, first=first, dtype=x1.dtype, device=x1.device)
    return process.perturb(guess, rest[0].to(x1.device).expand(len(x1)), noise, mu), rest


def _last(solved: Solution, grid: TimeGrid | None, t0: float) -> float:
    """The time at which a solve was to end."""
    return float(torch.as_tensor(grid.times)[-1].max()) if isinstance(grid, Given) else t0


def _gathered(x: Tensor, solved: Solution | None, extra: int, trajectory: bool) -> Samples:
    """The result, with a warning where the last answer loses a sample that the solve did not."""
    if solved is None:
        return _watched(Samples(x, extra, [Status.SUCCESS] * len(x)))
    status = solved.status if isinstance(solved.status, list) else [solved.status] * len(x)
    times, path = (solved.ts, solved.ys) if trajectory else (None, None)
    return _watched(Samples(x, solved.stats.evaluations + extra, status, times, path))


def _watched(samples: Samples) -> Samples:
    lost = ~torch.isfinite(samples.x.detach()).flatten(1).all(1)
    rows = [k for k in lost.nonzero().flatten().tolist() if samples.status[k].ok]
    if rows:
        named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        warnings.warn(
            f"sample: {len(rows)} of {len(samples.x)} samples are not finite (rows {named}); the others are unharmed. "
            "Look at what the network answers there.",
            stacklevel=4,
        )
    return samples
