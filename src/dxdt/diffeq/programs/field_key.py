"""What makes two fields run the same program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

from dxdt.compiler.explain import CannotCompile
from dxdt.diffeq.loop.plan import Plan
from dxdt.diffeq.programs.signature import fields_of
from dxdt.ops.ambient import Ambient
from dxdt.ops.modules import descend, has_global_hooks
from dxdt.ops.reach import filled

__all__ = ["identified", "identity"]


def identity(f: Any, depth: int = 4) -> Any:
    """What makes two fields run the same program: code, modules, the shapes of their tensors.

    Functions that a field closes over or has as defaults are looked through to some depth, and so are
    modules that it knows by a global name or holds as an attribute.
    """
    if isinstance(f, tuple):
        return tuple(identity(x, depth) for x in f)
    if isinstance(f, nn.Module):
        modules = descend(f)
        tensors = [p for m in modules for kept in (m._parameters, m._buffers) for p in kept.values() if p is not None]
        kinds = tuple([(type(m), m.training, *_called(m)) for m in modules])
        return kinds, tuple([(p.shape, p.dtype, p.device) for p in tensors])
    if isinstance(f, partial):
        given = (*f.args, *f.keywords.values())
        return "partial", len(f.args), tuple(f.keywords), identity(f.func, depth), _known(given, depth)
    owner = getattr(f, "__self__", None)
    code = getattr(f, "__code__", None) or getattr(getattr(f, "__func__", None), "__code__", None)
    if code is None:
        code = getattr(getattr(type(f), "__call__", None), "__code__", None)  # noqa: B004
        if code is None:
            raise CannotCompile(f"the field is a {type(f).__name__}, which has no code that could be traced")
        inside = [x for x in getattr(f, "__dict__", {}).values() if isinstance(x, nn.Module)]
        return type(f), code, _known(inside, depth)
    if not hasattr(f, "__closure__"):
        return code, _known((owner,), depth)
    named = [x for x in map(f.__globals__.get, code.co_names) if isinstance(x, nn.Module)]
    return code, _known((owner, *_held(f), *named), depth)


def _called(module: nn.Module) -> tuple[Any, ...]:
    """What runs when a module is called: its class's forward, which may be patched, or its own, and its hooks."""
    own, hooks = module.__dict__.get("forward"), (module._forward_pre_hooks, module._forward_hooks)
    return type(module).forward, own, *(tuple(h.values()) for h in hooks if h)


def _held(f: Any) -> Iterator[Any]:
    """What a function closes over, and the defaults of its arguments."""
    yield from (c.cell_contents for c in f.__closure__ or () if filled(c))
    yield from f.__defaults__ or ()
    yield from (f.__kwdefaults__ or {}).values()


def _known(values: Iterable[Any], depth: int) -> tuple[Any, ...]:
    """Identities of the modules and functions among some values."""
    return tuple(
        identity(x, depth - 1)
        for x in values
        if depth and (isinstance(x, nn.Module) or callable(x) and hasattr(x, "__code__"))
    )


def identified(plan: Plan) -> Any:
    """The identity of the fields of a solve and torch's state around it, formed once.

    Raises:
        CannotCompile: hooks that run for every module.
    """
    equation = plan.equation
    memo = equation.outlook.memo
    if "identity" not in memo:
        if has_global_hooks():
            raise CannotCompile(
                "there are hooks for all modules (torch.nn.modules.module), which no program can notice"
            )
        memo["identity"] = identity(fields_of(equation.equation)), Ambient.now(equation.layout.device.type)
    return memo["identity"]
