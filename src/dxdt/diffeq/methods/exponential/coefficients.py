"""The lines of an exponential integrator: what one formula adds up, as numbers.

    x' = after mu + alpha (x - before mu) + sum_j w_j q_j + std z

A line is the vector (alpha, before, after, std, w_1, w_2, ...) in float64 on the last axis; the other axes
are those of the steps, so that a whole grid is one tensor. Steps that begin where a = 0 (nothing is known)
are taken in the data's form, with polynomials in a / c, which is finite there; steps that end where
c = 0 land on the data of the answer at their beginning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dxdt.diffeq.methods.exponential.weights import DataPrediction, ExactWeight, InLogSNR, Rule, weights
from dxdt.diffeq.problem.affine import Knots, SemiLinear, share

__all__ = ["HEAD", "adams", "adams_corrected", "adams_moulton", "inside", "line", "moved", "shifted"]

HEAD = 4
"""Numbers of a line before its weights."""


def line(rule: Rule, equation: SemiLinear, s: Knots, t: Knots, v: Tensor) -> Tensor:
    """The line from s to t through answers at places v, ``(*step, m)``, the first of which is zero.

    A place is (x - x_s) / (x_t - x_s) in the rule's variable, and where a = 0 at s in a / c.
    """
    kind, tau = rule.kind, share(equation, s, t)
    opens, lands, still = s.a == 0, (t.c == 0) & (s.t != t.t), s.t == t.t
    odd = opens | lands | still
    s_, t_ = _safe(s, odd, 0.0), _safe(t, odd, 1.0)
    count = v.shape[-1]
    origin, end = (rule.variable.place(kind, k.lam, k.t) for k in (s_, t_))
    step = kind.transfer(s_, t_, tau)
    moments = rule.moments(equation, tau, s_, step.h, end - origin, origin, count)
    eta = 1 + tau**2
    order = torch.arange(count, dtype=torch.float64, device=v.device)
    wide = eta.unsqueeze(-1) if isinstance(eta, Tensor) else eta
    moments = torch.where(opens.unsqueeze(-1), wide / (wide + order), moments)
    z = eta * step.h if isinstance(kind, DataPrediction) else step.h
    if count > 1:
        z = torch.where(opens, 2 * moments[..., 1], z)
        v = torch.where((odd & ~opens).unsqueeze(-1), order, v)
    scale = torch.where(opens, t.a, step.scale)
    w = scale.unsqueeze(-1) * weights(rule.second, moments, z, v)
    none = torch.zeros_like(step.alpha)
    noisy = tau > 0 if isinstance(tau, Tensor) else torch.full_like(opens, tau > 0)
    opened = torch.where(noisy, none, t.c / torch.where((s.c == 0) & ~noisy, torch.nan, s.c))
    alpha, std = torch.where(opens, opened, step.alpha), torch.where(opens, noisy * t.c, step.noise)
    alpha, w = _landed(kind, s, t, lands & ~opens, alpha, w)
    alpha, std = torch.where(still, 1.0, alpha), torch.where(still | lands, 0.0, std)
    w = torch.where(still.unsqueeze(-1), 0.0, w)
    return torch.cat([torch.stack([alpha, s.b, t.b, std], -1), w], -1)


def _safe(k: Knots, odd: Tensor, lam: float) -> Knots:
    """Knots with numbers that do no harm where no use is made of them."""
    one = torch.ones_like(k.a)
    values = (one - 0.5 * lam, one, torch.zeros_like(one), one, lam * one)
    return Knots(*(torch.where(odd, value, x) for value, x in zip(values, k, strict=True)))


def _landed(kind: object, s: Knots, t: Knots, lands: Tensor, alpha: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and weights of rows that end in the data: x' = b mu + a x_0."""
    only = torch.zeros_like(w)
    if isinstance(kind, DataPrediction):
        ends, only[..., 0] = torch.zeros_like(alpha), t.a
    else:
        ends = t.a / torch.where(s.a == 0, 1.0, s.a)
        only[..., 0] = -ends * s.c
    return torch.where(lands, ends, alpha), torch.where(lands.unsqueeze(-1), only, w)


