"""The reader of pickles: it reads what torch writes, never beyond a storage, in no more time than a file explains."""

import copy
import io
import pickle
import pickletools
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dxdt.interop.read import read_content
from dxdt.interop.records import Record

PLAIN = torch.arange(12.0).reshape(3, 4)
TENSORS = {
    "plain": PLAIN,
    "double": PLAIN.double(),
    "half": PLAIN.half(),
    "bfloat16": PLAIN.bfloat16(),
    "bool": PLAIN > 5,
    "int8": PLAIN.to(torch.int8),
    "uint16": PLAIN.to(torch.uint16),
    "complex": torch.complex(PLAIN, -PLAIN),
    "transposed": PLAIN.t(),
    "part": PLAIN[1:, ::2],
    "expanded": PLAIN[:, :1].expand(3, 5),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(PLAIN),
}


def store(content: Any, kind: str, path: Path) -> Path:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = pytest.mark.parametrize("kind", ["pickle", "zip", "older"])


@KINDS
@pytest.mark.parametrize("name", TENSORS)
def test_what_torch_writes_is_read_as_torch_reads_it(name: str, kind: str, tmp_path: Path):
    content = {"x": TENSORS[name], "again": TENSORS[name], "step": np.int64(7), "rest": [1, (2.5, "a"), {3: None}]}
    found = read_content(store(content, kind, tmp_path / "file.pt"))
    wanted = TENSORS[name].detach()
    assert found["x"].dtype == wanted.dtype
    assert found["x"].stride() == wanted.stride()
    assert torch.equal(found["x"], wanted)
    assert torch.equal(found["again"], wanted)
    assert found["step"] == 7
    assert found["rest"] == content["rest"]


@KINDS
def test_modules_are_records_of_their_attributes(kind: str, tmp_path: Path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    found = read_content(store({"net": net, "weights": net.state_dict()}, kind, tmp_path / "file.pt"))
    assert isinstance(found["net"], Record)
    assert found["net"].kind == "Sequential"
    tensors = found["net"].tensors()
    assert set(tensors) == set(net.state_dict()) == set(found["weights"])
    assert all(torch.equal(tensors[name], value) for name, value in net.state_dict().items())


class Rebuilt:
    """Pickled as a tensor whose place in its storage is of our choice."""

    def __init__(self, *where: Any, function: Any = torch._utils._rebuild_tensor_v2) -> None:
        self.where, self.function = where, function

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.arange(4.0).storage()
        if self.function is torch._utils._rebuild_tensor:
            return self.function, (storage, *self.where)
        if self.function is torch._utils._rebuild_tensor_v3:
            return self.function, (storage.untyped(), *self.where, False, OrderedDict(), torch.float32)
        return self.function, (storage, *self.where, False, OrderedDict())


BEYOND = {
    "many": (0, (1000,), (1,)),
    "one": (0, (5,), (1,)),
    "offset": (4, (1,), (1,)),
    "far": (1 << 40, (1,), (1,)),
    "strides": (0, (2, 2), (2, 3)),
    "negative stride": (3, (2,), (-4,)),
    "negative offset": (-1, (2,), (1,)),
    "negative size": (0, (-2,), (1,)),
    "overflowing": (0, (1 << 33, 1 << 33), (0, 0)),
    "overflowing strides": (0, (2, 2), (1 << 63, 1 << 63)),
    "strides wanting": (0, (2, 2), (1,)),
    "no numbers": (0, ("2",), (1,)),
    "a float": (0.5, (2,), (1,)),
    "spread": (0, (1 << 40,), (0,)),
}


@KINDS
@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("function", ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"])
def test_no_tensor_lies_beyond_its_storage(function: str, name: str, kind: str, tmp_path: Path):
    content = {"x": Rebuilt(*BEYOND[name], function=getattr(torch._utils, function))}
    with pytest.raises(ValueError, match=r"file.pt was refused"):
        read_content(store(content, kind, tmp_path / "file.pt"))


@pytest.mark.parametrize("function", ["_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_qtensor"])
def test_other_rebuild_functions_are_refused(function: str, tmp_path: Path):
    content = {"x": Rebuilt(0, (4,), (1,), function=getattr(torch._utils, function))}
    with pytest.raises(ValueError, match=f"asks for torch._utils.{function}"):
        read_content(store(content, "pickle", tmp_path / "file.pt"))


def doubling(start: bytes, double: bytes, end: bytes = b"", levels: int = 60) -> bytes:
    return b"\x80\x02" + start + double * levels + end + b"."


def collisions() -> bytes:
    """A dictionary whose integer keys all have one hash."""
    keys = b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"N" for k in range(1, 20_000))
    return b"\x80\x02}(" + keys + b"u."


def copies(what: bytes) -> bytes:
    """A long text or list that is made again and again."""
    return b"\x80\x02](" + what + b"q\x000" + b"cbuiltins\nlist\nq\x010" + b"h\x01h\x00\x85R" * 60_000 + b"e."


BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: doubling(b"]", b"q\x00]q\x01(h\x00h\x00e0h\x01"),
    "tuples": lambda: doubling(b")", b"q\x00h\x00\x86"),
    "dictionaries": lambda: doubling(b"}", b"q\x00}q\x01(K\x01h\x00K\x02h\x00u0h\x01"),
    "hashes": lambda: doubling(b")", b"q\x00h\x00\x86", b"q\x05}q\x06h\x05Ns"),
    "sets of tuples": lambda: b"\x80\x04\x8f(" + doubling(b")", b"q\x00h\x00\x86")[2:-1] + b"\x90.",
    "itself": lambda: b"\x80\x02]q\x00h\x00a.",
    "itself in a dictionary": lambda: b"\x80\x02}q\x00K\x01h\x00s.",
    "collisions": collisions,
    "copies": lambda: copies(b"](" + b"N" * 30_000 + b"e"),
    "long bytes": lambda: b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b".",
    "long text": lambda: b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b".",
    "long buffer": lambda: b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".",
    "long frame": lambda: b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b".",
    "long number": lambda: b"\x80\x02\x8b" + (1 << 30).to_bytes(4, "little") + b".",
    "digits": lambda: b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "many types": lambda: b"\x80\x02](" + b"ctorch.nn.modules.x\nA\n" * 20_000 + b"e" + b"h\x77" + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_grows_without_end_is_refused_soon(name: str, tmp_path: Path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name]())
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"bomb.pkl"):
        read_content(path)
    # No measure of speed: what this guards against takes minutes to years.
    assert time.process_time() - begun < 5


