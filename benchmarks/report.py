"""What a benchmark found: a table, a record and a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Times
from benchmarks.plot import plot_rows
from dxdt import __version__

__all__ = ["Line", "missing", "show", "surroundings", "table_of", "write"]


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        problem, batch, work, peer: what was run.
        times: seconds.
        steps: steps or queries.
        error: distance of a statistic from its exact or reference value.
        ratio: time over that of the line it is compared with.
    """

    problem: str
    batch: int
    work: str
    peer: str
    times: Times
    steps: int
    error: float
    ratio: float


def missing(package: str, name: str) -> str | None:
    """One line that says what to install, or None."""
    if util.find_spec(package) is not None:
        return None
    return f"{name} is not installed: run pip install '{package}' (or 'dxdt[bench]')"


def table_of(title: str, lines: Sequence[Line]) -> Table:
    """The lines as a table."""
    table = Table(title=title, title_justify="left")
    base = next((x.peer for x in lines if x.ratio == 1), "")
    columns = ("work", "library", "ms", "quartiles", "us/step", "steps", "error", f"x {base}")
    for column in columns:
        table.add_column(column, justify="left" if column in ("work", "library") else "right")
    for x in lines:
        t = x.times
        cells = [x.work, x.peer, f"{1e3 * t.median:.3f}", f"{1e3 * t.low:.3f}-{1e3 * t.high:.3f}"]
        cells += [f"{1e6 * t.median / x.steps:.2f}", str(x.steps), f"{x.error:.1e}", f"{x.ratio:.2f}"]
        table.add_row(*cells)
    return table


def show(console: Console, tables: Sequence[Table]) -> None:
    """Print the tables."""
    for table in tables:
        console.print(table)


def surroundings() -> dict[str, Any]:
    """The machine and the versions of what is installed, for a record."""
    cuda = torch.cuda.is_available()
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dxdt": __version__,
        "cuda": torch.version.cuda if cuda else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    packages = [p for p in ("torchdiffeq", "torchode", "torchsde", "diffrax", "jax") if util.find_spec(p) is not None]
    return {"machine": machine, "versions": {p: metadata.version(p) for p in packages}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = list[str]()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {vectors}"


def write(out: Path, lines: Sequence[Line], tables: Sequence[Table], settings: Mapping[str, Any]) -> None:
    """Write results.json, table.txt and times.png into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    record = {**surroundings(), **settings, "rows": [asdict(x) for x in lines]}
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    with (out / "table.txt").open("w") as file:
        show(Console(file=file, width=150), tables)
    plot_rows(list(lines), out / "times.png")
