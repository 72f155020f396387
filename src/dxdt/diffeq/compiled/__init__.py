"""Compiled solves: forward, events, and a backward pass for each gradient rule."""