def test_bombs_are_what_they_seem():
    """Each is a whole program of pickle operations, whose length does not explain what it makes."""
    for name in ("lists", "tuples", "dictionaries", "hashes", "copies"):
        list(pickletools.genops(BOMBS[name]()))


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **options: Any) -> Path:
    """The zip file of torch.save with other records."""
    old = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w", **options) as sink:
        for info in source.infolist():
            sink.writestr(info.filename, change(info.filename, source.read(info)))
    return path


def test_zip_bombs_are_refused_unread(tmp_path: Path):
    path = store({"x": torch.zeros(1 << 22)}, "zip", tmp_path / "file.pt")
    rewritten(path, lambda name, content: content, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_content(path)
    pickled = pickle.dumps({"x": "a" * 1000})
    path = store({"x": 1}, "zip", tmp_path / "file.pt")
    rewritten(path, lambda name, content: pickled if name.endswith("data.pkl") else content)
    assert read_content(path) == {"x": "a" * 1000}


def test_storages_shorter_than_announced_are_refused(tmp_path: Path):
    path = store({"x": torch.zeros(100)}, "zip", tmp_path / "file.pt")
    rewritten(path, lambda name, content: content[:40] if "/data/" in name else content)
    with pytest.raises(ValueError, match="100 entries has 40 bytes"):
        read_content(path)
    path = store({"x": torch.zeros(100)}, "older", tmp_path / "file.pt")
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    with pytest.raises(ValueError, match="truncated"):
        read_content(path)


def test_records_that_overlap_are_refused(tmp_path: Path):
    """Many names for one place: a table of contents longer than the contents."""
    path = store([torch.full((1000,), float(k)) for k in range(8)], "zip", tmp_path / "file.pt")
    old = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as sink:
        for info in source.infolist():
            if not info.filename.endswith(tuple(f"/data/{k}" for k in range(1, 8))):
                sink.writestr(info.filename, source.read(info))
        first = sink.getinfo("file/data/0")
        for k in range(1, 8):
            other = copy.copy(first)
            other.filename = f"file/data/{k}"
            sink.filelist.append(other)
    with pytest.raises(ValueError, match=r"file.pt"):
        read_content(path)


def test_programs_and_foreign_orders_are_named(tmp_path: Path):
    path = tmp_path / "file.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(ValueError, match="TorchScript"):
        read_content(path)
    path = store({"x": torch.zeros(2)}, "zip", path)
    rewritten(path, lambda name, content: b"big" if name.endswith("byteorder") else content)
    with pytest.raises(ValueError, match="big-endian"):
        read_content(path)
