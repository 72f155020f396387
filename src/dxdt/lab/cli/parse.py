"""The arguments of a command, read by the signature of a function."""

from __future__ import annotations

from collections.abc import Callable

import tyro

__all__ = ["call"]


def call(function: Callable[..., None], args: list[str]) -> None:
    """Call a function with what the arguments say; its name is the command's, its docstring the help."""
    name = function.__name__.rstrip("_")
    tyro.cli(function, args=args, prog=f"dxdt {name}", config=(tyro.conf.FlagCreatePairsOff,))
