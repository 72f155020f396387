"""What a solver claims on equations with noise, and whether a problem meets its needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dxdt.diffeq.problem.noise import Additive, Commutative, Diagonal, General, Noise, Scalar, Sum
from dxdt.paths.driver import Levy

__all__ = ["Noisy"]


@dataclass(frozen=True)
class Noisy:
    """Class facts of a solver on equations with noise.

    Attributes:
        calculus: the calculi in which it converges (for additive noise they agree).
        general, commutative, additive: strong orders by class of noise.
        weak: weak order, for noise in general; ``weak_additive`` for additive noise.
        levy: what it needs of the driver beside W.
        noises: kinds of noise it admits.
        error: power of dt in the local error estimate by class of noise (not additive, additive),
            or None without an estimate.
        inside: whether a step asks for increments of parts of itself.
    """

    calculus: tuple[type, ...]
    general: float
    commutative: float
    additive: float
    weak: float
    weak_additive: float
    levy: Levy = None
    noises: tuple[type[Noise], ...] = (Diagonal, Scalar, Additive, Commutative, General)
    error: tuple[float, float] | None = None
    inside: bool = False

    def admits(self, noise: Noise) -> bool:
        """Whether it is made for this noise."""
        if isinstance(noise, Sum):
            return all(self.admits(p) for p in noise.parts) and self._takes_sums(noise)
        return isinstance(noise, self.noises)

    def _takes_sums(self, noise: Sum) -> bool:
        return noise.additive or General in self.noises

    def strong(self, noise: Noise) -> float:
        """Strong order."""
        if noise.additive:
            return self.additive
        return self.commutative if noise.commutative else self.general

    def error_order(self, noise: Noise) -> float | None:
        """Power of dt in the local error estimate."""
        return None if self.error is None else self.error[noise.additive]

    def converges(self, equation: Any) -> bool:
        """Whether it converges in the equation's calculus."""
        return equation.noise.additive or isinstance(equation.calculus, self.calculus)
