"""Files of `torch.save`, zipped and of the older kind, and plain pickles: read with nothing in them run.

A zip file holds data.pkl, which refers to records data/0, data/1, ... by their names. The older kind is a row of
pickles (a magic number, a version, facts about the system, the content, the names of storages) and then the storages.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from torch import Tensor

from dxdt.interop.budget import Budget
from dxdt.interop.records import sealed
from dxdt.interop.storages import Storage, StorageKind, mapped, span
from dxdt.interop.unpickle import Restricted

__all__ = ["is_zip", "read_content"]

_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL = 30  # bytes of a zip record's local header before its name


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file; a pickle may end with one."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_content(path: Path) -> Any:
    """Read a file of `torch.save` or a plain pickle: tensors, numbers, containers, and networks as `Record`.

    Raises:
        ValueError: the file is truncated, asks for anything else, or for more than its length explains; nothing in it
            was run.
        FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name.")

    def read() -> Any:
        length = path.stat().st_size
        budget = Budget(length)
        if is_zip(path):
            return sealed(_zipped(path, budget))
        with path.open("rb") as file:
            older = _MAGIC.to_bytes(10, "little") in file.read(32)
            file.seek(0)
            if older:
                return sealed(_older(file, length, budget))
            return sealed(Restricted(file, length, _Inside(budget), budget).load())

    return _guarded(path, read)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Run a reader and turn its failures into sentences."""
    try:
        return read()
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        message = _first_line(error)
        if "truncated" in message or "Ran out" in message:
            raise ValueError(f"{path} is truncated ({message}); fetch it again.") from error
        raise ValueError(
            f"{path} was refused, and nothing in it was run: {message}; "
            "only tensors, numbers and networks of known kinds are read."
        ) from error
    except Exception as error:  # damaged bytes may ask for anything: unknown codes, missing keys, absurd arguments
        raise ValueError(
            f"{path} is not a whole checkpoint ({_first_line(error)}); fetch it again, or restore a copy."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _reference(pid: Any) -> tuple[StorageKind, str, int]:
    """Kind, name and number of entries of a storage that a pickle refers to."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
        raise pickle.UnpicklingError("it refers to something that is no storage")
    _, kind, key, _, count, *view = pid
    if not (isinstance(kind, StorageKind) and isinstance(key, str) and type(count) is int and count >= 0):
        raise pickle.UnpicklingError("it refers to a storage without kind, name or size")
    if any(v is not None for v in view):
        raise pickle.UnpicklingError("it refers to a part of a storage, as torch before 0.4 wrote")
    return kind, key, count


