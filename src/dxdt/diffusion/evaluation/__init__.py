"""Likelihoods and encodings by the probability flow."""
