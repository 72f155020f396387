"""Functions that torch's compiler calls as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch._C._dynamo import eval_frame as frames

__all__ = ["opaque"]

F = TypeVar("F", bound=Callable[..., object])


def opaque(f: F) -> F:
    """Let ``torch.compile`` call a function, and all that it calls, without looking into it.

    The graph around the call is broken there; with ``fullgraph=True`` that is an error, which tells why. Unlike
    ``torch.compiler.disable`` this costs a call nothing, and no import of torch's compiler.
    """
    told = (
        f"{f.__name__} of dxdt runs its own loop, whose number of steps depends on values, and is no part of a graph: "
        "compile with fullgraph=False, export with strict=False, and give solve compile=True where its loop is to be "
        "generated code"
    )
    f.__dict__.update(_torchdynamo_disable=True, _torchdynamo_disable_msg=told)
    strategy = getattr(frames, "_FrameExecStrategy", None)
    if strategy is not None:
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(f.__code__, strategy(skip, skip))  # pyright: ignore[reportFunctionMemberAccess]
    return f
