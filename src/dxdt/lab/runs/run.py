"""A run: a folder with its settings, its metrics as JSON lines, its checkpoints and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, final

from dxdt.lab.runs.config import differences, from_plain, to_plain
from dxdt.lab.runs.files import read_json, write_atomic, write_json


@final
class Run:
    """A folder that knows what was done in it.

    Files: config.json, metrics.jsonl, checkpoints/NAME.safetensors, and whatever is put beside.

    Args:
        folder: made if missing.
        settings: a dataclass; a folder that holds a run with other settings is refused.
        fresh: empty the folder first, if it holds a run.
        free: dotted names of settings that a run may change as it goes on; `adopt` keeps the new ones, and the series
            "settings" of the metrics says what they were.

    Raises:
        ValueError: the folder holds a run with other settings, or files that are no run.
    """

    def __init__(self, folder: Path, settings: Any, *, fresh: bool = False, free: Collection[str] = ()) -> None:
        self.folder, self._plain = folder, json.loads(json.dumps(to_plain(settings)))
        self._changes: dict[str, list[Any]] = {}
        plain = self._plain
        config = folder / "config.json"
        if fresh and config.exists():
            shutil.rmtree(folder)
        if config.exists():
            former = _completed(read_json(config), settings)
            changed = differences(former, plain)
            fixed = [name for name in changed if not _within(name, free)]
            if fixed:
                raise ValueError(
                    f"{folder} holds a run with another {', '.join(fixed)}; "
                    "choose another folder (--out), or start over (--fresh)."
                )
            self._changes = {name: [_at(former, name), _at(plain, name)] for name in changed}
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files that are no run of dxdt; choose another folder (--out).")
        else:
            write_json(config, plain)

    def adopt(self) -> None:
        """Keep the settings that changed, once it is known that the run goes on with them."""
        if self._changes:
            self.log("settings", **self._changes)
            write_json(self.folder / "config.json", self._plain)
            self._changes = {}

    @property
    def metrics(self) -> Path:
        """The JSON lines."""
        return self.folder / "metrics.jsonl"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def log(self, series: str, **values: Any) -> None:
        """Append one line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"series": series, **values}) + "\n")

    def read(self, series: str) -> list[dict[str, Any]]:
        """Return the lines of a series, a half-written last line left out."""
        if not self.metrics.exists():
            return []
        return [row for row in _lines(self.metrics) if row.get("series") == series]

    def rewind(self, series: str, step: int) -> None:
        """Drop the lines of a series after `step`: what a crash lost will be logged again."""
        if not self.metrics.exists():
            return
        kept = [row for row in _lines(self.metrics) if row.get("series") != series or row.get("step", 0) <= step]
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _within(name: str, names: Collection[str]) -> bool:
    return any(name == n or name.startswith(f"{n}.") for n in names)


def _at(plain: Any, name: str) -> Any:
    for part in name.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _completed(old: Any, settings: Any) -> Any:
    """Give settings on disk the defaults of those that are newer than the file."""
    try:
        return json.loads(json.dumps(to_plain(from_plain(type(settings), old))))
    except (ValueError, TypeError, AttributeError):
        return old


def _lines(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # a kill in the middle of a write leaves half a line
            continue
    return rows
