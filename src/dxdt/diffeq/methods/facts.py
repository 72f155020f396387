"""What a solver claims about itself: one record, which checks, laws and tables read."""

from __future__ import annotations

from dataclasses import dataclass

from dxdt.diffeq.methods.noise_facts import Noisy

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """The claims of one solver.

    Attributes:
        order: deterministic order of convergence.
        stages: evaluations of the drift in one step.
        dense_order: order of the dense output.
        error_order: power of dt in the local error estimate, or None without an estimate.
        degree: degree of the dense output's polynomial.
        stochastic: whether it is made for equations with noise only.
        noise: what it claims on equations with noise, None where it does not solve them.
        known_grid: whether the steps must be known before the solve (methods with history).
        semilinear: whether it asks for equations that show their affine part (`SemiLinear`).
        separable: whether it asks for separable systems (`Separable`).
        implicit: whether a step solves equations for its values.
        prepares: whether it makes something of a known grid before the first step.
        compiles: whether its steps can be compiled.
        stateful: whether its state depends on the steps before, and is no function of (t, y).
        reversible: whether a step can be undone in closed form.
        symmetric_order: order up to which a step with -dt undoes one with dt; None where nothing is claimed.
    """

    order: float
    stages: int
    dense_order: float = 1
    error_order: float | None = None
    degree: int = 1
    stochastic: bool = False
    noise: Noisy | None = None
    known_grid: bool = False
    semilinear: bool = False
    separable: bool = False
    implicit: bool = False
    prepares: bool = False
    compiles: bool = False
    stateful: bool = False
    reversible: bool = False
    symmetric_order: float | None = None
