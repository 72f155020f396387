"""Solutions that are given by a condition: fixed points, roots, least squares, minima, and their derivatives."""

from dxdt.implicit.broyden import Broyden
from dxdt.implicit.fixed_point import Anderson, Picard
from dxdt.implicit.gradient import Gradient, Implicit, JacobianFree, Phantom, Truncated, Unrolled
from dxdt.implicit.least_squares import Dogleg, GaussNewton, LevenbergMarquardt
from dxdt.implicit.linear import GMRES, Dense, LinearSolver, Neumann
from dxdt.implicit.method import ImplicitError, Iterate, Method, Result, Status
from dxdt.implicit.newton import Bisection, Chord, Newton
from dxdt.implicit.problem import Kind, Problem, Tolerance
from dxdt.implicit.quasi_newton import BFGS, LBFGS
from dxdt.implicit.solve import fixed_point, least_squares, minimise, root

__all__ = [
    "BFGS",
    "GMRES",
    "LBFGS",
    "Anderson",
    "Bisection",
    "Broyden",
    "Chord",
    "Dense",
    "Dogleg",
    "GaussNewton",
    "Gradient",
    "Implicit",
    "ImplicitError",
    "Iterate",
    "JacobianFree",
    "Kind",
    "LevenbergMarquardt",
    "LinearSolver",
    "Method",
    "Neumann",
    "Newton",
    "Phantom",
    "Picard",
    "Problem",
    "Result",
    "Status",
    "Tolerance",
    "Truncated",
    "Unrolled",
    "fixed_point",
    "least_squares",
    "minimise",
    "root",
]
