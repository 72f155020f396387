"""A network as it is: what it returns, and the dtype and device that it works in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["answer_of", "ask", "home_of"]


def answer_of(output: Any, name: str) -> Tensor:
    """The tensor that a network means by what it returned.

    A tuple or list means its first entry, a mapping or an object its entry `sample`, the convention of diffusers.

    Raises:
        TypeError: nothing of these.
    """
    if isinstance(output, Tensor):
        return output
    found: Any = None
    if isinstance(output, Mapping):
        found = output.get("sample")  # pyright: ignore[reportUnknownMemberType]
    elif hasattr(output, "sample"):
        found = output.sample
    elif isinstance(output, tuple | list) and output:
        found = output[0]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        f"{name}: the network answered with a {type(output).__name__}, in which no tensor is known: return a tensor, a "
        f"tuple that begins with it, or an object with `sample`; or wrap the network in a function that takes it out."
    )


def home_of(net: Any) -> tuple[torch.dtype, torch.device] | None:
    """Dtype and device of the first floating-point parameter of a network, or None where it has none."""
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype, p.device
    return None


def ask(
    net: Callable[..., Any], x: Tensor, told: Tensor, mu: Tensor | None, named: dict[str, Any], name: str
) -> Tensor:
    """The network's answer to x_t, asked in the dtype of its weights where they have another than x_t alone."""
    given = (x, told) if mu is None else (x, told, mu)
    home = home_of(net)
    if home is None or home[0] is x.dtype or any(p.dtype is x.dtype for p in net.parameters()):  # pyright: ignore
        return answer_of(net(*given, **named), name)
    dtype = home[0]

    def own(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    if told.is_floating_point():
        told = told.to(torch.promote_types(dtype, torch.float32))
    rest = () if mu is None else (own(mu),)
    named = {key: own(value) for key, value in named.items()}
    return answer_of(net(own(x), told, *rest, **named), name).to(x.dtype)
