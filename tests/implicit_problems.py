"""Fixed points, roots, fits and minima with a parameter for each sample, for the laws of the implicit methods."""

import torch

import dxdt.implicit as im
from dxdt.implicit import Kind

__all__ = ["FUNCTIONS", "X", "contraction", "pushed", "residuals", "valley"]

D = torch.float64
A = torch.tensor([[0.4, -0.3, 0.1], [0.2, 0.3, -0.4], [-0.1, 0.2, 0.5]], dtype=D)


def contraction(y, x):
    return torch.tanh(y @ A.T) + x


def pushed(y, x):
    """A root for each sample whose Jacobian is not that of a contraction."""
    return y + y**3 / 4 + 0.6 * y @ A.T - x


def residuals(y, x):
    """More residuals than unknowns, which vanish at ``x``: the curve of a decay."""
    t = torch.linspace(0, 2, 9, dtype=y.dtype)
    curve = lambda p: p[..., :1] * torch.exp(-p[..., 1:2] * t) + p[..., 2:]  # noqa: E731
    return curve(y) - curve(x)


def valley(y, x):
    z = y - x
    return (z[..., 0] ** 2 + 10 * (z[..., 1] - z[..., 0] ** 2) ** 2 + 2 * (z[..., 2] + z[..., 1]) ** 2) / 2


X = torch.tensor([[0.5, 1.0, 0.2], [1.5, 0.4, -0.3], [0.9, 0.7, 0.1], [1.2, 1.3, 0.4]], dtype=D)
FUNCTIONS = {
    Kind.FIXED_POINT: (im.fixed_point, contraction),
    Kind.ROOT: (im.root, pushed),
    Kind.LEAST_SQUARES: (im.least_squares, residuals),
    Kind.MINIMUM: (im.minimise, valley),
}
