"""Exponential integrators of semi-linear equations."""
