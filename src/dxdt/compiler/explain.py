"""Why a function has no compiled form, in words for the user."""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["DRAWS", "REMEMBERS", "CannotCompile", "NotForAllSizes", "hushed", "why"]

DRAWS = (
    "it draws random numbers (dropout?), others than generated code would draw: call .eval() on it, "
    "or write the noise as an SDE"
)
REMEMBERS = (
    "it changes {} whenever it is called, and generated code would not: read the number of evaluations from "
    "Solution.stats, and call .eval() on layers that keep averages"
)
"""What is said of fields that are not functions of their arguments."""


class CannotCompile(Exception):
    """A solve has no compiled form; the message says why."""


class NotForAllSizes(CannotCompile):
    """A solve has no compiled form that serves all batch sizes; one for each size may exist."""


# What torch's compiler says, and what it means for a field; the first that fits.
_MEANINGS = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        ("draws random numbers|RandomVariable|random_ops", DRAWS),
        ("data-dependent branching", "a Python branch depends on values of tensors: choose with torch.where"),
        (
            "data-dependent expression|specialized integer|Unsupported Tensor.item|unbacked",
            "a Python number or an index taken from a tensor decides what is computed: keep it a tensor, choose with "
            "torch.where, and read tables by table.index_select(0, index.reshape(1))",
        ),
        (
            "Mutating a variable from outside|HOP.*mutat",
            "it changes a Python object or a buffer that outlives it: a compiled field only computes its value",
        ),
        (
            "modifying the input|mutat.*input",
            "it writes into the state that it is given: form new tensors instead",
        ),
        (
            r"torch\.autograd\.grad",
            "it calls torch.autograd.grad, which is not traced: use torch.func.grad or torch.func.vjp",
        ),
        (r"numpy function <function (\w+)", r"it calls numpy's \1, which torch does not know: write it with torch"),
        (
            r"trace (?:the )?builtin (?:operator )?`(?:<unknown module>\.)?([\w.]+?)\.?`",
            r"it calls \1, which is no operation on tensors: compute with torch only",
        ),
        (
            "C\\+\\+ compiler|CppCompileError",
            "there is no working C++ compiler: install g++ or clang++, or set CXX to one",
        ),
        (r"raised exception (\w+)", r"it raises \1"),
        ("support aliasing", "an operation in it has outputs that share memory, which torch's loops do not take"),
    )
)


@contextmanager
def hushed() -> Generator[None]:
    """A block in which torch's compiler keeps its own warnings: of what fails a better one is given."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        warnings.filterwarnings("ignore", message="(Dynamo|Torchinductor) does not")
        yield


def why(error: Exception) -> str:
    """The cause in an error of the compiler, in one line, and where in the user's code it lies."""
    text, name = str(error), type(error).__name__
    if name == "FailOnRecompileLimitHit":
        return (
            "it was compiled anew too often, because a Python number that it uses or the kind of a tensor changes: "
            "pass what varies as tensors in args="
        )
    inner = getattr(error, "inner_exception", error)
    place = _place(text)
    for pattern, meaning in _MEANINGS:
        found = pattern.search(f"{type(inner).__name__}: {text}")
        if found:
            return found.expand(meaning) + place
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    told = [x.removeprefix("Explanation:").strip() for x in lines if x.startswith("Explanation:")]
    plain = [x for x in lines if not x.startswith(("backend=", "This higher order operator"))]
    cause = (told or plain or [name])[0]
    cause = cause if len(cause) <= 200 else cause[:197] + "..."
    return f"torch's compiler cannot take it ({cause.rstrip('.')}){place}"


def _place(text: str) -> str:
    """The user's line that could not be traced."""
    _, _, trace = text.partition("from user code:")
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+|<\w+>)\n\s*(.+)', trace)
    own = [x for x in frames if not re.search(r"[\\/](dxdt[\\/](diffeq|compiler)|torch)[\\/]", x[0])]
    if not own:
        return ""
    _, line, function, code = own[-1]
    return f" (line {line} in {function}: {code.strip()})"
