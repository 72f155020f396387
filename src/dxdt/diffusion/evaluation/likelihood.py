"""Likelihoods: follow a datum to the prior along the probability flow, and count volume.

    log p(x) = log prior(x_{t1}) + integral from t0 to t1 of div(flow) dt

Discrete data get uniform noise as wide as a level, which makes the result a bound on the
probability of the levels themselves:

    log2 P(levels) >= E[ log2 p(x) ] + D log2(width of a level)

Source: Song et al., "Score-based generative modeling through SDEs" (2021), equation 39; Theis et
al., "A note on the evaluation of generative models" (2016), section 3.1 (dequantisation).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from dxdt.diffeq.control.pid import PID
from dxdt.diffeq.entry import solve
from dxdt.diffeq.methods.explicit import Tsit5
from dxdt.diffeq.methods.solver import Solver
from dxdt.diffeq.problem.density import augment
from dxdt.diffeq.progress import is_live
from dxdt.diffusion.denoisers.denoiser import DenoiserLike
from dxdt.diffusion.evaluation.encode import span_of
from dxdt.diffusion.sampling.reclocked import clocked
from dxdt.diffusion.sampling.reverse import ProbabilityFlow
from dxdt.ops.autodiff import Exact, Hutchinson, Trace
from dxdt.ops.opaque import opaque
from dxdt.ops.random import uniform

_PROBES = 4
_LEVELS = 0x4C4556454C  # keeps the dequantisation noise apart from other draws of the same seed


class Law(Protocol):
    """A law of x_{t1} with a density."""

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return log densities in nats."""
        ...


