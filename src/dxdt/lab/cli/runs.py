"""`dxdt runs`: what was trained where."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from dxdt.lab.cli.parse import call


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(runs, args)


def runs(folder: tyro.conf.Positional[Path] = Path("runs")) -> None:
    """List the runs below a folder: when, how far, and their last loss.

    Args:
        folder: searched three levels deep.
    """
    found = [p.parent for depth in range(3) for p in folder.glob("*/" * depth + "config.json")]
    if not found:
        raise FileNotFoundError(f"there is no run below {folder}; train one, or name another folder.")
    table = Table(box=None, pad_edge=False)
    for column in ("run", "data", "step", "of", "loss", "last change", "model"):
        table.add_column(column, justify="right" if column in ("step", "of", "loss") else "left", overflow="fold")
    for run in sorted(found, key=_changed):
        table.add_row(*_row(run))
    Console().print(table)


def _changed(run: Path) -> float:
    log = run / "metrics.jsonl"
    return (log if log.exists() else run / "config.json").stat().st_mtime


def _row(run: Path) -> list[str]:
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text())
    except json.JSONDecodeError:
        return [str(run), "config.json is broken", "", "", "", "", ""]
    last = _last(run / "metrics.jsonl")
    training = config.get("training", {})
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(run)))
    loss = f"{last['loss']:.4f}" if "loss" in last else ""
    model = "yes" if (run / "model.safetensors").exists() else ""
    steps = str(training.get("steps", "")) if isinstance(training, dict) else ""
    return [str(run), str(config.get("data", "")), str(last.get("step", "")), steps, loss, when, model]


def _last(log: Path) -> dict[str, Any]:
    lines = log.read_text().splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a kill in the middle of a write leaves half a line
            continue
        if "step" in row:
            return row
    return {}
