"""Paths through data: piecewise polynomials on knots, NaN marking what was not observed.

On [t_i, t_{i+1}], with v = t - t_i, gap h, slope s = (x_{i+1} - x_i)/h and previous slope b:

    linear       x_i + s v
    hermite      x_i + b v + 2 (s - b)/h v^2 + (b - s)/h^2 v^3       (b = s on the first interval)
    natural      twice continuously differentiable, x'' = 0 at both ends
    rectilinear  time moves while values are held, then values move while time is held

linear and hermite see the next observation, natural the whole series; only rectilinear never looks
ahead. Channels are interpolated one by one across what is missing.

References: Kidger, Morrill, Foster, Lyons, "Neural controlled differential equations for irregular
time series", NeurIPS 2020, https://arxiv.org/abs/2005.08926; Morrill, Kidger, Yang, Lyons, "Neural
controlled differential equations for online prediction tasks", 2021, https://arxiv.org/abs/2106.11028.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Piecewise", "fill", "hermite", "linear", "natural", "rectilinear"]


@final
@dataclass(frozen=True, eq=False)
class Piecewise:
    """A piecewise polynomial, sum_k coefficients_k (t - t_i)^k on [t_i, t_{i+1}].

    Times broadcast against the batch: one time of shape () for all, (batch,) for one each, and
    (times, 1) for many. Outside [t0, t1] the end pieces go on.

    Args:
        knots: strictly increasing times, common (N,) or one row for each element (*batch, N).
        coefficients: of shape (*batch, N - 1, degree + 1, channels).
    """

    knots: Float[Tensor, "*#batch N"]
    coefficients: Float[Tensor, "*batch pieces powers channels"]

    @property
    def t0(self) -> Float[Tensor, "*#batch"]:
        """The first knot."""
        return self.knots[..., 0]

    @property
    def t1(self) -> Float[Tensor, "*#batch"]:
        """The last knot."""
        return self.knots[..., -1]

    def __call__(self, t: Tensor | float) -> Float[Tensor, "*batch channels"]:
        """The value X(t)."""
        v, piece = self._piece(t)
        *powers, value = piece.unbind(-2)
        for coefficient in reversed(powers):
            value = value * v + coefficient
        return value

    def derivative(self, t: Tensor | float) -> Float[Tensor, "*batch channels"]:
        """The derivative dX/dt(t), from the right at knots."""
        v, piece = self._piece(t)
        _, *powers = piece.unbind(-2)
        value = powers[-1] * len(powers)
        for k in range(len(powers) - 1, 0, -1):
            value = value * v + k * powers[k - 1]
        return value

    def _piece(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Time since the left knot (*shape, 1) and coefficients (*shape, powers, channels)."""
        knots, batch = self.knots, self.coefficients.shape[:-3]
        time = torch.as_tensor(t, dtype=knots.dtype, device=knots.device)
        if knots.ndim == 1 and time.ndim == 0:
            i = _interval(knots, time)
            # Not knots[i], which reads the number on the host.
            v = (time - knots.index_select(0, i.reshape(1))).to(self.coefficients.dtype)
            return v, self.coefficients.index_select(-3, i.reshape(1)).squeeze(-3)
        shape = torch.broadcast_shapes(time.shape, batch)
        time = time.expand(shape)
        if knots.ndim == 1:
            i = _interval(knots, time)
            left = knots[i]
        else:
            rows = knots.expand(*batch, -1).expand(*shape, -1)
            i = _interval(rows, time.unsqueeze(-1))
            left, i = rows.gather(-1, i).squeeze(-1), i.squeeze(-1)
        element = torch.arange(batch.numel(), device=knots.device).reshape(batch).expand(shape)
        pieces = self.coefficients.reshape(batch.numel(), *self.coefficients.shape[-3:])
        return (time - left).to(pieces.dtype).unsqueeze(-1), pieces[element, i]


# A path is a tree of its tensors wherever trees are taken: in args, states and programs.
pytree.register_dataclass(Piecewise, field_names=["knots", "coefficients"])


def _interval(knots: Tensor, t: Tensor) -> Int[Tensor, "*shape"]:
    last = knots.shape[-1] - 2
    found = torch.searchsorted(knots.detach().contiguous(), t.detach().contiguous(), right=True)
    return (found - 1).clamp(0, last)


def linear(ts: Float[Tensor, "*#batch N"], xs: Float[Tensor, "*batch N channels"]) -> Piecewise:
    """Join the observations by straight lines.

    Args:
        ts: strictly increasing times, common or one row for each element.
        xs: observations, NaN where missing: see `fill`.

    Raises:
        ValueError: shapes that do not fit, fewer than two times, or times that do not increase.
    """
    _check(ts, xs, "linear")
    xs = fill(ts, xs)
    return Piecewise(ts, torch.stack((xs[..., :-1, :], _slope(ts, xs)), -2))


