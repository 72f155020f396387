"""Settings as frozen dataclasses, and their form on disk: JSON, YAML or TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, Union

from dxdt.ops.optional import require

Settings = TypeVar("Settings")
_KIND = "kind"


def to_plain(settings: Any) -> Any:
    """Return the fields of a dataclass as plain values, nested ones as dictionaries.

    Where a field may hold one of several dataclasses, the entry "kind" names which.
    """
    if not dataclasses.is_dataclass(settings):
        return list(settings) if isinstance(settings, tuple) else settings
    hints = typing.get_type_hints(type(settings))
    plain: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        plain[f.name] = to_plain(value)
        if len(_kinds(hints[f.name])) > 1 and dataclasses.is_dataclass(value):
            plain[f.name] = {_KIND: type(value).__name__, **plain[f.name]}
    return plain


def _kinds(hint: Any) -> dict[str, Any]:
    """Return the dataclasses that a type admits, by name."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {o.__name__: o for o in options if dataclasses.is_dataclass(o) and isinstance(o, type)}


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}."


def from_plain(kind: type[Settings], values: dict[str, Any], base: Settings | None = None) -> Settings:
    """Return a dataclass from what `to_plain` gave, or from a part of it.

    Args:
        kind: the dataclass.
        values: by name; nested dataclasses as dictionaries.
        base: gives the fields that `values` leaves out; the defaults of `kind` otherwise.

    Raises:
        ValueError: a key or a kind is unknown, and the nearest known one is named; or a value is of
            the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(kind)
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{kind.__name__}: there is no setting {key}; {_nearest(key, known)}")
        former = getattr(base, key) if base is not None else _default(known[key])
        kept[key] = _value(f"{kind.__name__}.{key}", hints[key], value, former)
    return dataclasses.replace(base, **kept) if base is not None else kind(**kept)  # pyright: ignore


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else None


def _value(name: str, hint: Any, value: Any, former: Any) -> Any:
    kinds = _kinds(hint)
    if kinds and isinstance(value, str) and len(kinds) > 1:
        value = {_KIND: value}
    if kinds and isinstance(value, dict):
        asked = value.get(_KIND, type(former).__name__)
        if asked not in kinds:
            raise ValueError(f"{name}: there is no kind {asked}; {_nearest(str(asked), kinds)}")
        rest = {k: v for k, v in value.items() if k != _KIND}
        return from_plain(kinds[asked], rest, former if type(former) is kinds[asked] else None)
    return _plain_value(name, hint, value, bool(kinds))


def _plain_value(name: str, hint: Any, value: Any, nested: bool) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    if nested:
        raise ValueError(f"{name}: {value!r} is no table of settings; write its entries by name.")
    for option in options:
        origin = typing.get_origin(option)
        if origin is typing.Literal and value in typing.get_args(option):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if option is float and isinstance(value, str) and _is_number(value):
            return float(value)  # YAML reads 1e-3 as a word
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is Path and isinstance(value, str):
            return Path(value)
        if isinstance(option, type) and type(value) is option:
            return value
    raise ValueError(f"{name}: {value!r} is not of the type {getattr(hint, '__name__', hint)}; correct it.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a .yaml, .toml or .json file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its ending is unknown, or it holds no table of settings.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file of settings {path}; give a .yaml, .toml or .json file.")
    text = path.read_text()
    try:
        if path.suffix in (".yaml", ".yml"):
            found = require("yaml", "lab").safe_load(text)
        elif path.suffix == ".toml":
            found = tomllib.loads(text)
        elif path.suffix == ".json":
            found = json.loads(text)
        else:
            raise ValueError("its ending is none of .yaml, .toml, .json")
    except Exception as error:
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"{path} cannot be read as settings: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no table of settings; write lines like 'steps: 1000'.")
    return found


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of settings that are not equal in `old` and `new`."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
