"""The folder of measured data that the variable DXDT_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["data_folder"]


def data_folder() -> Path | None:
    """Return the folder named by the variable DXDT_DATA, or None where it is not set.

    Raises:
        FileNotFoundError: the variable names a folder that does not exist.
    """
    name = os.environ.get("DXDT_DATA")
    if not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"DXDT_DATA names {folder}, which is no folder; correct or unset the variable.")
    return folder