class Dense(Protocol):
    """A denoiser that knows the density of x_t, as the oracles do."""

    def log_prob(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Tensor:
        """Return log p_t(x)."""
        ...


@final
@dataclass(frozen=True)
class Marginal:
    """The exact law of x_t, in place of the prior that approximates it.

    With it a likelihood has no error but that of the solve: for proofs, and for processes that keep some of the
    data at t1.

    Args:
        oracle: has `log_prob(x, t, mu)`.
        t: the time at which the flow ends.
        mu: mean of the process, where it has one.
    """

    oracle: Dense
    t: float
    mu: Tensor | None = None

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return log p_t(x)."""
        return self.oracle.log_prob(x, torch.tensor(self.t, dtype=torch.float64, device=x.device), self.mu)


@final
@dataclass(frozen=True)
class Likelihood:
    """Log densities in nats and what came with them.

    Attributes:
        log_prob: (batch,), float64.
        standard_error: (batch,), of the divergence estimate; zero if exact, NaN for one probe.
        latent: x_{t1}, the code of each datum.
        evaluations: calls of the denoiser, each with one transposed pass per probe.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    evaluations: int


@final
@dataclass(frozen=True)
class Levels:
    """`count` grey levels, the integers from 0, laid over the interval from `low` to `high`.

    Raises:
        ValueError: there is less than one level, or the interval is empty.
    """

    count: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.low >= self.high:
            raise ValueError(
                f"Levels: {self.count} levels between {self.low} and {self.high} have no width; "
                "give at least 1 level and low < high."
            )

    @property
    def width(self) -> float:
        """Width of one level."""
        return (self.high - self.low) / self.count

    def dequantise(self, levels: Tensor, u: Tensor) -> Tensor:
        """Return low + (levels + u) width for u in [0, 1).

        Raises:
            ValueError: a level is not an integer from 0 to count - 1.
        """
        whole = levels.round()
        if bool(((levels != whole) | (levels < 0) | (levels >= self.count)).any()):
            raise ValueError(
                f"Levels: data from {levels.min().item():g} to {levels.max().item():g} are not "
                f"the integers 0 to {self.count - 1}; pass the raw levels, or the right count."
            )
        return self.low + (levels + u) * self.width

    def quantise(self, x: Tensor) -> Tensor:
        """Return the level that holds each entry of `x`, the nearest one outside the interval."""
        return ((x - self.low) / self.width).floor().clamp(0, self.count - 1)


@final
@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension, fewer is better.

    Attributes:
        mean: over data and dequantisations.
        standard_error: of the mean, from the spread over the data.
        each: (batch,), averaged over dequantisations.
        evaluations: how often the denoiser was asked for a batch, in all.
    """

    mean: float
    standard_error: float
    each: Tensor
    evaluations: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.standard_error:.3f} bits/dim"


@opaque
def log_likelihood(
    denoiser: DenoiserLike,
    x0: Float[Tensor, "batch *shape"],
    *,
    divergence: Trace | None = None,
    prior: Law | None = None,
    t0: float = 1e-5,
    t1: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    log_snr: bool | None = None,
    solver: Solver | None = None,
    mu: Tensor | None = None,
    **options: Any,
) -> Likelihood:
    """Return log p(x0) in nats under the denoiser's probability flow.

    Args:
        denoiser: any denoiser, whose samples do not mix within a batch.
        x0: data, on the scale the denoiser was trained on.
        divergence: `Hutchinson(probes, seed)`, an estimate with a standard error that costs one transposed pass per
            probe, or `Exact()`, which costs one per entry of a sample. By default `Hutchinson(4)`, and `Exact()` for
            samples of at most four entries.
        prior: law of x_{t1}; the process's own by default, whose distance from the true law is part of the
            result; `Marginal(oracle, t1)` is that of an oracle.
        t0: where the flow starts, above the singular end at 0.
        t1: where it ends; the end of the process by default.
        rtol, atol: tolerances of the solve.
        log_snr: solve in log(a / c) instead of t; by default for tabulated schedules, whose rates jump from level
            to level: it takes a tenth of the evaluations and meets the tolerance.
        solver: `Tsit5()` by default.
        mu: mean of the process, where it has one.
        options: anything else that `dxdt.solve` takes; with `per_sample=True` every sample takes
            its own steps. `progress` is on where standard error is a terminal.

    Raises:
        ValueError: the times are out of order, the prior is a point, or log(a / c) infinite where it is asked for.
    """
    process, ends = denoiser.process, span_of("log_likelihood", denoiser, t0, t1)
    kind = _affordable(x0) if divergence is None else divergence
    flow, ends = clocked("log_likelihood", ProbabilityFlow(denoiser, 0.0, mu), ends, log_snr)
    equation, start = augment(flow, x0, kind)
    options.setdefault("controller", PID(rtol, atol))
    options.setdefault("progress", is_live(sys.stderr))
    solution = solve(equation, start, ends, solver=Tsit5() if solver is None else solver, **options)
    latent, change = solution.y1
    prior = process.prior(mu) if prior is None else prior
    change = change.double()
    probes = change.shape[1]
    if isinstance(kind, Exact):
        error = torch.zeros_like(change[:, 0])
    else:
        error = change.std(1) / math.sqrt(probes) if probes > 1 else change[:, 0] * math.nan
    log_prob = prior.log_prob(latent) + change.mean(1)
    return Likelihood(log_prob, error, latent, solution.stats.evaluations)


def _affordable(x0: Tensor) -> Trace:
    """The estimate, or the exact trace where it asks for no more passes."""
    estimate = Hutchinson(_PROBES)
    return Exact() if x0.dim() > 1 and x0[:1].numel() <= _PROBES else estimate


@opaque
def bits_per_dim(
    denoiser: DenoiserLike,
    images: Tensor,
    *,
    levels: Levels | None = None,
    repeats: int = 1,
    batch: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> BitsPerDim:
    """Return the bits per dimension that a denoiser's model needs for discrete images.

    Args:
        images: (n, *shape), integers from 0 to levels.count - 1, in any dtype.
        levels: the grey levels and the interval that the denoiser was trained on.
        repeats: independent dequantisations of every image, each with probes of its own.
        batch: images per solve.
        seed: names the dequantisation noise.
        dtype: of the computation.
        options: as in `log_likelihood`.

    Raises:
        ValueError: there is no image, or `images` are not such integers.
    """
    levels = Levels() if levels is None else levels
    if len(images) == 0 or repeats < 1 or batch < 1:
        raise ValueError(
            f"bits_per_dim: {len(images)} images, {repeats} repeats in batches of {batch} measure "
            "nothing; give at least one of each."
        )
    n, dims = len(images), images[0].numel()
    total = torch.zeros(n, dtype=torch.float64)
    evaluations = 0
    divergence = options.pop("divergence", None)
    for repeat, rows, u in _batches(images, repeats, batch, seed):
        x0 = levels.dequantise(images[rows].double(), u).to(dtype)
        kind = _numbered(_affordable(x0) if divergence is None else divergence, repeat, rows.start)
        with torch.no_grad():  # numbers come out, and the divergence is cheaper where nothing differentiates it
            found = log_likelihood(denoiser, x0, divergence=kind, **options)
        total[rows] += found.log_prob.cpu()
        evaluations += found.evaluations
    nats = total / repeats + dims * math.log(levels.width)
    each = -nats / (dims * math.log(2))
    error = each.std().item() / math.sqrt(n) if n > 1 else math.nan
    return BitsPerDim(each.mean().item(), error, each, evaluations)


def _numbered(kind: Trace, repeat: int, first: int) -> Trace:
    """An estimate whose probes follow from image and repeat, whatever batch an image is in."""
    if not isinstance(kind, Hutchinson):
        return kind
    return replace(kind, first=kind.first + first, before=kind.before + repeat * kind.probes)


def _batches(images: Tensor, repeats: int, batch: int, seed: int) -> Iterator[tuple[int, slice, Tensor]]:
    entry = torch.arange(images[0].numel(), device=images.device)
    for repeat in range(repeats):
        for start in range(0, len(images), batch):
            rows = slice(start, min(start + batch, len(images)))
            row = torch.arange(rows.start, rows.stop, device=images.device)[:, None]
            u = uniform(seed ^ _LEVELS, row, repeat, entry, dtype=torch.float64)
            yield repeat, rows, torch.as_tensor(u).reshape(images[rows].shape)
