"""A controller as a program sees it: its rule, and the times and tolerances that are inputs."""

from __future__ import annotations

from typing import Any

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.control.controller import Controller

__all__ = ["split"]


def split(controller: Controller) -> tuple[Controller, Any]:
    """The rule that programs are kept by, and its input (see ``Controller.split``).

    Raises:
        CannotCompile: the rule is no value that can be a key.
    """
    rule, table = controller.split()
    try:
        hash(rule)
    except TypeError:
        name = type(controller).__name__
        raise CannotCompile(f"{name} has no compiled form: make it a frozen dataclass of numbers") from None
    return rule, table
