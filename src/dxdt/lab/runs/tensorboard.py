"""TensorBoard: the numbers of a run as events, where the package is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from dxdt.ops.optional import require


@final
class EventWriter:
    """Writes scalars to a folder of events; begun with the first of them.

    Args:
        folder: of the events.
        first: step from which events of a former, interrupted run are void.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.folder, self.first = folder, first
        self._writer: Any = None

    def add(self, step: int, **values: float) -> None:
        """Write values of a step."""
        if self._writer is None:
            writer = require("torch.utils.tensorboard", "lab").SummaryWriter
            self._writer = writer(str(self.folder), purge_step=self.first)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held back."""
        if self._writer is not None:
            self._writer.close()
