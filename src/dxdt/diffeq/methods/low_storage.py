"""Low-storage Runge-Kutta pairs of van der Houwen's kind: memory does not grow with the stages.

With x_0 = z_1 = y and k_i = f(t + c_i dt, z_i),

    x_i = x_{i-1} + dt b_i k_i,    z_{i+1} = x_i + dt (a_i - b_i) k_i,    y' = x_s

so that beside y a step holds x, z, the latest k and the error estimate, whatever the number of
stages: x and the estimate are summed in place. A step that is differentiated keeps its graph, as
every step does; pair these methods with ``Checkpointed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from dxdt.diffeq.methods.facts import Facts
from dxdt.diffeq.methods.solver import Solver, State, Step, hermite
from dxdt.diffeq.methods.tableau import Tableau
from dxdt.diffeq.problem.equation import Rows
from dxdt.ops.times import END, START, Table, Ticks, factors, moments, scaled_sum

__all__ = ["LowStorage", "LowStorage3", "LowStorage4"]


@dataclass(frozen=True)
class Registers:
    """Coefficients of a method in two registers.

    Args:
        a: entries a_{i+1,i} beside the diagonal; left of them the matrix holds ``b``.
        b: weights of the solution.
        lower: weights of the lower method of the pair.
        order: order of ``b``; the lower method has one less.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    lower: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        b = np.array(self.b)
        ahead = np.append(np.array(self.a) - b[:-1], 0.0)
        products = np.stack([b, ahead, b - np.array(self.lower)], 1)
        nodes = np.append(np.cumsum([0.0, *self.b[:-2]]) + np.array(self.a), 1.0)
        object.__setattr__(self, "products", Table.of(products.ravel()))
        object.__setattr__(self, "nodes", Table.of(nodes))

    products: ClassVar[Table]
    """What multiplies dt k_i: in x, in z, in the error estimate; stage by stage."""

    nodes: ClassVar[Table]
    """Nodes of stages 2..s, and the end."""

    @property
    def tableau(self) -> Tableau:
        """The same method as a full tableau."""
        rows = [[*self.b[:i], a] for i, a in enumerate(self.a)]
        error = [x - y for x, y in zip(self.b, self.lower, strict=True)]
        return Tableau(rows, self.b, self.order, error=error, error_order=self.order)


class LowStorage(Solver):
    """Base of the low-storage pairs; a method is a subclass that gives ``registers``."""

    registers: ClassVar[Registers]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        order = cls.registers.order
        stages, dense_order = len(cls.registers.b), min(3, order)
        cls.facts = Facts(order, stages, dense_order, error_order=order, degree=3, compiles=True)

    def init(self, eq: Rows, t: Ticks, y: Tensor, dense: bool) -> State:
        if not dense:
            return ()
        (start,) = moments(t, t * 0, START, eq.layout)
        return (eq.drift(start, y),)

    def slope(self, state: State) -> Tensor | None:
        return state[0] if state else None

    def step(self, eq: Rows, t: Ticks, dt: Ticks, y: Tensor, state: State, index: Ticks) -> Step:
        registers, s = self.registers, self.facts.stages
        f = factors(registers.products, dt, y)
        times = moments(t, dt, registers.nodes, eq.layout)
        (start,) = moments(t, dt, START, eq.layout)
        k = state[0] if state else eq.drift(start, y)
        x, error = scaled_sum(y, f[0], k), scaled_sum(None, f[2], k.detach())
        for i in range(1, s):
            z = scaled_sum(x, f[3 * i - 2], k)
            del k
            k = eq.drift(times[i - 1], z)
            del z
            x, error = _gather(x, f[3 * i], k), _gather(error, f[3 * i + 2], k.detach())
        if not state:
            return Step(x, error, (), ())
        end = eq.drift(times[-1], x)
        error = torch.add(error, end.detach(), alpha=0)  # no step may begin where f is not finite
        return Step(x, error, (end,), (state[0], end))

    def dense(self, step: Step, dt: Ticks, y: Tensor) -> Tensor:
        (h,) = factors(END, dt, y)
        return torch.stack(hermite(y, step.y, h * step.data[0], h * step.data[1]))


def _gather(x: Tensor, factor: Any, k: Tensor) -> Tensor:
    """x + factor k, in place where no graph needs x."""
    if torch.is_grad_enabled():
        return scaled_sum(x, factor, k)
    return x.add_(k, alpha=factor) if isinstance(factor, float) else x.addcmul_(factor, k)


@final
@dataclass(frozen=True)
class LowStorage3(LowStorage):
    """Kennedy-Carpenter-Lewis 3(2) in four stages and two registers, RK3(2)4[2R+]C.

    C. Kennedy, M. Carpenter, R. Lewis, "Low-storage, explicit Runge-Kutta schemes for the
    compressible Navier-Stokes equations", Appl. Numer. Math. 35 (2000).
    """

    registers = Registers(
        a=(
            11847461282814 / 36547543011857,
            3943225443063 / 7078155732230,
            -346793006927 / 4029903576067,
        ),
        b=(
            1017324711453 / 9774461848756,
            8237718856693 / 13685301971492,
            57731312506979 / 19404895981398,
            -101169746363290 / 37734290219643,
        ),
        lower=(
            15763415370699 / 46270243929542,
            514528521746 / 5659431552419,
            27030193851939 / 9429696342944,
            -69544964788955 / 30262026368149,
        ),
        order=3,
    )


@final
@dataclass(frozen=True)
class LowStorage4(LowStorage):
    """Kennedy-Carpenter-Lewis 4(3) in five stages and two registers, RK4(3)5[2R+]C.

    C. Kennedy, M. Carpenter, R. Lewis, "Low-storage, explicit Runge-Kutta schemes for the
    compressible Navier-Stokes equations", Appl. Numer. Math. 35 (2000).
    """

    registers = Registers(
        a=(
            970286171893 / 4311952581923,
            6584761158862 / 12103376702013,
            2251764453980 / 15575788980749,
            26877169314380 / 34165994151039,
        ),
        b=(
            1153189308089 / 22510343858157,
            1772645290293 / 4653164025191,
            -1672844663538 / 4480602732383,
            2114624349019 / 3568978502595,
            5198255086312 / 14908931495163,
        ),
        lower=(
            1016888040809 / 7410784769900,
            11231460423587 / 58533540763752,
            -1563879915014 / 6823010717585,
            606302364029 / 971179775848,
            1097981568119 / 3980877426909,
        ),
        order=4,
    )