@final
class _Inside:
    """Storages written inside a pickle, each a file of the older kind."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def storage(self, reference: Any) -> Any:
        """Refuse references to other files."""
        del reference
        raise pickle.UnpicklingError("it refers to objects outside itself")

    def within(self, content: Any) -> Storage:
        """Return the storage that the bytes describe."""
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("a storage without bytes")
        self.budget.spend(len(content))
        found = _older(io.BytesIO(content), len(content), self.budget)
        if not isinstance(found, Storage):
            raise pickle.UnpicklingError("what is written as a storage is none")
        return found


@final
class _Records:
    """Storages that are records of a zip file, whose bytes stay where they are until they are looked at."""

    def __init__(self, content: Tensor, archive: zipfile.ZipFile, folder: str) -> None:
        self.content, self.archive, self.folder = content, archive, folder
        self.left = content.numel()
        self.found: dict[str, Tensor] = {}

    def storage(self, reference: Any) -> Storage:
        """Return the record that a reference names."""
        kind, key, count = _reference(reference)
        if key not in self.found:
            self.found[key] = self.record(f"data/{key}", kind.dtype)
        bytes_ = self.found[key]
        if count * kind.dtype.itemsize > bytes_.numel():
            raise pickle.UnpicklingError(f"storage {key[:40]} of {count} entries has {bytes_.numel()} bytes")
        return Storage(bytes_[: count * kind.dtype.itemsize], kind.dtype)

    def within(self, content: Any) -> Any:
        """Refuse storages inside the pickle, which zip files do not have."""
        del content
        raise pickle.UnpicklingError("it holds a storage inside its pickle")

    def record(self, name: str, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return the bytes of a record, which torch.save never compresses."""
        info = self.archive.getinfo(f"{self.folder}/{name}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise pickle.UnpicklingError(f"its record {name[:40]} is compressed or encrypted, as torch.save never does")
        self.left -= info.file_size
        if self.left < 0:
            raise pickle.UnpicklingError("its records are longer than the file: they overlap")
        header = span(self.content, info.header_offset, _LOCAL, torch.uint8).tolist()
        if bytes(header[:4]) != b"PK\x03\x04":
            raise pickle.UnpicklingError(f"its record {name[:40]} is not where its table says")
        start = info.header_offset + _LOCAL + header[26] + 256 * header[27] + header[28] + 256 * header[29]
        return span(self.content, start, info.file_size, dtype)


def _zipped(path: Path, budget: Budget) -> Any:
    """The content of a zip file."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise ValueError("a zip file without one data.pkl")
        folder = found[0].removesuffix("/data.pkl")
        if f"{folder}/constants.pkl" in names:
            raise pickle.UnpicklingError("it is a program of TorchScript; save the weights instead: state_dict()")
        records = _Records(mapped(path), archive, folder)
        if f"{folder}/byteorder" in names and bytes(records.record("byteorder").tolist()) != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        pickled = records.record("data.pkl").numpy().tobytes()
        return Restricted(io.BytesIO(pickled), len(pickled), records, budget).load()


@final
class _Following:
    """Storages that follow the pickle that refers to them: made when they are named, filled later."""

    def __init__(self, length: int) -> None:
        self.left = length
        self.found: dict[str, Storage] = {}

    def storage(self, reference: Any) -> Any:
        """Return a storage that is to be filled, no larger than the file."""
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            return reference[1]
        kind, key, count = _reference(reference)
        if key not in self.found:
            self.left -= count * kind.dtype.itemsize
            if self.left < 0:
                raise pickle.UnpicklingError("it is truncated: its storages are longer than the file")
            content = torch.empty(count * kind.dtype.itemsize, dtype=torch.uint8)
            self.found[key] = Storage(content, kind.dtype)
        elif self.found[key].dtype is not kind.dtype or self.found[key].entries().numel() != count:
            raise pickle.UnpicklingError(f"storage {key[:40]} has two kinds or sizes")
        return self.found[key]

    def within(self, content: Any) -> Any:
        """Refuse storages inside the pickle, where others follow it."""
        del content
        raise pickle.UnpicklingError("it holds a storage inside its pickle")

    def fill(self, key: Any, file: BinaryIO) -> None:
        """Read a storage: its number of entries in eight bytes, and they."""
        if key not in self.found:
            raise pickle.UnpicklingError("it holds a storage that nothing refers to")
        storage = self.found.pop(key)
        count = int.from_bytes(file.read(8), "little")
        if count != storage.entries().numel():
            raise pickle.UnpicklingError(f"storage {str(key)[:40]} has {count} entries where others were announced")
        view = storage.content.numpy()
        done = 0
        while done < len(view):
            part = file.read(min(1 << 24, len(view) - done))
            if not part:
                raise pickle.UnpicklingError("it is truncated: a storage lies beyond its end")
            view[done : done + len(part)] = memoryview(part)
            done += len(part)


def _older(file: BinaryIO, length: int, budget: Budget) -> Any:
    """The content of a file of the older kind."""

    def pickled(source: Any = None) -> Any:
        return Restricted(file, length, source, budget).load()

    if pickled() != _MAGIC:
        raise pickle.UnpicklingError("it is no file of torch.save")
    _, system = pickled(), pickled()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise pickle.UnpicklingError("its numbers are big-endian")
    storages = _Following(length)
    content = pickled(storages)
    keys = pickled()
    for key in keys:
        storages.fill(key, file)
    if storages.found:
        raise pickle.UnpicklingError("it is truncated: a storage is missing")
    return content
