"""Strong and weak orders of every stochastic solver, for every kind of noise that it claims."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dxdt
from claims import SOLVERS, identify, slope
from dxdt.diffeq import Solver
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.tree import Layout
from dxdt.paths import Increment
from grids import solve_on_grid
from oracles import LINEAR

STOCHASTIC = tuple(s for s in SOLVERS if s.facts.noise is not None and not s.facts.semilinear) + (dxdt.Milstein(True),)
CALCULI = (dxdt.Ito(), dxdt.Stratonovich())
PATHS, FINEST = 1000, 512


@dataclass(eq=False)
class Coupled:
    """One set of paths on grids of every length: increments of the finest, joined by Chen's rule.

    W = W_1 + W_2,   H = (H_1 + H_2) / 2 + (W_1 - W_2) / 4.
    """

    levels: dict[int, tuple[Tensor, Tensor]]
    size: int = 0

    adaptive = False
    levy = dxdt.SpaceTime

    @classmethod
    @functools.cache
    def drawn(cls, size: int) -> Coupled:
        generator = torch.Generator().manual_seed(11)
        w = torch.randn(FINEST, PATHS, size, dtype=torch.float64, generator=generator)
        h = torch.randn(FINEST, PATHS, size, dtype=torch.float64, generator=generator)
        n = FINEST
        levels = {n: (w / sqrt(n), h / sqrt(12 * n))}
        while n > 1:
            (w, h), n = levels[n], n // 2
            early, late = w[::2], w[1::2]
            levels[n] = early + late, (h[::2] + h[1::2]) / 2 + (early - late) / 4
        return cls(levels)

    def bind(self, t0: Any, t1: Any, rows: int, size: int, *rest: Any) -> Coupled:
        assert rows == PATHS
        return self

    def increment(self, t: Any, dt: Any, step: Any) -> Increment:
        w, h = self.levels[round(1 / float(dt[0]))]
        return Increment(dt, w[int(step[0])], h[int(step[0])])


MIX = torch.tensor([[-0.3, 0.5], [-0.4, -0.2]], dtype=torch.float64)


def drift(t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(2 * y) @ MIX + torch.cos(t)[:, None] * 0.2


def componentwise(t: Tensor, y: Tensor) -> Tensor:
    return 0.4 + 0.7 * torch.sin(1.2 * y + 0.3 * t[:, None])


def common(t: Tensor, y: Tensor) -> Tensor:
    return 0.6 * torch.sin(y.flip(-1)) + 0.6 * y


def by_time(t: Tensor, y: Tensor) -> Tensor:
    turn = torch.stack((torch.cos(t), torch.sin(t), -t, 0 * t + 1), -1)
    return turn.reshape(-1, 2, 2)


def commuting(t: Tensor, y: Tensor) -> Tensor:
    turned = torch.stack((-y[..., 1], y[..., 0]), -1)
    return torch.stack((0.9 * y, 0.8 * turned), -1)


def any_matrix(t: Tensor, y: Tensor) -> Tensor:
    first = torch.stack((torch.cos(y[..., 1]), 0.5 * y[..., 0]), -1)
    second = torch.stack((0.4 * y[..., 0], torch.sin(y[..., 0])), -1)
    return 1.3 * torch.stack((first, second), -1)


# Kind of noise, its field, and components of W.
CASES: dict[type, tuple[Any, Callable[..., Tensor], int]] = {
    dxdt.Diagonal: (dxdt.Diagonal(), componentwise, 2),
    dxdt.Scalar: (dxdt.Scalar(), common, 1),
    dxdt.Additive: (dxdt.Additive(2), by_time, 2),
    dxdt.Commutative: (dxdt.Commutative(2), commuting, 2),
    dxdt.General: (dxdt.General(2), any_matrix, 2),
}
Y0 = torch.tensor([0.6, -0.3], dtype=torch.float64)


def end(equation: Any, solver: Solver, steps: int, size: int) -> Tensor:
    with torch.no_grad():
        return solve_on_grid(
            equation,
            Y0.expand(PATHS, 2),
            torch.linspace(0, 1, steps + 1, dtype=torch.float64),
            solver=solver,
            driver=Coupled.drawn(size),
            per_sample=True,
        ).ys[-1]


@functools.cache
def reference(kind: type, calculus: Any) -> Tensor:
    """The finest grid, by the method of the highest order for that noise."""
    noise, g, size = CASES[kind]
    equation = dxdt.SDE(drift, g, noise, calculus)
    if kind is dxdt.Additive:
        return end(equation, dxdt.SRA1(), FINEST, size)
    if kind in (dxdt.Diagonal, dxdt.Scalar):
        return end(dxdt.to_ito(equation), dxdt.SRIW1(), FINEST, size)
    if isinstance(calculus, dxdt.Stratonovich):
        return end(equation, dxdt.SPaRK(), FINEST, size)
    return end(equation, dxdt.Milstein(derivative_free=True), FINEST, size)


def claimed() -> list[Any]:
    found = []
    for solver in STOCHASTIC:
        claims = solver.facts.noise
        assert claims is not None
        for kind, (noise, *_) in CASES.items():
            for calculus in CALCULI:
                if not claims.admits(noise) or not isinstance(calculus, claims.calculus):
                    continue
                if noise.additive and calculus != claims.calculus[0]():
                    continue  # the two are one equation
                free = "-free" if getattr(solver, "derivative_free", False) else ""
                name = f"{identify(solver)}{free}-{kind.__name__}-{type(calculus).__name__}"
                found.append(pytest.param(solver, kind, calculus, id=name))
    return found


def strong_slope(solver: Solver, kind: type, calculus: Any) -> tuple[float, float]:
    """Slope of the mean error at the end, and its standard error by leaving out."""
    noise, g, size = CASES[kind]
    equation, exact = dxdt.SDE(drift, g, noise, calculus), reference(kind, calculus)
    counts = np.array([16, 32, 64, 128])
    gaps = np.stack([(end(equation, solver, n, size) - exact).norm(dim=1).numpy() for n in counts])
    parts = gaps.reshape(len(counts), 20, -1).sum(-1)
    left = parts.sum(1, keepdims=True) - parts
    slopes = np.polyfit(np.log(1 / counts), np.log(left), 1)[0]
    return float(slopes.mean()), float(np.sqrt(19 / 20 * ((slopes - slopes.mean()) ** 2).sum()))


@pytest.mark.parametrize(("solver", "kind", "calculus"), claimed())
def test_strong_order(solver: Solver, kind: type, calculus: Any):
    claims = solver.facts.noise
    assert claims is not None
    measured, spread = strong_slope(solver, kind, calculus)
    order = claims.strong(CASES[kind][0])
    print(f"{identify(solver)} {kind.__name__} {type(calculus).__name__}: {measured:.2f} +- {spread:.2f} ({order})")
    assert 3 * spread < 0.15
    assert abs(measured - order) < 0.15


@pytest.mark.parametrize("solver", STOCHASTIC, ids=identify)
def test_order_without_noise(solver: Solver):
    claims = solver.facts.noise
    assert claims is not None
    noise = next(k() for k in (dxdt.Diagonal, dxdt.Additive) if claims.admits(k()))
    equation = dxdt.SDE(LINEAR.field, lambda t, y: 0 * y, noise, claims.calculus[0]())
    counts = np.array([16, 32, 64, 128])
    given: Any = dict(solver=solver, driver=dxdt.Increments(0, dxdt.SpaceTime))
    errors = []
    for n in counts:
        sol = dxdt.solve(equation, LINEAR.y0, (0.0, 2.0), dt=2 / n, **given)
        errors.append(float((sol.ys[-1] - LINEAR.end).norm()))
    assert abs(slope(1 / counts, errors) - solver.facts.order) < 0.2


# Weak orders: with f and g affine in one number, a step maps x = y, or x = (y, z) for a method
# that carries a second copy, to P x + q with P, q polynomials in (W, H). Gauss' quadrature gives
# their moments exactly, and with them the moments of the numerical solution after N steps.

A, C, B, E = -0.8, 0.6, 0.7, 0.5
NODES, _HERMITE = np.polynomial.hermite_e.hermegauss(12)
WEIGHTS = _HERMITE / _HERMITE.sum()


@dataclass(eq=False)
class Quadrature:
    """Increments at the nodes of a product rule, once for each start."""

    h: float
    starts: int

    def increment(self, t: Any, dt: Any, step: Any) -> Increment:
        w, z = (x.ravel() for x in np.meshgrid(NODES, NODES, indexing="ij"))
        w, z = (torch.from_numpy(np.tile(x, self.starts))[:, None] for x in (w, z))
        return Increment(dt, w * sqrt(self.h), z * sqrt(self.h / 12))


def affine(additive: bool, calculus: Any) -> dxdt.SDE:
    b = 0.0 if additive else B
    noise = dxdt.Additive() if additive else dxdt.Diagonal()
    return dxdt.SDE(lambda t, y: A * y + C, lambda t, y: b * y + E, noise, calculus)


def numerical_moments(solver: Solver, equation: Any, steps: int) -> np.ndarray:
    """E y and E y^2 at t = 1 from y = 1."""
    h, rows = 1 / steps, len(NODES) ** 2
    d = 2 if isinstance(solver, dxdt.ReversibleHeun) else 1
    starts = torch.cat((torch.zeros(1, d), torch.eye(d))).double().repeat_interleave(rows, 0)
    layout = Layout.of(starts[:, :1], per_sample=True)
    eq = Rows(equation, layout, noise=Quadrature(h, d + 1))
    t, dt = np.zeros(len(starts)), np.full(len(starts), h)
    state = solver.init(eq, t, starts[:, -1:], False)
    step = solver.step(eq, t, dt, starts[:, :1], state, np.zeros(len(starts), dtype=int))
    ends = torch.cat((step.y, *step.state[:1]), 1).reshape(d + 1, rows, d).numpy()
    q, p = ends[0], np.moveaxis(ends[1:] - ends[0], 0, -1)
    weights = np.outer(WEIGHTS, WEIGHTS).ravel()
    m, s = np.ones(d), np.ones((d, d))
    for _ in range(steps):
        cross = np.einsum("k,kij,j,kl->il", weights, p, m, q)
        s = np.einsum("k,kij,jm,klm->il", weights, p, s, p) + cross + cross.T
        s = s + np.einsum("k,ki,kl->il", weights, q, q)
        m = np.einsum("k,kij,j->i", weights, p, m) + weights @ q
    return np.array([m[0], s[0, 0]])


def exact_moments(additive: bool, calculus: Any) -> np.ndarray:
    """The same of the solution: d/dt (1, E y, E y^2) is linear in them."""
    b = 0.0 if additive else B
    lift = 0.5 * b if isinstance(calculus, dxdt.Stratonovich) else 0.0
    a, c = A + lift * b, C + lift * E
    rates = [[0, 0, 0], [c, a, 0], [E * E, 2 * c + 2 * b * E, 2 * a + b * b]]
    flow = torch.matrix_exp(torch.tensor(rates, dtype=torch.float64))
    return flow.sum(1).numpy()[1:]


@pytest.mark.parametrize("additive", [False, True], ids=["affine", "additive"])
@pytest.mark.parametrize("solver", STOCHASTIC, ids=identify)
def test_weak_order(solver: Solver, additive: bool):
    claims = solver.facts.noise
    assert claims is not None
    for calculus in CALCULI:
        equation = affine(additive, calculus)
        if not claims.admits(equation.noise) or not claims.converges(equation):
            continue
        counts = np.array([8, 16, 32, 64])
        exact = exact_moments(additive, calculus)
        errors = [np.abs(numerical_moments(solver, equation, n) - exact).sum() for n in counts]
        measured = slope(1 / counts, errors)
        print(f"{identify(solver)} {additive} {calculus}: {measured:.2f}")
        assert measured > (claims.weak_additive if additive else claims.weak) - 0.2
