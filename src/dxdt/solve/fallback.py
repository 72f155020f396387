"""Why a solve runs eager although it was to be compiled, said once for each reason."""

from __future__ import annotations

import re
import warnings

__all__ = ["CannotCompile", "NotForAllSizes", "warn_once", "why"]


class CannotCompile(Exception):
    """A solve has no compiled form; the message says why."""


class NotForAllSizes(CannotCompile):
    """A solve has no compiled form that serves all batch sizes; one for each size may exist."""


_warned: set[str] = set()


def warn_once(reason: str) -> None:
    """Say once for each reason that a solve runs eager."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"compile=True runs eager: {reason}", RuntimeWarning, stacklevel=4)


def why(error: Exception) -> str:
    """The cause in an error of the compiler, in one line, and where in the user's code it lies."""
    text, name = str(error), type(error).__name__
    if name == "FailOnRecompileLimitHit":
        return (
            "the field was compiled anew too often, because a Python number that it uses changes: "
            "pass what varies as tensors in args="
        )
    if "C++ compiler" in text or "CppCompileError" in text:
        return "there is no working C++ compiler: install g++ or clang++, or set CXX to one"
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    told = [x.removeprefix("Explanation:").strip() for x in lines if x.startswith("Explanation:")]
    plain = [x for x in lines if not x.startswith(("backend=", "This higher order operator"))]
    cause = (told or plain or [name])[0]
    cause = cause if len(cause) <= 200 else cause[:197] + "..."
    return f"{cause.rstrip('.')}{_place(text)}"


def _place(text: str) -> str:
    """The user's line that could not be traced."""
    _, _, trace = text.partition("from user code:")
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)', trace)
    own = [x for x in frames if not re.search(r"[\\/](dxdt[\\/]solve|torch)[\\/]", x[0])]
    if not own:
        return ""
    _, line, function, code = own[-1]
    return f" (line {line} in {function}: {code.strip()})"