def hermite(ts: Float[Tensor, "*#batch N"], xs: Float[Tensor, "*batch N channels"]) -> Piecewise:
    """Join the observations by cubics whose derivative at a knot is the slope that led to it.

    Args:
        ts: strictly increasing times, common or one row for each element.
        xs: observations, NaN where missing: see `fill`.

    Raises:
        ValueError: shapes that do not fit, fewer than two times, or times that do not increase.
    """
    _check(ts, xs, "hermite")
    xs = fill(ts, xs)
    slope, gap = _slope(ts, xs), ts.diff().unsqueeze(-1).to(xs.dtype)
    before = torch.cat((slope[..., :1, :], slope[..., :-1, :]), -2)
    bend = (slope - before) / gap
    return Piecewise(ts, torch.stack((xs[..., :-1, :], before, 2 * bend, -bend / gap), -2))


def rectilinear(
    ts: Float[Tensor, "*#batch N"], xs: Float[Tensor, "*batch N channels"], *, start: float = 0.0
) -> Piecewise:
    """Move time, then values: the path (t, x) that knows nothing before it is observed.

    Its own clock runs over 0, 1, .. 2 N - 2, observation i standing at 2 i; the real time is
    channel 0 and the values follow it. What is missing keeps the last value seen.

    Args:
        ts: strictly increasing times, common or one row for each element.
        xs: observations, NaN where missing.
        start: the value of a channel before it is first seen.

    Raises:
        ValueError: shapes that do not fit, fewer than two times, or times that do not increase.
    """
    _check(ts, xs, "rectilinear")
    known = ~torch.isnan(xs)
    held = _take(xs, _last_known(known).clamp(min=0))
    held = torch.where(_last_known(known) < 0, xs.new_tensor(start), held)
    times = ts.to(xs.dtype).unsqueeze(-1).expand(*xs.shape[:-1], 1)
    now, moved = (
        torch.cat((times, held), -1),
        torch.cat((times[..., 1:, :], held[..., :-1, :]), -1),
    )
    moved = torch.cat((moved, now[..., -1:, :]), -2)
    path = torch.stack((now, moved), -2).flatten(-3, -2)[..., :-1, :]
    knots = torch.arange(path.shape[-2], dtype=ts.dtype, device=ts.device)
    return Piecewise(knots, torch.stack((path[..., :-1, :], path.diff(dim=-2)), -2))


def natural(ts: Float[Tensor, "*#batch N"], xs: Float[Tensor, "*batch N channels"]) -> Piecewise:
    """Join the observations by the natural cubic spline of each channel.

    A channel that misses its first or last value takes the nearest one seen there.

    Args:
        ts: strictly increasing times, common or one row for each element.
        xs: observations, NaN where missing.

    Raises:
        ValueError: shapes that do not fit, fewer than two times, or times that do not increase.
    """
    _check(ts, xs, "natural")
    filled, known = fill(ts, xs), ~torch.isnan(xs)
    ends = torch.zeros_like(known)
    ends[..., 0, :] = ends[..., -1, :] = True
    known = known | ends
    # Observations first, in order, so that neighbours in the system are neighbours in the series.
    order = torch.argsort((~known).to(torch.uint8), dim=-2, stable=True)
    count = known.sum(-2, keepdim=True)
    time = _elapsed(ts, xs)
    knot, value = time.gather(-2, order), filled.gather(-2, order)
    inner = torch.arange(1, xs.shape[-2] - 1, device=xs.device).unsqueeze(-1) < count - 1
    curvature = _curvature(knot, value, inner)
    gap, rise = knot.diff(dim=-2), value.diff(dim=-2)
    place = torch.arange(gap.shape[-2], device=xs.device).unsqueeze(-1)
    gap = torch.where(place < count - 1, gap, torch.ones_like(gap))
    left, right = curvature[..., :-1, :], curvature[..., 1:, :]
    first = rise / gap - gap * (2 * left + right) / 6
    third = (right - left) / (6 * gap)
    piece = (known.cumsum(-2)[..., :-1, :] - 1).minimum(count - 2)
    a, b, c, d, origin = (_take(x, piece) for x in (value[..., :-1, :], first, left / 2, third, knot[..., :-1, :]))
    u = time[..., :-1, :] - origin
    value = a + u * (b + u * (c + u * d))
    return Piecewise(ts, torch.stack((value, b + u * (2 * c + 3 * u * d), c + 3 * u * d, d), -2))


def _curvature(knot: Tensor, value: Tensor, inner: Bool[Tensor, "*batch N-2 channels"]) -> Tensor:
    """Second derivatives at the knots, zero at the ends and where `inner` is false."""
    gap = knot.diff(dim=-2)
    slope = value.diff(dim=-2) / torch.where(gap == 0, torch.ones_like(gap), gap)
    zero = torch.zeros_like(gap[..., :-1, :])
    lower = torch.where(inner, gap[..., :-1, :], zero)
    upper = torch.where(inner, gap[..., 1:, :], zero)
    diagonal = torch.where(inner, 2 * (knot[..., 2:, :] - knot[..., :-2, :]), zero + 1)
    right = torch.where(inner, 6 * slope.diff(dim=-2), zero)
    solved = solve_tridiagonal(lower, diagonal, upper, right)
    return torch.nn.functional.pad(solved, (0, 0, 1, 1))


