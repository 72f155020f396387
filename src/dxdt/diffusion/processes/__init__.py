"""Gaussian diffusions between data and noise."""
