"""Reproduced results: one frozen configuration and one `run` a file."""
