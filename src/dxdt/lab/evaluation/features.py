"""Networks whose features compare images: published ones of DXDT_DATA, TorchScript, or your own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dxdt.lab.data.folder import data_folder
from dxdt.lab.evaluation.classifiers import mnist_cnn, resnet20

KNOWN = {"mnist_cnn": mnist_cnn, "resnet20": resnet20}


def feature_net(name: str) -> Callable[[Tensor], Tensor]:
    """Return a function from images (batch, channels, height, width) in [0, 1] to features (batch, d).

    Args:
        name: mnist_cnn or resnet20 (of DXDT_DATA), the path of a TorchScript file, or "module:function",
            a function without arguments that returns the network, or the network itself.

    Raises:
        FileNotFoundError: DXDT_DATA or the file is missing.
        ValueError: the name is of none of these kinds, or cannot be imported.
    """
    if name in KNOWN:
        folder = data_folder()
        if folder is None:
            raise FileNotFoundError(f"{name} is read from the folder that DXDT_DATA names, and it is not set; set it.")
        return KNOWN[name](folder)
    if ":" in name and not Path(name).exists():
        return _imported(name)
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no feature network {name}; give {', '.join(KNOWN)}, a TorchScript file or module:function."
        )
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is no TorchScript file; write it by torch.jit.save.") from error


def _imported(name: str) -> Callable[[Tensor], Tensor]:
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported ({error}); give module:function, on Python's path.") from error
    if isinstance(found, torch.nn.Module):
        return found.eval()
    if not callable(found):
        raise ValueError(f"{name} is a {type(found).__name__}; let it be a network, or a function that returns one.")
    made: Any = found()
    return made.eval() if hasattr(made, "eval") else made
