"""Read pickles without running what they ask for.

A pickle is a program. Here it may name tensors, plain containers and numbers; every class of a network becomes a
`Record` of its attributes, and anything else is refused before it is called.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

__all__ = ["Record", "is_zip", "read_objects", "read_tensors"]

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


@final
@dataclass(frozen=True)
class Record:
    """The attributes of an object whose class was not looked up.

    Attributes:
        kind: name of the class in the file.
        state: its attributes.
    """

    kind: str
    state: dict[str, Any]

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Return parameters and buffers of a stored module by their dotted names."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in (self.state.get(group) or {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value.detach()
        for name, child in (self.state.get("_modules") or {}).items():
            if isinstance(child, Record):
                found |= child.tensors(f"{prefix}{name}.")
        return found


class _Shell:
    """A module of torch.nn under construction: the pickle's BUILD fills it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


class _Module:
    """Stands for a class of torch.nn."""

    kind = "Module"

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Return an empty shell, whatever the arguments."""
        del args, options
        return _Shell(cls.kind)


def _sealed(value: Any) -> Any:
    """Turn shells into records, all the way down."""
    if isinstance(value, _Shell | Record):
        return Record(value.kind, {k: _sealed(v) for k, v in value.state.items()})
    if isinstance(value, dict):
        return {k: _sealed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sealed(v) for v in value) if type(value) in (list, tuple) else value
    return value


def _persistent(meta: Any) -> Record:
    """What NVIDIA's persistence writes, without its source text."""
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        raise pickle.UnpicklingError("a persistent object without attributes")
    return Record(str(meta.get("class_name", "")), dict(state))


def _storage(content: bytes) -> Any:
    """A storage written inside a pickle, itself read by torch's restricted reader."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    del requires_grad, hooks
    return data


def _parameter_with_state(data: Tensor, requires_grad: bool, hooks: Any, state: Any) -> Tensor:
    del requires_grad, hooks, state
    return data


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


_CODES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@final
class _Dtype:
    """Stands for numpy.dtype, whose own state could hold pointers: a code of plain numbers, little-endian."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        del align, copy
        self.code = str(code).lstrip("<=|")
        if self.code not in _CODES:
            raise pickle.UnpicklingError(f"it asks for a numpy dtype {code!r}")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            raise pickle.UnpicklingError("it asks for a numpy dtype that is big-endian")


def _scalar(dtype: Any, content: bytes) -> Any:
    """A number of numpy's as one of Python's."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it asks for a numpy scalar without a dtype")
    return np.frombuffer(content, dtype=dtype.code)[0].item()


@final
class _Array:
    """Stands for an array of numpy's, which no network needs: whatever makes or fills it is forgotten."""

    def __init__(self, *args: Any) -> None:
        del args

    def __setstate__(self, state: Any) -> None:
        del state


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("builtins", "slice"): slice,
    ("builtins", "bool"): bool,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    ("numpy", "ndarray"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Array,
}
_TORCH_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}


@final
class _Restricted(pickle._Unpickler):
    """An unpickler that knows a list of harmless globals and no others, and changes nothing but what it made."""

    # The unpickler in C would set attributes of anything in reach, functions included.
    dispatch: Any = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def load_build(self) -> None:
        """Take the state of an object.

        Raises:
            pickle.UnpicklingError: the object is not one of those that this module makes.
        """
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Shell | _Dtype | _Array):
            made.__setstate__(state)
        elif type(made) is not OrderedDict:  # what torch hangs on those is not needed
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global.

        Raises:
            pickle.UnpicklingError: the global is not on the list.
        """
        if (allowed := _ALLOWED.get((module, name))) is not None:
            return allowed
        if module == "torch" and name in _TORCH_DTYPES:
            return getattr(torch, name)
        if module.startswith("torch.nn.modules."):
            return type(name, (_Module,), {"kind": name})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to other files."""
        raise pickle.UnpicklingError("it refers to objects outside itself")


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Run a reader and turn its failures into sentences."""
    try:
        return read()
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "truncated" in message or "Ran out" in message:
            raise ValueError(f"{path} is truncated ({message}); fetch it again.") from error
        raise ValueError(
            f"{path} was refused, and nothing in it was run: {message}; "
            "only tensors, numbers and networks of known kinds are read."
        ) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes may ask for anything: absurd lengths, unknown codes, missing keys
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole checkpoint ({message}); fetch it again, or restore a copy.") from error


def read_objects(path: Path) -> Any:
    """Read a plain pickle: tensors, numbers, containers, and networks as `Record`.

    Raises:
        ValueError: the file is truncated, or asks for anything else; nothing in it was run.
        FileNotFoundError: there is no such file.
    """

    def read() -> Any:
        with path.open("rb") as file:
            return _sealed(_Restricted(file).load())

    return _guarded(path, read)


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file; a pickle may end with one."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_tensors(path: Path) -> Any:
    """Read a file of `torch.save`, zipped or of the older kind, with numpy's numbers allowed.

    Raises:
        ValueError: the file is truncated, or asks for more than tensors and numbers; nothing in it was run.
        FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the name.")
    stand_ins: list[Any] = [(_scalar, f"{module}.scalar") for module in _NUMPY]
    stand_ins += [(_Dtype, "numpy.dtype"), (_encode, "_codecs.encode")]

    def read() -> Any:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))

    return _guarded(path, read)
