"""Files of weights in a network's folder of diffusers: variants, shards, safetensors and pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from dxdt.interop.checkpoint import read_safetensors
from dxdt.interop.read import read_content

__all__ = ["read_json", "read_weights"]

_STEM = "diffusion_pytorch_model"
_NAME = re.compile(rf"{_STEM}(?:\.(\w+?))?(?:-(\d+)-of-(\d+))?(?:\.(\w+?))?\.(safetensors|bin)")
# Attention before diffusers 0.12.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@final
@dataclass
class _Set:
    """Files that hold one version of the weights.

    Attributes:
        variant: its name, empty for the usual one.
        kind: safetensors or bin.
        files: what was found.
        count: how many there should be.
    """

    variant: str
    kind: str
    files: list[str] = field(default_factory=list[str])
    count: int = 1

    def rank(self, averaged: bool) -> tuple[int, bool, str]:
        """Where it stands among others: full precision before half, safetensors before pickles."""
        order = ["ema", "", "bf16", "fp16"] if averaged else ["non_ema", "", "bf16", "fp16"]
        place = order.index(self.variant) if self.variant in order else len(order)
        return place, self.kind == "bin", self.variant


def read_weights(folder: Path, *, averaged: bool = True, variant: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a network's folder.

    Args:
        folder: holds diffusion_pytorch_model.safetensors, .bin, or shards of them, of any variant.
        averaged: prefer averaged weights where both are there.
        variant: which version, such as fp16 or non_ema; by default the averaged or usual one, in full precision if
            it is there.

    Raises:
        ValueError: there are no weights, no such variant, a shard is missing, or a file is damaged.
    """
    sets = _found(folder)
    if variant is not None:
        sets = [each for each in sets if each.variant == variant]
    if not sets:
        asked = "" if variant is None else f" of the variant {variant}"
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder} holds no {_STEM}.safetensors or .bin{asked}, whole or in shards, but {there}; fetch the weights."
        )
    chosen = min(sets, key=lambda each: each.rank(averaged))
    tensors: dict[str, Tensor] = {}
    for name in _shards(folder, chosen):
        tensors |= _tensors(folder / name)
    return _modern(tensors)


def _found(folder: Path) -> list[_Set]:
    """The sets of files in a folder."""
    sets: dict[tuple[str, str], _Set] = {}
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        before, _, count, after, kind = match.groups()
        variant = before or after or ""
        # Shards of one variant beside its whole file are a set of their own.
        whole = sets.setdefault((variant, kind if count is None else f"{kind} in shards"), _Set(variant, kind))
        whole.files.append(path.name)
        whole.count = 1 if count is None else int(count)
    for path in sorted(folder.glob(f"{_STEM}.*.index*.json")):
        _, kind, _, *rest = path.name.split(".")
        variant = rest[0] if len(rest) == 2 else ""
        sets.setdefault((variant, f"{kind} in shards"), _Set(variant, kind, count=0))
    return list(sets.values())


def _shards(folder: Path, chosen: _Set) -> list[str]:
    """Names of the files of a set: those that its index names, where there is one."""
    index = folder / f"{_STEM}.{chosen.kind}.index{f'.{chosen.variant}' if chosen.variant else ''}.json"
    if chosen.count != 1 and index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} has no weight_map that names shards; fetch it again.")
        chosen.files = sorted(set(names.values()))
        for name in chosen.files:
            if Path(name).name != name or name in (".", ".."):
                raise ValueError(f"{index} names the shard {name!r}, which is outside its folder; it was refused.")
        missing = [name for name in chosen.files if not (folder / name).exists()]
    else:
        missing = [] if len(chosen.files) == chosen.count else [f"{chosen.count - len(chosen.files)} shards"]
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} of {_STEM}.{chosen.kind}; fetch the weights again.")
    return chosen.files


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content = read_content(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no tensors by their names; fetch the weights again.")
    return content


def _modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".attentions." in name:
            for old, new in _OLD.items():
                name = name.replace(old, new)
        found[name] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds, a dictionary.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; fetch the folder again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad text, endless nesting, numbers without end
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not JSON ({message}); fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration; fetch it again.")
    return content
