"""Bars of progress, which files never see."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

from dxdt.diffeq.progress import is_live

__all__ = ["progress_bar"]


def progress_bar(total: int, description: str, unit: str, *, quiet: bool = False, **options: Any) -> Any:
    """Return a bar on standard error, silent where that is a file or a pipe.

    Args:
        total: what counts as done.
        description, unit: shown beside the bar.
        quiet: silent in any case.
        options: as in `tqdm`.
    """
    return tqdm(total=total, desc=description, unit=unit, disable=quiet or not is_live(sys.stderr), **options)