def moved(lam: Tensor, s: Knots, t: Knots) -> Tensor:
    """Factor by which places grow where a step from s to t is cut short at ``lam``."""
    opens = s.a == 0
    inside = torch.exp(torch.where(opens, t.lam - lam, 0.0))
    return torch.where(opens, inside, (t.lam - s.lam) / (lam - s.lam))


def shifted(s: Knots, t: Knots, r: float) -> Tensor:
    """lam at the fraction r of a step from s to t, in a / c where a = 0 at s; finite where t is the end."""
    still_or_lands = (s.t == t.t) | (t.c == 0)
    start = torch.where(s.a == 0, 0.0, s.lam)
    opened = t.lam + torch.log(torch.tensor(r, dtype=torch.float64))
    inside = torch.where(s.a == 0, opened, start + r * (t.lam - start))
    return torch.where(still_or_lands, s.lam, inside)


def _places(rule: Rule, s: Knots, t: Knots, back: Knots) -> Tensor:
    """Places of s and of what lies behind it, ``(*step, 1 + M)``; harmless where there is nothing."""
    origin, end, behind = (rule.variable.place(rule.kind, k.lam, k.t) for k in (s, t, back))
    v = (behind - origin.unsqueeze(-1)) / (end - origin).unsqueeze(-1)
    dummy = -torch.arange(1.0, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    v = torch.where(torch.isfinite(v) & (v != 0), v, dummy)
    return torch.cat([torch.zeros_like(origin).unsqueeze(-1), v], -1)


def adams(rule: Rule, equation: SemiLinear, s: Knots, t: Knots, back: Knots, m: Tensor) -> Tensor:
    """Adams-Bashforth through the last m answers, of which the first stands at s."""
    v = _places(rule, s, t, back)
    return _by_count(m, v.shape[-1], lambda k: line(rule, equation, s, t, v[..., :k]))


def adams_moulton(rule: Rule, equation: SemiLinear, s: Knots, t: Knots, back: Knots, m: Tensor) -> Tensor:
    """The same with one more answer at t, whose weight stands behind the first."""
    v = _places(rule, s, t, back)
    v = torch.cat([v[..., :1], torch.ones_like(v[..., :1]), v[..., 1:]], -1)
    return _by_count(m + 1, v.shape[-1], lambda k: line(rule, equation, s, t, v[..., :k]))


def adams_corrected(rule: Rule, equation: SemiLinear, lines: Tensor, s: Knots, back: Knots, m: Tensor) -> Tensor:
    """Lines from s that first correct the arrival at s, by the answer there, without another evaluation.

    The arrival was predicted through m answers from the first of ``back`` on; m = 0 leaves a line alone.
    """
    p, rest = back.part((..., 0)), back.part((..., slice(1, None)))
    told = torch.clamp(m, min=1)
    predicted = adams(rule, equation, p, s, rest, told)[..., HEAD:]
    full = adams_moulton(rule, equation, p, s, rest, told)[..., HEAD:]
    behind = full[..., 2:]
    delta = torch.cat([full[..., 1:2], full[..., :1] - predicted[..., :1], behind - predicted[..., 1:]], -1)
    delta = torch.where((m > 0).unsqueeze(-1), delta, 0.0)
    return torch.cat([lines[..., :HEAD], lines[..., HEAD:] + lines[..., :1] * delta], -1)


def _by_count(m: Tensor, most: int, formed: Callable[[int], Tensor]) -> Tensor:
    """Lines with as many weights as each step uses, and zeros behind them."""
    out: Tensor | None = None
    for k in sorted({int(x) for x in m.flatten().tolist()}):
        found = formed(k)
        found = torch.nn.functional.pad(found, (0, most - k))
        out = found if out is None else torch.where((m == k).unsqueeze(-1), found, out)
    assert out is not None
    return out


def inside(rule: Rule, exact: bool = False) -> Rule:
    """The rule for nodes inside a step, which lie in lam."""
    return Rule(rule.kind, InLogSNR(), ExactWeight() if exact else rule.second)
