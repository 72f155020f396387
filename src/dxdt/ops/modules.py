"""Modules and parameters of a network, found by a walk that costs little beside a short solve."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["descend", "has_global_hooks", "named", "parameters"]


def has_global_hooks() -> bool:
    """Whether something runs whenever any module is called."""
    return bool(nn.modules.module._has_any_global_hook())


def descend(root: nn.Module) -> list[nn.Module]:
    """A module and all modules in it, each once, as ``root.modules()``."""
    found: dict[int, nn.Module] = {}
    stack: list[nn.Module | None] = [root]
    while stack:
        module = stack.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            stack.extend(reversed(module._modules.values()))
    return list(found.values())


def parameters(roots: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters of some modules that require a gradient, each once."""
    found: dict[int, Tensor] = {}
    for root in roots:
        for module in descend(root):
            for p in module._parameters.values():
                if p is not None and p.requires_grad:
                    found.setdefault(id(p), p)
    return list(found.values())


def named(root: nn.Module) -> dict[int, str]:
    """The first name of each parameter, as in ``root.named_parameters()``, by its identity."""
    names: dict[int, str] = {}
    seen = set[int]()
    stack: list[tuple[str, nn.Module | None]] = [("", root)]
    while stack:
        prefix, module = stack.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        for name, p in module._parameters.items():
            if p is not None:
                names.setdefault(id(p), prefix + name)
        stack.extend([(f"{prefix}{name}.", inner) for name, inner in reversed(module._modules.items())])
    return names
