"""Solves whose times, where more than two are given, are their steps."""

from typing import Any

import dxdt


def solve_on_grid(equation: Any, y: Any, t: Any, **options: Any) -> dxdt.diffeq.solution.Solution:
    """Solve along a grid of times, or over a span, and keep the end."""
    if len(t) > 2:
        options = {"controller": dxdt.Grid(t), "save": dxdt.Save(end=True)} | options
    return dxdt.solve(equation, y, t, **options)
