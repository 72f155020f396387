"""torchdiffeq's functions with its names, options, shapes and error types, on dxdt's core.

    from dxdt.compat.torchdiffeq import odeint      # instead of: from torchdiffeq import odeint

The guide ``docs/torchdiffeq.md`` lists the options and what differs.
"""

from dxdt.compat.torchdiffeq.adjoint import odeint_adjoint
from dxdt.compat.torchdiffeq.odeint import odeint, odeint_dense, odeint_event
from dxdt.compat.torchdiffeq.problem import SolveFailed

__all__ = ["SolveFailed", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
