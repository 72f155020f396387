"""Reverse equations, grids, and the solvers that are special to diffusion."""
