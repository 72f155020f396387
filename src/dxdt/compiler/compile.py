"""Methods of a program handed to the compiler, each with code of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

from dxdt.compiler.backend import backend
from dxdt.compiler.dependencies import watched
from dxdt.compiler.direct_dispatch import Entries
from dxdt.compiler.explain import CannotCompile, hushed, why
from dxdt.compiler.slow_build import told_if_slow

__all__ = ["Functions"]

# Where errors of tracing and compiling come from.
_COMPILER = ("torch._dynamo", "torch._inductor", "torch._higher_order_ops", "torch.fx.experimental")


@dataclass(eq=False)
class Functions:
    """Methods of a program in compiled form.

    Attributes:
        made: by name.
        failed: those that have no compiled form, and why.
        called: those that were called before.
    """

    made: dict[str, Entries]
    failed: dict[str, str] = field(default_factory=dict[str, str])
    called: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, program: Any, **methods: Callable[..., Any]) -> Functions:
        """Compiled when they are first called."""
        return cls({name: _compile(program, f) for name, f in methods.items()})

    def call(self, name: str, *given: Any) -> Any:
        """The value of one of them.

        Raises:
            CannotCompile: it could not be traced or compiled, now or before.
        """
        if name in self.failed:
            raise CannotCompile(self.failed[name])
        try:
            if name in self.called:
                return self.made[name](*given)
            self.called.add(name)
            with hushed(), told_if_slow():
                return self.made[name](*given)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILER):
                raise
            self.failed[name] = why(error)
            raise CannotCompile(self.failed[name]) from error

    def free(self) -> None:
        """Let go of all generated code; it is generated again where it is still called."""
        for function in self.made.values():
            function.free()


def _compile(program: Any, f: Any) -> Entries:
    # Code of its own for each program: what is generated for it dies with it, and the limit of
    # recompilations counts per program.
    made = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__)
    made.__kwdefaults__ = f.__kwdefaults__
    options: dict[str, Any] = {"guard_filter_fn": partial(_of_the_user, f.__globals__)}
    kinds: dict[str, Any] = {"backend": _told, "isolate_recompiles": True, "options": options}
    return Entries(torch.compile(MethodType(made, program), fullgraph=True, dynamic=False, **kinds))


def _told(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    return watched(backend(graph, inputs), inputs)


def _of_the_user(ours: dict[str, Any], guards: Sequence[Any]) -> list[bool]:
    """Which of the conditions of a program are looked at before each call.

    Those on the user's field, arguments and tensors and on torch's state; a program is made for one
    frozen ``Shape``, and the code of this package and of torch does not change while it runs. Hooks
    that torch keeps for all modules are the user's too. ``ours`` are the globals of the traced function.
    """
    return ["_global_" in g.name or not (_is_ours(ours, g.name) or g.guard_type in _IDLE) for g in guards]


def _is_ours(ours: dict[str, Any], name: str) -> bool:
    if _OURS.search(name):
        return True
    # A global beside the function; torch keeps other modules and the user's scopes under names of its own there.
    found = _GLOBAL.search(name)
    return found is not None and not found[1].startswith("__") and found[1] in ours


# The program itself, modules of torch and of this package, and what all named tuples are made with.
_OURS = re.compile(
    r"(?<![\w.'\]])self\b|__import__\('torch'\)|\['_tuple_new'\]|^G\['__builtins_dict__"
    r"|G\['__import_(dxdt_dot_diffeq|dxdt_dot_compiler|dxdt_dot_ops|torch)_dot_"
)
# Programs leave no graph, whose tensors hooks would pack.
_IDLE = ("AUTOGRAD_SAVED_TENSORS_HOOKS",)
_GLOBAL = re.compile(r"^(?:dict\(|type\()*G\['([^']+)'\]")
