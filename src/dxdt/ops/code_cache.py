"""The folder of generated code: private to the user, checked before anything in it is loaded, bounded in size.

A library is machine code that runs in this process, so a folder counts only if nobody but the user can have written to
it. Each file ends with a digest of what precedes it: one that was cut off or damaged is built again, not loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["BOUND", "VARIABLE", "CodeCache", "Held", "cache", "folder", "point_torch_here", "untrusted"]

VARIABLE = "DXDT_CACHE"
"""The environment variable that names the folder."""

BOUND = 1 << 29
"""Bytes on disk above which what was used least recently goes."""

_MARK = b"\ndxdt"
_TORCH = "TORCHINDUCTOR_CACHE_DIR"
# Seconds after which what a build left behind is nobody's.
_ABANDONED = 3600
# No link is followed, and nothing is waited for.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Held(NamedTuple):
    """What a folder holds."""

    files: int
    bytes: int


@dataclass(frozen=True)
class CodeCache:
    """Libraries by key in one folder.

    Attributes:
        folder: where they lie.
        bound: bytes of all together.
    """

    folder: Path
    bound: int = BOUND

    def get(self, key: str) -> Path | None:
        """The library of a key, marked as used; None where there is none. What is not whole, or not the user's alone,
        is removed."""
        path = self._path(key)
        try:
            # The file that was looked at is the one that was opened, and no link to another.
            with open(os.open(path, _READ), "rb") as file:
                reason = _reason(os.fstat(file.fileno()), f"the generated library {path}")
                content = file.read() if reason is None else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            reason, content = f"the generated library {path} cannot be read ({error.strerror})", b""
        if reason is None and _is_whole(content):
            os.utime(path)
            return path
        if reason is not None:
            warnings.warn(f"{reason}: it is not loaded but built again", RuntimeWarning, stacklevel=2)
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, built: Path) -> Path:
        """Keep a library that was built, whole or not at all; others go where the bound asks for it."""
        content = built.read_bytes()
        path = self._path(key)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".part", delete=False) as file:
            try:
                file.write(content + _trailer(content))
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        _sync(self.folder)
        self.shrink(path)
        return path

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder to build in."""
        return tempfile.TemporaryDirectory(dir=self.folder, prefix="build-", ignore_cleanup_errors=True)

    def held(self) -> Held:
        """How many libraries there are, and their bytes."""
        sizes = [known.st_size for _, known in self._libraries()]
        return Held(len(sizes), sum(sizes))

    def shrink(self, spared: Path) -> None:
        """Remove what was used least recently until a tenth of the bound is free again, and what builds left behind."""
        kept = sorted(self._libraries(), key=lambda x: x[1].st_mtime)
        total = sum(known.st_size for _, known in kept)
        if total > self.bound:
            for path, known in kept:
                if total <= 0.9 * self.bound:
                    break
                if path != spared:
                    # A process that has it loaded keeps it; one that is about to load it builds it again.
                    path.unlink(missing_ok=True)
                    total -= known.st_size
        for path, known in _known(self.folder, os.listdir(self.folder)):
            if path.name.startswith((".", "build-")) and time.time() - known.st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def torch(self) -> int:
        """Bytes of what torch's compiler keeps beside them."""
        return _size(self.folder / "torch")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.so"

    def _libraries(self) -> Iterator[tuple[Path, os.stat_result]]:
        return (x for x in _known(self.folder, os.listdir(self.folder)) if x[0].suffix == ".so")


def folder() -> Path:
    """Where generated code is kept: ``$DXDT_CACHE``, else ``dxdt`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    told = os.environ.get(VARIABLE)
    if told:
        return Path(told).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "dxdt"


def untrusted(path: Path) -> str | None:
    """Why what lies in a folder must not be run, as the beginning of a sentence; None where only the user can have
    written there."""
    name = f"the folder of generated code {path}"
    try:
        known = path.stat()
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if not stat.S_ISDIR(known.st_mode):
        return f"{name} is no folder"
    reason = _reason(known, name)
    for above in path.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return reason or f"{name} lies in {above}, where every user can put another in its place"
    return reason or (None if os.access(path, os.W_OK | os.X_OK) else f"{name} cannot be written to")


def cache() -> CodeCache:
    """The cache of this process: the folder of the user, or one that dies with the process where that is not to be
    trusted; a warning says so."""
    return _cache(folder())


@lru_cache(maxsize=8)
def _cache(where: Path) -> CodeCache:
    reason = _made(where)
    if reason is None:
        return CodeCache(where)
    warnings.warn(
        f"{reason}: nothing is loaded from there, and code is generated for this process alone; name a folder of your "
        f"own in {VARIABLE}, or remove it",
        RuntimeWarning,
        stacklevel=3,
    )
    return CodeCache(Path(_private().name))


@lru_cache(maxsize=1)
def _private() -> tempfile.TemporaryDirectory[str]:
    """A folder of mode 0700 with a name that nobody foresees, removed at the end."""
    return tempfile.TemporaryDirectory(prefix="dxdt-", ignore_cleanup_errors=True)


def point_torch_here() -> str | None:
    """Have torch's compiler keep its code beside ours, unless it was told another place; why that must not be used, or
    None.

    Left alone it loads libraries from a folder with a known name in the temporary directory, whoever made that.
    """
    told = os.environ.get(_TORCH)
    if told:
        return _made(Path(told).absolute())
    where = cache().folder / "torch"
    if where.exists() and _size(where) > BOUND:
        shutil.rmtree(where, ignore_errors=True)
    os.environ[_TORCH] = str(where)
    return _made(where)


def _made(where: Path) -> str | None:
    """Make a folder of mode 0700 if there is none; why what lies there must not be run, or None."""
    try:
        if not where.exists():
            for path in (*reversed(where.parents), where):
                path.mkdir(mode=0o700, exist_ok=True)
        return untrusted(where)
    except OSError as error:
        return f"the folder of generated code {where} cannot be made ({error.strerror})"


def _reason(known: os.stat_result, name: str) -> str | None:
    if not hasattr(os, "geteuid"):
        return None
    if known.st_uid != os.geteuid():
        return f"{name} belongs to user {known.st_uid}, not to {os.geteuid()}"
    if known.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{name} may be written to by others (mode {stat.S_IMODE(known.st_mode):04o})"
    return None


def _trailer(content: bytes) -> bytes:
    return _MARK + hashlib.sha256(content).digest()


def _is_whole(content: bytes) -> bool:
    size = len(_MARK) + hashlib.sha256().digest_size
    return len(content) > size and content[-size:] == _trailer(content[:-size])


def _known(where: Path, names: list[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """What lies in a folder now; others may remove it meanwhile."""
    for name in names:
        try:
            yield where / name, (where / name).lstat()
        except FileNotFoundError:
            continue


def _size(where: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(known.st_size for path, _, names in os.walk(where) for _, known in _known(Path(path), names))


def _sync(where: Path) -> None:
    """Have a rename outlast a crash, where folders can be opened."""
    try:
        at = os.open(where, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(at)
    finally:
        os.close(at)
