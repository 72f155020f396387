"""Losses and the law of the times they are taken at."""