def solve_tridiagonal(
    lower: Float[Tensor, "*batch N channels"],
    diagonal: Float[Tensor, "*batch N channels"],
    upper: Float[Tensor, "*batch N channels"],
    right: Float[Tensor, "*batch N channels"],
) -> Float[Tensor, "*batch N channels"]:
    """Solve lower_i x_{i-1} + diagonal_i x_i + upper_i x_{i+1} = right_i along axis -2.

    Parallel cyclic reduction: log2(N) rounds on whole tensors, stable if the diagonal dominates.
    """

    def shifted(x: Tensor, by: int, end: float) -> Tensor:
        padding = x.new_full((*x.shape[:-2], abs(by), x.shape[-1]), end)
        if by > 0:
            return torch.cat((padding, x[..., :-by, :]), -2)
        return torch.cat((x[..., -by:, :], padding), -2)

    a, b, c, d = lower, diagonal, upper, right
    if b.shape[-2] == 0:
        return d
    a = torch.cat((torch.zeros_like(a[..., :1, :]), a[..., 1:, :]), -2)
    c = torch.cat((c[..., :-1, :], torch.zeros_like(c[..., :1, :])), -2)
    stride = 1
    while stride < b.shape[-2]:
        before = -a / shifted(b, stride, 1.0)
        after = -c / shifted(b, -stride, 1.0)
        b = b + before * shifted(c, stride, 0.0) + after * shifted(a, -stride, 0.0)
        d = d + before * shifted(d, stride, 0.0) + after * shifted(d, -stride, 0.0)
        a, c = before * shifted(a, stride, 0.0), after * shifted(c, -stride, 0.0)
        stride *= 2
    return d / b


def fill(ts: Float[Tensor, "*#batch N"], xs: Float[Tensor, "*batch N channels"]) -> Float[Tensor, "*batch N channels"]:
    """Replace NaN by linear interpolation in time, channel by channel.

    Before the first observation of a channel stands the first, after the last the last; a channel
    never observed is zero.
    """
    known = ~torch.isnan(xs)
    n = xs.shape[-2]
    before = _last_known(known)
    after = n - 1 - _last_known(known.flip(-2)).flip(-2)
    never = (before < 0) & (after >= n)
    low = torch.where(before < 0, after, before).clamp(0, n - 1)
    high = torch.where(after >= n, before, after).clamp(0, n - 1)
    clean = torch.where(known, xs, torch.zeros_like(xs))
    time = _elapsed(ts, xs)
    x0, x1 = _take(clean, low), _take(clean, high)
    t0, t1 = _take(time, low), _take(time, high)
    share = (time - t0) / torch.where(high > low, t1 - t0, torch.ones_like(time))
    filled = torch.where(high > low, x0 + share * (x1 - x0), x0)
    return torch.where(known, clean, torch.where(never, torch.zeros_like(filled), filled))


def _last_known(known: Bool[Tensor, "*batch N channels"]) -> Int[Tensor, "*batch N channels"]:
    """The index of the last observation up to each place, -1 where there is none."""
    place = torch.arange(known.shape[-2], device=known.device).unsqueeze(-1)
    return torch.where(known, place, torch.full_like(place, -1)).cummax(-2).values


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-2, index)


def _elapsed(ts: Tensor, xs: Tensor) -> Tensor:
    """Times since the first: float32 data may come with stamps that float32 cannot tell apart."""
    return (ts - ts[..., :1]).to(xs.dtype).unsqueeze(-1).expand(xs.shape)


def _slope(ts: Tensor, xs: Tensor) -> Tensor:
    return xs.diff(dim=-2) / ts.diff().unsqueeze(-1).to(xs.dtype)


def _check(ts: Tensor, xs: Tensor, name: str) -> None:
    if xs.ndim < 2 or ts.ndim < 1 or ts.shape[-1] != xs.shape[-2]:
        raise ValueError(
            f"{name}: {tuple(ts.shape)} times do not fit observations {tuple(xs.shape)}; "
            "give ts of shape (N,) or (*batch, N) and xs of shape (*batch, N, channels)"
        )
    if ts.ndim > 1 and ts.shape[:-1] != xs.shape[:-2]:
        raise ValueError(
            f"{name}: times for a batch of {tuple(ts.shape[:-1])}, observations for one of "
            f"{tuple(xs.shape[:-2])}; give common times (N,) or one row for each element"
        )
    if ts.shape[-1] < 2:
        raise ValueError(f"{name}: a path needs two times at least, got {ts.shape[-1]}")
    if not torch.isfinite(ts).all() or not (ts.diff() > 0).all():
        raise ValueError(f"{name}: times must be finite and increase strictly; sort them and drop repeats")
