"""Processes, parameterisations, clocks and architectures as plain JSON, and back.

Only names on a list are made again, from frozen dataclasses of plain fields, so a description cannot run code.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from dxdt import diffusion, nn
from dxdt.diffusion import Process
from dxdt.interop.preconditionings import Negated, ToldLogSigma
from dxdt.interop.score_sde import Descending

__all__ = ["agree", "describe", "restore"]

_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (*vars(diffusion).values(), *vars(nn).values(), Descending, Negated, ToldLogSigma)
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, Enum))
}
_MOST = 1 << 32
_FUNCTIONS = {
    "diffusion_time": diffusion.diffusion_time,
    "log_snr": diffusion.log_snr,
    "noise_to_signal": diffusion.noise_to_signal,
}


def describe(value: Any) -> Any:
    """Return plain JSON that says what `value` is.

    Raises:
        ValueError: it is, or holds, something that has no description.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    if isinstance(value, Tensor) and value.ndim == 1:
        return {"numbers": value.double().tolist()}
    if isinstance(value, Enum) and _TYPES.get(type(value).__name__) is type(value):
        return {"choice": type(value).__name__, "value": value.value}
    for name, function in _FUNCTIONS.items():
        if value is function:
            return {"function": name}
    if _TYPES.get(type(value).__name__) is not type(value) or not dataclasses.is_dataclass(value):
        raise ValueError(
            f"{value!r} has no description that could be stored; use the processes, parameterisations, clocks and "
            "architectures of dxdt, or keep the object in your own file."
        )
    fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    return {"type": type(value).__name__, **fields}


def restore(said: Any, where: str) -> Any:
    """Return what `describe` described.

    Args:
        said: plain JSON.
        where: what to call the file in errors.

    Raises:
        ValueError: a name is not known, or its fields are not those of the named type.
    """
    if isinstance(said, list):
        return tuple(restore(v, where) for v in said)
    if not isinstance(said, Mapping):
        if isinstance(said, int) and abs(said) > _MOST:
            raise ValueError(f"{where}: a whole number of {len(hex(said)) - 2} digits is out of all proportion.")
        return said
    if "numbers" in said:
        return torch.tensor(said["numbers"], dtype=torch.float64)
    if "function" in said:
        return _look_up(said["function"], _FUNCTIONS, where)
    if "choice" in said:
        return _look_up(said["choice"], _TYPES, where)(said["value"])
    name = said.get("type")
    kind: Any = _look_up(name, _TYPES, where)
    fields = {key: restore(value, where) for key, value in said.items() if key != "type"}
    known = {name for name, field in getattr(kind, "__dataclass_fields__", {}).items() if field.init}
    if unknown := sorted(set(fields) - known):
        near = difflib.get_close_matches(unknown[0], sorted(known), 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
        raise ValueError(f"{where}: {name} has no field {unknown[0]}; {hint}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{where}: {name} cannot be made from its stored fields ({error}).") from error


def _look_up(name: Any, known: Mapping[str, Any], where: str) -> Any:
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), list(known), 1)
    hint = f"did you mean {near[0]}?" if near else "the file was written by a newer version, or is damaged."
    raise ValueError(f"{where}: {name!r} is not known here; {hint}")


def moments_of(process: Process) -> list[list[float]]:
    """Return (t, a, c) at nine times between t0 and t1."""
    t = torch.linspace(process.t0, process.t1, 9, dtype=torch.float64)
    return torch.stack((t, process.a(t), process.c(t)), 1).tolist()


def agree(process: Process, moments: list[list[float]], where: str) -> None:
    """Compare a process with stored moments.

    Raises:
        ValueError: they differ by more than a part in a million.
    """
    t, a, c = torch.tensor(moments, dtype=torch.float64).unbind(1)
    for have, wanted in ((process.a(t), a), (process.c(t), c)):
        bad = ((have - wanted).abs() > 1e-6 * wanted.abs().clamp(min=1e-6)).nonzero()
        if len(bad):
            k = bad[0].item()
            raise ValueError(
                f"{where}: its process has signal {a[int(k)]:.6g} and noise {c[int(k)]:.6g} at t = {t[int(k)]:.6g}, "
                f"but {process!r} has {process.a(t)[int(k)]:.6g} and {process.c(t)[int(k)]:.6g}; "
                "use the process that the network was trained on."
            )
