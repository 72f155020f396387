"""Names of tensors: from another library's to ours, with nothing left over on either side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

__all__ = ["KeyMap", "Source", "affine", "matched", "reading", "renamed", "stacked", "transposed", "unused"]


@final
@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from.

    Attributes:
        names: tensors of the file.
        form: makes ours of them.
    """

    names: tuple[str, ...]
    form: Callable[[list[Tensor]], Tensor]


KeyMap: TypeAlias = dict[str, Source]
"""Our names, each with its source."""


def renamed(name: str) -> Source:
    """The tensor called `name`, as it is."""
    return Source((name,), lambda found: found[0])


def transposed(name: str) -> Source:
    """A matrix (in, out) as the weight (out, in, 1, 1) of a 1 x 1 convolution."""
    return Source((name,), lambda found: found[0].t()[:, :, None, None])


def stacked(names: tuple[str, ...], part: Callable[[Tensor], Tensor] = lambda x: x) -> Source:
    """Several tensors below each other, each after `part`."""
    return Source(names, lambda found: torch.cat([part(x) for x in found]))


def affine(ours: str, theirs: str) -> KeyMap:
    """Weight and bias under another prefix."""
    return {f"{ours}.{kind}": renamed(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def unused(keys: KeyMap, found: Mapping[str, Tensor]) -> list[str]:
    """Return the names in `found` that no entry of `keys` reads."""
    read = {name for source in keys.values() for name in source.names}
    return [name for name in found if name not in read]


@contextmanager
def reading(where: str) -> Generator[None]:
    """Turn what goes wrong with a damaged file's parts into one sentence.

    Raises:
        ValueError: a part is missing or of another type than it should be.
    """
    try:
        yield
    except ValueError as error:
        if where in str(error):
            raise
        raise ValueError(f"{where}: {error}") from error
    except (LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where} is damaged: a part of it is missing or of another type ({type(error).__name__}: {message}); "
            "fetch it again."
        ) from error


def matched(
    wanted: Mapping[str, Tensor], keys: KeyMap, found: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """Return the tensors of a file under our names, in the network's precision.

    Args:
        wanted: tensors of the network, whose shapes are compared.
        keys: our names and their sources.
        found: the tensors of the file.
        where: what to call the file in errors.

    Raises:
        ValueError: a tensor is missing, left over, or has another shape than the network's.
    """
    lacking = [name for source in keys.values() for name in source.names if name not in found]
    if lacking:
        raise ValueError(
            f"{where}: tensor {lacking[0]} is missing ({len(lacking)} in all); the file is not of the kind of "
            "network that its other tensors describe; load it with the architecture that it was trained with."
        )
    extra = unused(keys, found)
    if extra:
        raise ValueError(
            f"{where}: tensor {extra[0]} belongs to no part of the network ({len(extra)} in all); "
            "load the file with the architecture that it was trained with."
        )
    ready: dict[str, Tensor] = {}
    for name, source in keys.items():
        if name not in wanted:
            raise ValueError(f"{where}: the network has no tensor {name}; give it the architecture of the file.")
        value = _formed(source, found, where)
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{where}: tensor {source.names[0]} becomes {tuple(value.shape)} where the network has "
                f"{tuple(wanted[name].shape)} ({name}); channels, widths or classes differ from the file's."
            )
        ready[name] = value.to(wanted[name].dtype)
    return ready


def _formed(source: Source, found: Mapping[str, Tensor], where: str) -> Tensor:
    try:
        return source.form([found[name] for name in source.names])
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{name} {tuple(found[name].shape)}" for name in source.names)
        raise ValueError(f"{where}: tensors have shapes that do not belong together ({shapes}): {error}.") from error
