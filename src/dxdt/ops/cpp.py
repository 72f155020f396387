"""Shared libraries of C++ built once and kept on disk by their content."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch

from dxdt.ops.code_cache import cache

__all__ = ["Refused", "build", "library", "machine"]

_SECONDS = 120


class Refused(Exception):
    """There is no C++ compiler, or it does not build the text; the message says which."""


@lru_cache(maxsize=1)
def machine() -> str:
    """What code for this processor may use: part of the name of what is kept on disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        told = ""
    return told + torch.backends.cpu.get_cpu_capability()


def library(text: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The library of a text, from disk where it was built before.

    Raises:
        Refused: no compiler builds it, or the system does not load it.
    """
    compiler = _compiler()
    key = sha256(repr((text, compiler, flags, machine())).encode()).hexdigest()[:40]
    kept = cache()
    try:
        path = kept.get(key)
        if path is not None:
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # removed meanwhile, or of another system
                pass
        with kept.scratch() as scratch:
            path = kept.put(key, build(compiler, flags, text, Path(scratch)))
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Refused(f"generated code could not be kept in {kept.folder} and loaded ({error})") from error


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise Refused("no C++ compiler")


def build(compiler: str, flags: Sequence[str], text: str, scratch: Path) -> Path:
    """The shared library of a text, in a folder of its own.

    Raises:
        Refused: the compiler does not build it, or does not finish.
    """
    code, out = scratch / "program.cpp", scratch / "program.so"
    code.write_text(text)
    command = [compiler, *flags, str(code), "-o", str(out), "-lmvec", "-lm"]
    told = ""
    try:
        for attempt in (command, [x for x in command if x != "-lmvec"]):
            done = subprocess.run(attempt, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == 0:
                return out
            told = done.stderr[:300]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"the C++ compiler did not finish ({type(error).__name__})") from error
    raise Refused(f"the C++ compiler refused a program: {told}")
