"""Shared libraries of C++ built once and kept on disk by their content."""

from __future__ import annotations

import ctypes
import getpass
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch

__all__ = ["Refused", "build", "folder", "library", "machine"]

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


def folder() -> Path:
    """Where libraries are kept: in the cache of torch's compiler, which is not imported for that."""
    told = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if told:
        return Path(told) / "dxdt"
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}" / "dxdt"


def library(text: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The library of a text, from disk where it was built before.

    Raises:
        Refused: no compiler builds it.
    """
    compiler = _compiler()
    key = sha256(repr((text, compiler, flags, machine())).encode()).hexdigest()[:40]
    path = folder() / f"{key}.so"
    if not path.exists():
        build(compiler, flags, text, path)
    return ctypes.CDLL(str(path))


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise Refused("no C++ compiler")


def build(compiler: str, flags: Sequence[str], text: str, path: Path) -> None:
    """Compile a text to a shared library, which appears at its path whole or not at all.

    Raises:
        Refused: the compiler does not build it, or does not finish.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            code, out = Path(scratch) / "program.cpp", Path(scratch) / "program.so"
            code.write_text(text)
            command = [compiler, *flags, str(code), "-o", str(out), "-lmvec", "-lm"]
            told = ""
            for attempt in (command, [x for x in command if x != "-lmvec"]):
                done = subprocess.run(attempt, capture_output=True, text=True, timeout=_SECONDS)
                if done.returncode == 0:
                    os.replace(out, path)
                    return
                told = done.stderr[:300]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"the C++ compiler did not finish ({type(error).__name__})") from error
    raise Refused(f"the C++ compiler refused a program: {told}")
