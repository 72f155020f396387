"""Fields that differentiate inside, where no graph is kept around them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dxdt.ops.tree import tree_map

__all__ = ["graphed", "wants_graph"]

# What torch says where a derivative is asked for and no graph was kept.
_GRAPHLESS = re.compile("does not require grad|not have been used in the graph")


def wants_graph(error: RuntimeError) -> bool:
    """Whether an error is that of a derivative without a graph."""
    return _GRAPHLESS.search(str(error)) is not None


def graphed(f: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    """The value of a field that is given a state of which a graph is kept, without that graph."""

    def shown(x: Any) -> Any:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        return (x.clone() if x.is_inference() else x.detach()).requires_grad_()

    t, y, *rest = given
    with torch.inference_mode(False), torch.enable_grad():
        value = f(t, tree_map(shown, y), *rest)
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, value)
