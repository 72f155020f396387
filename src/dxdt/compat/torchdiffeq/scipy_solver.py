"""SciPy's solvers as torchdiffeq's ``scipy_solver``; gradients come with odeint_adjoint."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxdt.compat.torchdiffeq.problem import Problem, real_dtype
from dxdt.ops.optional import require

__all__ = ["solve_with_scipy"]


def solve_with_scipy(problem: Problem) -> Any:
    """Values at the times; NaN, with a warning, at those that SciPy did not reach.

    Raises:
        ValueError: an event, which SciPy does not solve for here.
    """
    if problem.event_fn is not None:
        raise ValueError("scipy_solver stops at no events: choose another method for event_fn")
    scipy = require("scipy.integrate")
    start, options = problem.start, problem.options
    flat = start.flat(start.y0).detach()
    shape, dtype, device = flat.shape, flat.dtype, flat.device
    real = real_dtype(dtype)

    def field(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(np.ascontiguousarray(y)).to(device, dtype).reshape(shape)
        with torch.no_grad():
            time = torch.tensor(t, dtype=real, device=device)
            value = problem.func(time, start.shaped(state))
        return start.flat(value).detach().cpu().numpy().reshape(-1)

    times = problem.t.detach().cpu().double().numpy()
    name, floor = options.get("solver", "LSODA"), float(options.get("min_step", 0))
    wide = np.complex128 if dtype.is_complex else np.float64
    found = scipy.solve_ivp(
        field,
        (times[0], times[-1]),
        flat.cpu().numpy().reshape(-1).astype(wide),
        method=_floored(scipy, floor) if name == "LSODA" and floor > 0 else name,
        t_eval=times,
        rtol=_per_number(problem.rtol, start.parts),
        atol=_per_number(problem.atol, start.parts),
        max_step=float(options.get("max_step", np.inf)),
    )
    values = np.full((len(times), flat.numel()), np.nan, dtype=wide)
    if len(found.t):
        values[: len(found.t)] = found.y.T
    if found.status < 0:
        warnings.warn(
            f"scipy_solver did not reach the last time ({found.message}): values beyond are NaN",
            stacklevel=4,
        )
    out = torch.from_numpy(values).to(device, dtype).reshape(len(times), *shape)
    return start.shaped(out, lead=1)


def _per_number(tolerance: Any, parts: tuple[Tensor, ...]) -> Any:
    """A tolerance as SciPy takes it: a number, or one for each number of the state."""
    if isinstance(tolerance, (int, float)):
        return float(tolerance)
    each = tolerance if isinstance(tolerance, tuple) else (tolerance,) * len(parts)
    spread = [torch.as_tensor(x).cpu().expand(y.shape).reshape(-1) for x, y in zip(each, parts, strict=True)]
    return torch.cat(spread).double().numpy()


def _floored(scipy: ModuleType, floor: float) -> Any:
    """LSODA that gives up where it would need a step below ``floor``.

    SciPy passes ``min_step`` on, but its present version of LSODA does not look at it.
    """

    class Floored(scipy.LSODA):
        def _step_impl(self) -> tuple[bool, str | None]:
            before = self.t
            ok, message = super()._step_impl()
            if ok and abs(self.t - before) < floor * (1 - 1e-9) and self.t != self.t_bound:
                return False, f"it needed a step below min_step = {floor}"
            return ok, message

    return Floored
