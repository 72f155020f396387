"""Programs that torch has compiled, called without its wrapper.

At each call the wrapper of ``torch.compile`` sets and restores a dozen states of the process, which costs more
than the conditions of a program and its shortest solves. A program that is at hand needs none of them: here its
conditions are looked at and it is run. Whatever is not as it is in a plain process (code that is being traced
around the call, ``torch.compiler.set_stance``) and whatever is to be compiled takes torch's way.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from inspect import CO_VARARGS
from types import CodeType, FunctionType
from typing import Any

import torch
from torch._C._dynamo import eval_frame as frames

__all__ = ["Entries"]


class Entries:
    """A function compiled by torch, and what was generated for it so far."""

    def __init__(self, function: Any) -> None:
        self._compiled, self._inner = function, function.__wrapped__
        code = self._inner.__code__
        self._names = code.co_varnames[: code.co_argcount]
        self._rest = code.co_varnames[code.co_argcount] if code.co_flags & CO_VARARGS else None
        self._owner = self._inner.__self__
        self._state: Any = torch._dynamo.eval_frame
        self._kept: list[tuple[Any, Callable[..., Any]]] = []

    def __call__(self, *given: Any) -> Any:
        """The function's value."""
        if self._kept and frames.get_eval_frame_callback() is None and self._state._stance.stance == "default":
            values = (self._owner, *given)
            local = dict(zip(self._names, values, strict=False))
            if self._rest is not None:
                local[self._rest] = values[len(self._names) :]
            for guards, run in self._kept:
                # The conditions of what torch has thrown away refer to objects that are gone.
                if guards.cache_entry is not None and guards.root.check(local):
                    return run(self._owner, *given)
        # Else hooks that a module is given later would not be called.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            value = self._compiled(*given)
        self._kept = self._at_hand()
        return value

    def free(self) -> None:
        """Let go of what was generated; it is generated again where the function is still called."""
        self._kept = []
        self._state.remove_from_cache(self._inner.__code__)

    def _at_hand(self) -> list[tuple[Any, Callable[..., Any]]]:
        """What torch keeps for the function; nothing where another torch keeps it otherwise: the names are private."""
        try:
            kept = frames._debug_get_cache_entry_list(self._inner.__code__)
            found = [(e.guard_manager, self._bound(e.code)) for e in kept]
            usable = all(callable(guards.root.check) for guards, _ in found)
            return found if usable and self._state._stance.stance and frames.get_eval_frame_callback else []
        except AttributeError:
            return []

    def _bound(self, code: CodeType) -> Callable[..., Any]:
        """Generated code as a function that calls generated graphs without torch's wrapper around those."""
        names = self._inner.__func__.__globals__
        space = {name: _bare(names[name]) for name in code.co_names if name in names}
        return FunctionType(code, {"__builtins__": builtins, **space})


def _bare(value: Any) -> Any:
    if value is torch._dynamo.utils:
        return _Unmarked()
    return getattr(value, "_torchdynamo_orig_callable", value) if isinstance(value, FunctionType) else value


class _Unmarked:
    """Torch's helpers of generated code, without marks for its profiler around what precedes a graph."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._dynamo.utils, name)

    @staticmethod
    def record_pregraph_bytecode_enter() -> None:
        """Begin nothing."""

    @staticmethod
    def record_pregraph_bytecode_exit(mark: None) -> None:
        """End nothing."""
