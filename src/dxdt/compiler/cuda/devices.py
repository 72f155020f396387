"""Which devices replay, and the programs of a traced graph there."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dxdt.compiler.cuda.capture import Capture, Graphs
from dxdt.compiler.cuda.replay import Compiler, Recent, Replayed
from dxdt.compiler.cuda.split_loop import Unsuited, take_apart

__all__ = ["replayed", "replays"]


def replays(device: torch.device) -> bool:
    """Whether loops on a device are replayed."""
    return device.type == "cuda"


def replayed(graph: torch.fx.GraphModule, compiler: Compiler) -> Replayed:
    """A functional graph with one loop as a program that is replayed.

    Raises:
        Unsuited: its device does not replay, or it needs the host within the loop.
    """
    values = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    devices = {x.device for x in values if isinstance(x, Tensor) and replays(x.device)}
    if len(devices) != 1:
        raise Unsuited("its tensors are on more than one device" if devices else "its device does not replay")
    (device,) = devices
    return Replayed(take_apart(graph, device), compiler, *_lane(device))


@lru_cache
def _lane(device: torch.device) -> tuple[Capture, Recent]:
    """What the programs of a device share."""
    return Graphs(device), Recent()
