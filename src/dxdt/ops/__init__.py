"""Calculus on tensors: trees, clocks, derivatives, random numbers."""
